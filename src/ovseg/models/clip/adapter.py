"""CLIP, adapted to masked regions."""

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
from ovseg.models.clip.text_tower import encode_tokens
from ovseg.models.clip.tokenizer import MERGES, TOKENIZER, create_tokenizer
from ovseg.structures import InputError

IMAGENET_TEMPLATES: tuple[str, ...] = tuple(sentence("{}") for sentence in open_clip.OPENAI_IMAGENET_TEMPLATES)


class CLIPAdapter(nn.Module):
    """A CLIP model of open_clip whose image tower takes a mask beside each region.

    One without a vision transformer, such as RN50, has no place for mask prompts and does all else.

    Args:
        model: name of an open_clip model, `hf-hub:` name, a folder with `open_clip_config.json`, a `.ckpt` of adapter
            training, or `toy`. All but the first bring their weights.
        pretrained: an open_clip tag or a weights file for a named model; weights are random without, and `trained` is
            false. Files of OpenAI and OVSeg need a `-quickgelu` model; OpenAI's own `.pt` are read as they are.
        prompt_depth: layers with mask prompts; by default as many as `model` brings. To a `model` without prompts it
            adds new ones, drawn from N(0, 0.02²) as a start for training.
        shared_prompt: one new prompt for all positions instead of one each.

    Raises:
        InputError: the model is unknown, or weights are missing or do not fit.
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
        checkpoint = model if Path(model).suffix == ".ckpt" else None
        with resolve_folder(model) as folder:
            if pretrained and (folder or model.startswith("hf-hub:")):
                raise InputError(f"{model} brings its own weights; leave `pretrained` out, it is for open_clip's names")
            with hub_or_cache(hub_name(folder, model, pretrained)):
                self.clip, self.trained, values = create_clip(folder, model, pretrained)
                self.config, self.merges = read_config(folder, values, self.clip)
                self.tokenizer = create_tokenizer(folder, model, values)
            if folder is None and not self.trained:
                logging.getLogger(__name__).warning(
                    "CLIP %s starts from random weights: no `pretrained` is given", model
                )
            prompts = read_state(folder / PROMPT) if folder and (folder / PROMPT).is_file() else {}
        prompts = prompts or ({} if checkpoint is None else _prompts_in(checkpoint))
        shape: tuple[int, ...] = getattr(prompts.get("mask_embedding"), "shape", ()) if prompts else (0, 0, 0)
        if len(shape) != 3:
            raise InputError(f"the mask prompts of {model} are not of shape (depth, patches, width); save it again")
        depth, positions, _ = shape
        if depth and prompt_depth not in (None, depth):
            raise InputError(f"{model} has mask prompts of depth {depth}, not {prompt_depth}; leave prompt_depth out")
        self.clip.visual = MaskPromptedViT(self.clip.visual, depth, positions == 1)  # type: ignore[arg-type]
        if self.visual.prompt is not None:
            check_and_load(self.visual.prompt, prompts, model)
        if checkpoint is not None:
            load_weights(self, checkpoint, "clip.")
            self.trained = True
        if prompt_depth is not None and prompt_depth < 0:
            raise InputError(f"prompt_depth is {prompt_depth}; give a number of layers, or leave it out")
        if prompt_depth and not depth:
            self.visual.add_prompt(prompt_depth, shared_prompt)
        preprocess = self.visual.visual.preprocess_cfg
        for name in ("mean", "std"):
            try:
                colour = torch.tensor(preprocess[name], dtype=torch.float32).reshape(3, 1, 1)
                if not colour.isfinite().all() or (name == "std" and not (colour > 0).all()):
                    raise ValueError
            except (RuntimeError, TypeError, ValueError) as error:
                raise InputError(
                    f"the {name} of {model} is {preprocess[name]!r}; give three numbers, of std above 0"
                ) from error
            self.register_buffer(name, colour, persistent=False)

    @property
    def visual(self) -> MaskPromptedViT:
        visual: MaskPromptedViT = self.clip.visual  # type: ignore[assignment]
        return visual

    @property
    def image_size(self) -> int:
        """Side of the regions in pixels."""
        return self.visual.image_size

    @property
    def dim(self) -> int:
        """Width of the joint space of regions and texts."""
        return int(self.config["model_cfg"]["embed_dim"])

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the temperature, learned with CLIP."""
        scale: nn.Parameter = self.clip.logit_scale  # type: ignore[assignment]
        return scale

    def compile_visual(self) -> None:
        """Compile the image tower at its first use, for any number of regions; no weight changes its name."""
        self.visual.compile()

    def encode_regions(self, regions: Tensor, region_masks: Tensor | None = None) -> Tensor:
        """L2-normalised features of masked regions.

        Args:
            regions: (N, 3, S, S) in [0, 1], filled outside the mask.
            region_masks: (N, S, S), positive where visible; nothing is blank where not given. A CLIP without mask
                prompts has nothing to put into blank patches and sees the fill there, masks or not.

        Returns:
            (N, D).

        Raises:
            InputError: regions are no RGB images, are smaller than a patch, or do not fit their masks.
        """
        self.visual.check(regions, region_masks)
        normalised = ((regions - self.mean) / self.std).to(self.mean.dtype)
        return F.normalize(self.visual(normalised, region_masks).float(), dim=-1)  # half precision is no unit length

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised features of K texts, (K, D); longer texts than the context are cut."""
        if isinstance(texts, str):
            raise InputError(f"texts are given as a list, such as [{texts!r}], not one by one")
        features = encode_tokens(self.clip, self.tokenizer(list(texts)))
        return features if features.dtype == torch.float32 else F.normalize(features.float(), dim=-1)

    def architecture(self) -> Architecture:
        """What a training checkpoint keeps beside the weights, to rebuild the network without a hub."""
        return architecture_of(self.config, self.merges, self.tokenizer, self.clip)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that the constructor reads and, but for the prompts, open_clip too.

        Raises:
            InputError: it holds something else than an earlier CLIP of ours; it stays as it is.
        """
        folder = Path(folder)
        check_clip_target(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, MERGES, PROMPT, TOKENIZER, TEXT_TOWER):  # of the earlier one
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
    state = read_state(checkpoint).get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        return {}  # which is said where the weights are loaded
    return under(state, "clip.clip.visual.prompt.")
