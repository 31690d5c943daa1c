"""Branch A: a mask proposal network whose queries live in CLIP's text space (paper §3.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerModel,
    MaskFormerConfig,
    MaskFormerModel,
)
from transformers.models.maskformer.modeling_maskformer import MaskformerMLPPredictionHead

from ovseg.checkpoint import Architecture, first_line, hub_or_cache, load_weights, quiet, read_architecture, toy_weights
from ovseg.models.deeplab_resnet import DeepLabResNetConfig
from ovseg.structures import InputError, Proposals

CONFIG, WEIGHTS = "proposer.json", "model.safetensors"
IMAGE_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
IMAGE_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)
LOGIT_SCALE = 100.0  # constant in the paper, not CLIP's learned temperature


class MaskProposer(nn.Module):
    """Hugging Face's Mask2Former or MaskFormer, its class predictor replaced by embeddings to compare with texts.

    Args:
        model: the values of a `Mask2FormerConfig` with its `backbone_config`, for random weights, or of a
            `MaskFormerConfig` (`model_type: maskformer`) with its `decoder_config` too; or a hub name or a
            folder of a Mask2Former checkpoint (its class predictor is dropped), a folder that `save_pretrained` wrote,
            a `.ckpt` of proposal training, or `toy`.
        text_dim: width D of CLIP's text space; taken from `model` where that has been trained in one.
        backbone: hub name or folder of pretrained weights for the backbone alone.
        head_width: hidden units of the MLP from queries to text space.

    Raises:
        InputError: the model or its weights cannot be found or do not fit.
    """

    image_mean: Tensor
    image_std: Tensor
    text_features: Tensor | None

    def __init__(
        self,
        model: str | dict[str, Any],
        text_dim: int = 768,
        backbone: str | None = None,
        head_width: int = 1024,
    ) -> None:
        super().__init__()
        trained = _trained_architecture(model) if isinstance(model, str) else None
        if trained is not None:
            model, text_dim, head_width = trained["model"], trained["text_dim"], trained["head_width"]
        with quiet("transformers"):  # it warns about every backbone but Swin; others are meant here
            self.model = _from_config(model) if isinstance(model, dict) else _from_hub(model)
        encoder = self.model.pixel_level_module.encoder
        # Swin, in either network: no output passes its last norm, and DDP waits for every gradient
        if (swin := getattr(encoder, "swin", getattr(encoder, "model", None))) is not None:
            swin.layernorm.requires_grad_(False)
        config = self.model.config
        self.mask_head: nn.Module | None = None
        if isinstance(self.model, Mask2FormerModel):
            hidden: int = config.hidden_dim
        else:
            hidden = config.decoder_config.hidden_size  # type: ignore[union-attr]
            self.mask_head = MaskformerMLPPredictionHead(hidden, hidden, config.mask_feature_size)
        self.query_head = nn.Sequential(nn.Linear(hidden, head_width), nn.ReLU(), nn.Linear(head_width, text_dim))
        self.no_object_embedding = nn.Parameter(torch.randn(1, text_dim) * 0.02)
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN)[:, None, None], persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD)[:, None, None], persistent=False)
        self.register_buffer("text_features", None, persistent=False)
        if trained is not None:
            load_weights(self, trained["weights"], trained["prefix"])
        if backbone is not None:
            _load_backbone(self.model.pixel_level_module.encoder, backbone)

    def set_text_features(self, features: Tensor) -> None:
        """Classify queries by these L2-normalised text features, (K, D)."""
        if features.shape[1] != self.no_object_embedding.shape[1]:
            raise InputError(
                f"the proposal network speaks to texts of width {self.no_object_embedding.shape[1]}, this CLIP has "
                f"{features.shape[1]}; use the CLIP that it was trained with"
            )
        self.text_features = features.detach().to(self.no_object_embedding)

    def forward(self, images: Tensor | Sequence[Tensor]) -> list[Proposals]:
        """Propose masks.

        Args:
            images: (3, h, w) in [0, 1] each; they are normalised, then padded with zeros to the right and bottom to the
                largest of them and to a multiple of 32.

        Returns:
            Proposals of the initial queries (Mask2Former) and after every decoder layer; the last is the answer.
        """
        output = self.model(self._pad(images), output_hidden_states=True)
        if self.mask_head is None:
            # to (B, Q, C)
            states = [queries.transpose(0, 1) for queries in output.transformer_decoder_intermediate_states]
            masks = output.masks_queries_logits
        else:
            # HF's own deep supervision feeds normed states onward and norms the last twice; the paper's does neither
            norm = self.model.transformer_module.decoder.layernorm
            between = output.transformer_decoder_hidden_states[1:-1]
            states = [*(norm(state) for state in between), output.transformer_decoder_last_hidden_state]
            pixels = output.pixel_decoder_last_hidden_state  # (B, M, h / 4, w / 4)
            masks = [torch.einsum("bqm,bmhw->bqhw", self.mask_head(state), pixels) for state in states]
        return [self._classify(queries, mask_logits) for queries, mask_logits in zip(states, masks, strict=True)]

    def architecture(self) -> Architecture:
        """What a training checkpoint keeps beside the weights."""
        first: nn.Linear = self.query_head[0]  # type: ignore[assignment]
        config: dict[str, Any] = json.loads(self.model.config.to_json_string(use_diff=True))
        return {"model": config, "text_dim": self.no_object_embedding.shape[1], "head_width": first.out_features}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that the constructor reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.architecture(), indent=2) + "\n", encoding="utf-8")
        save_file({key: tensor.contiguous() for key, tensor in self.state_dict().items()}, folder / WEIGHTS)

    def _pad(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """(B, 3, h, w), normalised and padded."""
        height, width = (-(-max(image.shape[axis] for image in images) // 32) * 32 for axis in (1, 2))
        batch = self.image_mean.new_zeros((len(images), 3, height, width))
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = (image - self.image_mean) / self.image_std
        return batch

    def _classify(self, queries: Tensor, mask_logits: Tensor) -> Proposals:
        embeddings = self.query_head(queries)  # (B, Q, D)
        if self.text_features is None:
            return Proposals(mask_logits, embeddings, None)
        texts = torch.cat([self.text_features, F.normalize(self.no_object_embedding, dim=-1)])  # (K + 1, D)
        with torch.autocast(texts.device.type, enabled=False):  # half precision is too coarse for logits up to 100
            class_logits = LOGIT_SCALE * F.normalize(embeddings.float(), dim=-1) @ texts.T
        return Proposals(mask_logits, embeddings, class_logits)


def _trained_architecture(model: str) -> Architecture | None:
    """Architecture, weights file and key prefix of a network of ours; None where `model` is a checkpoint of HF's."""
    folder = toy_weights("proposer") if model == "toy" else Path(model)
    if folder.suffix == ".ckpt":
        return {**read_architecture(folder, "proposer"), "weights": folder, "prefix": "proposer."}
    if not (folder / CONFIG).is_file():
        return None
    architecture: Architecture = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return {**architecture, "weights": folder / WEIGHTS, "prefix": ""}


def _from_config(values: dict[str, Any]) -> Mask2FormerModel | MaskFormerModel:
    # without a backbone_config HF would take its default, or query the hub for a named backbone
    if not isinstance(values.get("backbone_config"), dict) or "model_type" not in values["backbone_config"]:
        known = f"swin, resnet or {DeepLabResNetConfig.model_type}"
        raise InputError(f"the proposal network needs a backbone_config with a model_type, for example {known}")
    settings = {key: value for key, value in values.items() if key != "model_type"}
    if values.get("model_type") == "maskformer":
        return MaskFormerModel(MaskFormerConfig(**settings))
    return Mask2FormerModel(Mask2FormerConfig(**settings))


def _from_hub(name: str) -> Mask2FormerModel:
    try:
        with hub_or_cache(name):
            model = Mask2FormerForUniversalSegmentation.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(_not_loaded("Mask2Former", name, "model", error)) from error
    network: Mask2FormerModel = model.model.train()  # HF hands it over in eval mode, and Lightning would train it so
    return network


def _load_backbone(encoder: nn.Module, name: str) -> None:
    try:
        with hub_or_cache(name), quiet("transformers"):  # its table of keys; what matters of it is said below
            pretrained, report = type(encoder).from_pretrained(  # type: ignore[attr-defined]
                name, config=encoder.config, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(_not_loaded("backbone", name, "backbone", error)) from error
    # of a classification network: it has a classifier to drop, and no norms on the outputs of its stages
    problems = {
        "missing": [key for key in report["missing_keys"] if "hidden_states_norms" not in key],
        "unexpected": [key for key in report["unexpected_keys"] if not key.startswith("classifier")],
        "of another shape": [key for key, *_ in report["mismatched_keys"]],
    }
    if found := [f"{len(keys)} {kind} ({min(keys)}, …)" for kind, keys in problems.items() if keys]:
        raise InputError(
            f"the backbone weights in {name} do not fit: {'; '.join(found)}; set backbone_config to their architecture"
        )
    encoder.load_state_dict(pretrained.state_dict())


def _not_loaded(what: str, name: str, option: str, error: Exception) -> str:
    return (
        f"{what} {name!r} could not be loaded ({first_line(error)}); without a network, bring config.json "
        f"and model.safetensors from elsewhere into a folder and give it as `{option}`"
    )
