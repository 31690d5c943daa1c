"""A mask proposal network whose queries are embedded in CLIP's text space: branch A (paper §3.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ovseg.checkpoint import Architecture, check_target, first_line, load_weights, read_architecture, toy_weights
from ovseg.models.network_values import MASK_NETWORKS, shape_of
from ovseg.models.proposals.base import Proposer
from ovseg.models.proposals.hub import build_network, hidden_size, load_backbone, prepare_swin, read_network
from ovseg.ops import Classifier, best_synonyms, mask_probabilities
from ovseg.structures import ImageProposals, InputError, Proposals, Vocabulary

CONFIG, WEIGHTS = "proposer.json", "model.safetensors"
IMAGE_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
IMAGE_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)
_AGAIN = "write it again with `ovseg fit --config conf/proposals.yaml` or `ovseg bundle`"
_WIDEST = 2**16  # the largest layer that a file may request
LOGIT_SCALE = 100.0  # constant in the paper, not CLIP's learned temperature


class MaskProposer(Proposer):
    """Hugging Face's Mask2Former or MaskFormer with query embeddings in CLIP's text space instead of a class predictor.

    A checkpoint from Hugging Face has no such embeddings before it is trained here. Until then, its proposals have an
    objectness, computed by its class predictor, instead of class logits.

    Args:
        model: `.ckpt` of proposal training, folder that `save_pretrained` wrote, `toy`, or hub name or folder of a
            Mask2Former or MaskFormer checkpoint. For random weights, the values of a `Mask2FormerConfig` including
            `backbone_config`, or of a `MaskFormerConfig` (`model_type: maskformer`) including `decoder_config` as well.
        text_dim: width D of CLIP's text space; a `model` trained in one has its own width.
        backbone: hub name or folder of pretrained weights for the backbone, if `model` consists of config values.
        head_width: hidden units of the MLP from queries to text space; a `model` trained in one has its own width.

    Raises:
        InputError: the model or its weights cannot be found, or do not fit.
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
            text_dim, head_width = trained.get("text_dim", text_dim), trained.get("head_width", head_width)
            network = build_network(trained["model"], trained.get("classes"), trained["source"])
        else:
            network = read_network(model) if isinstance(model, str) else build_network(model)
        self.model, self.mask_head, self.objectness_head = network
        encoder = self.model.pixel_level_module.encoder
        if (swin := getattr(encoder, "swin", getattr(encoder, "model", None))) is not None:
            prepare_swin(swin)
        untrained = self.objectness_head is not None
        if trained is not None and untrained:
            load_weights(self, trained["weights"])  # before the embeddings exist, because it was saved without them
        hidden = hidden_size(self.model)
        self.query_head = nn.Sequential(nn.Linear(hidden, head_width), nn.ReLU(), nn.Linear(head_width, text_dim))
        self.no_object_embedding = nn.Parameter(
            torch.randn(1, text_dim) * text_dim**-0.5
        )  # about as long as text features
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN)[:, None, None], persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD)[:, None, None], persistent=False)
        self.register_buffer("text_features", None, persistent=False)
        if trained is not None and not untrained:
            load_weights(self, trained["weights"], trained["prefix"])
        if isinstance(model, dict) and backbone is not None:
            load_backbone(self.model.pixel_level_module.encoder, backbone)

    @property
    def text_dim(self) -> int | None:  # type: ignore[override]
        """Width of the text features that queries are compared with; None for an untrained HF checkpoint."""
        return None if self.objectness_head is not None else self.no_object_embedding.shape[1]

    def checked_classifier(self, classifier: Classifier | None) -> Classifier:
        """Return a supported classifier unchanged, and the best one for None.

        Raises:
            InputError: the classifier is unknown, or needs query embeddings that are not trained.
        """
        if classifier not in (None, *get_args(Classifier)):
            raise InputError(f"classifier is {classifier!r}; give one of {', '.join(get_args(Classifier))}")
        if self.text_dim is not None:
            return classifier or "ensemble"
        if classifier not in (None, "clip"):
            raise InputError(
                f"classifier {classifier!r} needs proposals that were trained with CLIP's texts, but these come from a "
                "checkpoint of Hugging Face's; train it with `ovseg fit --config conf/proposals.yaml "
                "--model.proposer.model CHECKPOINT`, or use classifier 'clip'"
            )
        return "clip"

    def embed_queries(self) -> None:
        """Use query embeddings instead of a checkpoint's class predictor, so that training can learn them."""
        self.objectness_head = None

    def set_text_features(self, features: Tensor) -> None:
        """Set the L2-normalised text features (K, D) that queries are compared with.

        Raises:
            InputError: the network was trained with text features of another width.
        """
        if self.text_dim not in (None, features.shape[1]):
            raise InputError(
                f"the proposal network was trained with text features of width {self.text_dim}, but those of this CLIP "
                f"have width {features.shape[1]}; use the CLIP that it was trained with"
            )
        self.text_features = features.detach().to(self.no_object_embedding)

    def forward(self, images: Tensor | Sequence[Tensor]) -> list[Proposals]:
        """Propose masks.

        Args:
            images: (3, h, w) in [0, 1] each. They are normalised, then padded with zeros at the right and bottom to the
                size of the largest, rounded up to a multiple of 32.

        Returns:
            The proposals of the initial queries (Mask2Former only) and of every decoder layer; the last are the result.
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

    def propose(self, images: Tensor | Sequence[Tensor], vocabulary: Vocabulary | None = None) -> list[ImageProposals]:
        """Return the proposals of the last decoder layer, with class logits if text features are set.

        Args:
            images: (3, h, w) in [0, 1] each.
            vocabulary: the classes; each gets the logit of its best synonym. By default, every row of the text features
                is a class.
        """
        if not len(images):
            return []
        masks, _, logits, objectness = self(images)[-1]
        return [
            ImageProposals(
                mask_probabilities(masks[index].float(), (image.shape[1], image.shape[2])),
                None if logits is None else _of_classes(logits[index].float(), vocabulary),
                None if objectness is None else objectness[index],
            )
            for index, image in enumerate(images)
        ]

    def architecture(self) -> Architecture:
        """Return what a training checkpoint stores besides the weights to rebuild the network."""
        values = json.loads(self.model.config.to_json_string(use_diff=True))
        config = shape_of(values, "this network", MASK_NETWORKS, strict=False)
        if self.objectness_head is not None:
            return {"model": config, "classes": self.objectness_head.out_features - 1}
        first: nn.Linear = self.query_head[0]  # type: ignore[assignment]
        return {"model": config, "text_dim": self.text_dim, "head_width": first.out_features}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that the constructor can read.

        Raises:
            InputError: the folder holds anything other than a network saved by this method; it is left unchanged.
        """
        folder = Path(folder)
        check_target(folder, CONFIG)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.architecture(), indent=2) + "\n", encoding="utf-8")
        state = {key: tensor.contiguous() for key, tensor in self.state_dict().items()}
        if self.objectness_head is not None:  # omit the untrained embeddings
            state = {key: tensor for key, tensor in state.items() if not key.startswith(("query_head", "no_object"))}
        save_file(state, folder / WEIGHTS)

    def _pad(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Normalise images and pad them to a batch (B, 3, h, w)."""
        height, width = (-(-max(image.shape[axis] for image in images) // 32) * 32 for axis in (1, 2))
        batch = self.image_mean.new_zeros((len(images), 3, height, width))
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = (image - self.image_mean) / self.image_std
        return batch

    def _classify(self, queries: Tensor, mask_logits: Tensor) -> Proposals:
        """Add embeddings, and class logits or objectness, to the masks of queries (B, Q, C)."""
        embeddings = self.query_head(queries)  # (B, Q, D)
        if self.objectness_head is not None:
            no_object = self.objectness_head(queries).float().softmax(dim=-1)[..., -1]
            return Proposals(mask_logits, embeddings, None, 1 - no_object)
        if self.text_features is None:
            return Proposals(mask_logits, embeddings, None)
        texts = torch.cat([self.text_features, F.normalize(self.no_object_embedding, dim=-1)])  # (K + 1, D)
        with torch.autocast(texts.device.type, enabled=False):  # half precision is too coarse for logits up to 100
            class_logits = LOGIT_SCALE * F.normalize(embeddings.float(), dim=-1) @ texts.float().T
        return Proposals(mask_logits, embeddings, class_logits)


def _of_classes(logits: Tensor, vocabulary: Vocabulary | None) -> Tensor:
    """Reduce logits (Q, S + 1) of phrases and no-object to logits (Q, K + 1) of classes and no-object."""
    if vocabulary is None or len(vocabulary.phrases) == len(vocabulary):
        return logits
    class_of_phrase = torch.tensor(vocabulary.class_of_phrase, device=logits.device)
    return torch.cat([best_synonyms(logits[:, :-1], class_of_phrase, len(vocabulary)), logits[:, -1:]], dim=1)


def _trained_architecture(model: str) -> Architecture | None:
    """Return the architecture, source, weights file and key prefix of a network saved by ovseg, or None for others."""
    folder = toy_weights("proposer") if model == "toy" else Path(model)
    if folder.suffix == ".ckpt":
        source, prefix, weights = folder, "proposer.", folder
        architecture = read_architecture(folder, "proposer")
    elif (folder / CONFIG).is_file():
        source, prefix, weights = folder / CONFIG, "", folder / WEIGHTS
        try:
            architecture = json.loads(source.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{source} cannot be read ({first_line(error)}); {_AGAIN}") from error
    else:
        return None
    well_formed = isinstance(architecture, dict) and isinstance(architecture.get("model"), dict)
    if not well_formed or not all(
        type(width := architecture.get(size, 1)) is int and 1 <= width <= _WIDEST
        for size in ("text_dim", "head_width", "classes")
    ):
        raise InputError(f"{source} does not describe a proposal network; {_AGAIN}")
    return {**architecture, "source": str(source), "weights": weights, "prefix": prefix}
