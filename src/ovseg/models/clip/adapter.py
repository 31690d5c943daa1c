"""CLIP adapted to masked regions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ovseg.checkpoint import Architecture, check_and_load, hub_or_cache, load_weights, read_state, under
from ovseg.models.clip.config import TEXT_TOWER
from ovseg.models.clip.files import (
    PROMPT,
    WEIGHTS,
    architecture_of,
    check_clip_target,
    create_clip,
    hub_name,
    read_config,
    resolve_folder,
    write_architecture,
)
from ovseg.models.clip.mask_prompt import MaskPromptedViT
from ovseg.models.clip.reduced import ReducedTower
from ovseg.models.clip.text_tower import encode_tokens
from ovseg.models.clip.tokenizer import MERGES, TOKENIZER, create_tokenizer
from ovseg.structures import InputError

IMAGENET_TEMPLATES: tuple[str, ...] = tuple(sentence("{}") for sentence in open_clip.OPENAI_IMAGENET_TEMPLATES)


class CLIPAdapter(nn.Module):
    """An open_clip model whose image tower accepts a mask with each region.

    Models without a vision transformer, such as RN50, support everything except mask prompts.

    Args:
        model: an open_clip model name, an `hf-hub:` name, a folder with `open_clip_config.json`, a `.ckpt` of adapter
            training, or `toy`. All but an open_clip name come with weights.
        pretrained: an open_clip tag or a weights file, for an open_clip name only. Without it, the weights are random
            and `trained` is false. Weights of OpenAI and OVSeg need a `-quickgelu` model; OpenAI's `.pt` files work.
        prompt_depth: number of layers with mask prompts; defaults to the depth stored with `model`. A `model` without
            prompts gets new ones, drawn from N(0, 0.02²), to be trained.
        shared_prompt: share one new prompt among all positions instead of learning one per position.

    Raises:
        InputError: the model is unknown, or its weights are missing or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str = "ViT-L-14-quickgelu",
        pretrained: str | None = None,
        prompt_depth: int | None = None,
        shared_prompt: bool = False,
    ) -> None:
        super().__init__()
        self._reduced = ReducedTower()
        self.checkpoint = checkpoint = model if Path(model).suffix == ".ckpt" else None  # see `regions.saved`
        with resolve_folder(model) as folder:
            if pretrained and (folder or model.startswith("hf-hub:")):
                raise InputError(
                    f"{model} comes with weights; remove `pretrained`, which only applies to open_clip model names"
                )
            with hub_or_cache(hub_name(folder, model, pretrained)):
                self.clip, self.trained, values = create_clip(folder, model, pretrained)
                self.config, self.merges = read_config(folder, values, self.clip)
                self.tokenizer = create_tokenizer(folder, model, values)
            if folder is None and not self.trained:
                logging.getLogger(__name__).warning(
                    "CLIP %s starts from random weights because `pretrained` is not set", model
                )
            prompts = read_state(folder / PROMPT) if folder and (folder / PROMPT).is_file() else {}
        prompts = prompts or ({} if checkpoint is None else _prompts_in(checkpoint))
        shape: tuple[int, ...] = getattr(prompts.get("mask_embedding"), "shape", ()) if prompts else (0, 0, 0)
        if len(shape) != 3:
            raise InputError(f"the mask prompts of {model} do not have shape (depth, patches, width); save it again")
        depth, positions, _ = shape
        if depth and prompt_depth not in (None, depth):
            raise InputError(f"{model} has mask prompts of depth {depth}, not {prompt_depth}; remove prompt_depth")
        self.clip.visual = MaskPromptedViT(self.clip.visual, depth, positions == 1)  # type: ignore[arg-type]
        if self.visual.prompt is not None:
            check_and_load(self.visual.prompt, prompts, model)
        if checkpoint is not None:
            load_weights(self, checkpoint, "clip.")
            self.trained = True
        if prompt_depth is not None and prompt_depth < 0:
            raise InputError(f"prompt_depth is {prompt_depth}; set a number of layers, or remove it")
        if prompt_depth and not depth:
            tower = self.visual.tower
            if prompt_depth > (layers := len(tower.blocks(tower.grid))):
                raise InputError(f"prompt_depth is {prompt_depth}; {model} has {layers} layers, give at most that many")
            self.visual.add_prompt(prompt_depth, shared_prompt)
        preprocess = self.visual.visual.preprocess_cfg
        for name in ("mean", "std"):
            try:
                colour = torch.tensor(preprocess[name], dtype=torch.float32).reshape(3, 1, 1)
                if not colour.isfinite().all() or (name == "std" and not (colour > 0).all()):
                    raise ValueError
            except (RuntimeError, TypeError, ValueError) as error:
                raise InputError(
                    f"the {name} of {model} is {preprocess[name]!r}; set three numbers, positive ones for std"
                ) from error
            self.register_buffer(name, colour, persistent=False)

    @property
    def visual(self) -> MaskPromptedViT:
        """The image tower."""
        visual: MaskPromptedViT = self.clip.visual  # type: ignore[assignment]
        return visual

    @property
    def image_size(self) -> int:
        """Side length of the square input regions, in pixels."""
        return self.visual.image_size

    @property
    def dim(self) -> int:
        """Width D of the embedding space that regions and texts share."""
        return int(self.config["model_cfg"]["embed_dim"])

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on cosine similarities, a parameter learned with CLIP."""
        scale: nn.Parameter = self.clip.logit_scale  # type: ignore[assignment]
        return scale

    def compile_visual(self) -> None:
        """Compile the image tower on first use, for any number of regions; the names of weights do not change."""
        self.visual.compile()

    def visual_in(self, dtype: torch.dtype | None) -> MaskPromptedViT:
        """Return the image tower with weights of a dtype, for inference; `visual` itself by default.

        The copy is made at first use and again after the weights have changed. It is not saved with CLIP.
        """
        return self.visual if dtype is None else self._reduced.of(self.visual, dtype)

    def encode_regions(
        self, regions: Tensor, region_masks: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return the L2-normalised features of masked regions.

        Args:
            regions: (N, 3, S, S) in [0, 1], filled outside the mask.
            region_masks: (N, S, S), positive where visible; everything is visible by default. A CLIP without mask
                prompts ignores the masks and sees the fill.
            dtype: of the image tower's weights and activations, see `visual_in`; by default, the stored weights are
                used and autocast applies.

        Returns:
            (N, D) float32.

        Raises:
            InputError: regions are not RGB, are smaller than a patch, or do not match the shape of their masks.
        """
        self.visual.check(regions, region_masks)
        normalised = ((regions - self.mean) / self.std).to(dtype or self.mean.dtype)
        if dtype is None:
            features = self.visual(normalised, region_masks)
        else:
            with torch.autocast(normalised.device.type, enabled=False):
                features = self.visual_in(dtype)(normalised, region_masks)
        return F.normalize(features.float(), dim=-1)  # fp16 is too coarse for unit length

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return the L2-normalised features of K texts, (K, D) float32; texts are truncated to CLIP's context."""
        if isinstance(texts, str):
            raise InputError(f"encode_text takes a list of texts, not a single one; pass [{texts!r}]")
        features = encode_tokens(self.clip, self.tokenizer(list(texts)))
        return features if features.dtype == torch.float32 else F.normalize(features.float(), dim=-1)

    def architecture(self) -> Architecture:
        """Return what a training checkpoint stores besides the weights to rebuild the network without a hub."""
        return architecture_of(self.config, self.merges, self.tokenizer, self.clip)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that the constructor can read. open_clip reads it too, without the mask prompts.

        Raises:
            InputError: the folder holds anything other than a CLIP saved by this method; it is left unchanged.
        """
        folder = Path(folder)
        check_clip_target(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, MERGES, PROMPT, TOKENIZER, TEXT_TOWER):  # left by an earlier save
            (folder / name).unlink(missing_ok=True)
        write_architecture(folder, self.architecture())
        weights, prompt = {}, self.visual.prompt
        for key, tensor in self.clip.state_dict().items():
            if not key.startswith("visual.prompt."):
                weights[key.replace("visual.visual.", "visual.", 1)] = tensor.contiguous()
        save_file(weights, folder / WEIGHTS)
        if prompt is not None:
            save_file(prompt.state_dict(), folder / PROMPT)


def _prompts_in(checkpoint: str) -> dict[str, Tensor]:
    """Return the state dict of a training checkpoint's mask prompts, empty if it has none."""
    state = read_state(checkpoint).get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        return {}  # `load_weights` refuses the file later, with a proper message
    return under(state, "clip.clip.visual.prompt.")
