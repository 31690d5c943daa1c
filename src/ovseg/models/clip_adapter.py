"""CLIP, adapted to masked regions: the only file beside `mask_prompt` that imports open_clip."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ovseg.checkpoint import (
    Architecture,
    check_and_load,
    first_line,
    hub_or_cache,
    load_weights,
    quiet,
    read_architecture,
    read_state,
    toy_weights,
)
from ovseg.models.mask_prompt import MaskPromptedViT
from ovseg.models.text_tower import encode_tokens
from ovseg.structures import InputError

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"  # names that open_clip knows
MERGES, PROMPT = "merges.txt.gz", "mask_prompt.safetensors"

IMAGENET_TEMPLATES: tuple[str, ...] = tuple(sentence("{}") for sentence in open_clip.OPENAI_IMAGENET_TEMPLATES)


class CLIPAdapter(nn.Module):
    """A CLIP model of open_clip whose image tower takes a mask beside each region.

    Args:
        model: name of an open_clip model, `hf-hub:` name, a folder with `open_clip_config.json`, a `.ckpt` of adapter
            training, or `toy`. All but the first bring their weights.
        pretrained: an open_clip tag or a weights file for a named model; weights are random without. Files of OpenAI
            and OVSeg need a `-quickgelu` model.
        prompt_depth: layers with mask prompts; by default as many as `model` brings. New prompts are drawn from
            N(0, 0.02²).
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
        on_hub = model.startswith("hf-hub:")
        with _folder_of(model) as folder, hub_or_cache(model if on_hub else pretrained or "."):
            name = model if folder is None else f"local-dir:{folder}"
            if pretrained and (folder or on_hub):
                raise InputError(f"{model} brings its own weights; leave `pretrained` out, it is for open_clip's names")
            self.clip = _create_model(name, pretrained)
            self.config, self.merges = _read_config(folder, name, self.clip)
            self.tokenizer = _tokenizer(name, self.config, self.merges)
            prompts = load_file(folder / PROMPT) if folder and (folder / PROMPT).is_file() else {}
        prompts = prompts or ({} if checkpoint is None else _prompts_in(checkpoint))
        depth, positions, _ = prompts["mask_embedding"].shape if prompts else (0, 0, 0)
        if depth and prompt_depth not in (None, depth):
            raise InputError(f"{model} has mask prompts of depth {depth}, not {prompt_depth}; leave prompt_depth out")
        self.clip.visual = MaskPromptedViT(self.clip.visual, depth, positions == 1)  # type: ignore[arg-type]
        if self.visual.prompt is not None:
            check_and_load(self.visual.prompt, prompts, model)
        if checkpoint is not None:
            load_weights(self, checkpoint, "clip.")
        if prompt_depth and not depth:
            self.visual.add_prompt(prompt_depth, shared_prompt)
        preprocess = self.visual.visual.preprocess_cfg
        self.register_buffer("mean", torch.tensor(preprocess["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocess["std"])[:, None, None], persistent=False)

    @property
    def visual(self) -> MaskPromptedViT:
        visual: MaskPromptedViT = self.clip.visual  # type: ignore[assignment]
        return visual

    @property
    def image_size(self) -> int:
        """Side of the regions in pixels."""
        return int(self.visual.visual.image_size[0])

    @property
    def dim(self) -> int:
        """Width of the joint space of regions and texts."""
        return int(self.config["model_cfg"]["embed_dim"])

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the temperature, learned with CLIP."""
        scale: nn.Parameter = self.clip.logit_scale  # type: ignore[assignment]
        return scale

    def encode_regions(self, regions: Tensor, region_masks: Tensor | None = None) -> Tensor:
        """L2-normalised features of masked regions.

        Args:
            regions: (N, 3, S, S) in [0, 1], filled outside the mask.
            region_masks: (N, S, S), positive where visible; nothing is blank where not given.

        Returns:
            (N, D).
        """
        return F.normalize(self.visual((regions - self.mean) / self.std, region_masks), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised features of K texts, (K, D); longer texts than the context are cut."""
        return encode_tokens(self.clip, self.tokenizer(list(texts)))

    def architecture(self) -> Architecture:
        """What a training checkpoint keeps beside the weights, to rebuild the network without a hub."""
        return {"config": self.config, "merges": self.merges}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that the constructor reads and, but for the prompts, open_clip too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write_config(folder, self.config, self.merges)
        weights, prompt = {}, self.visual.prompt
        for key, tensor in self.clip.state_dict().items():
            if not key.startswith("visual.prompt."):
                weights[key.replace("visual.visual.", "visual.", 1)] = tensor.contiguous()
        save_file(weights, folder / WEIGHTS)
        if prompt is not None:
            save_file(prompt.state_dict(), folder / PROMPT)


@contextmanager
def _folder_of(model: str) -> Iterator[Path | None]:
    """The folder that `model` means, None for a name; for a checkpoint one made for the occasion, without weights."""
    folder = toy_weights("clip") if model == "toy" else Path(model)
    if folder.suffix == ".ckpt":
        architecture = read_architecture(folder, "clip")
        with tempfile.TemporaryDirectory() as temporary:  # open_clip builds models from files only
            _write_config(Path(temporary), architecture["config"], architecture["merges"])
            yield Path(temporary)
    elif folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise InputError(f"{folder} is not a CLIP folder: it has no {CONFIG}; `ovseg bundle` writes one")
        yield folder
    else:
        yield None


def _prompts_in(checkpoint: str) -> dict[str, Tensor]:
    prefix = "clip.clip.visual.prompt."
    state: dict[str, Tensor] = read_state(checkpoint)["state_dict"]
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _create_model(name: str, pretrained: str | None) -> nn.Module:
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    try:
        with quiet("open_clip"):  # it warns of random weights even where none were asked for
            model: nn.Module = open_clip.create_model(
                name,
                pretrained,
                force_quick_gelu=bool(tag.get("quick_gelu")),
                require_pretrained=pretrained is not None or name.startswith("hf-hub:"),
            )
    except Exception as error:  # of torch, safetensors, the hub and open_clip itself
        what = f"CLIP {name}" + (f" with weights {pretrained!r}" if pretrained else "")
        raise InputError(
            f"{what} could not be loaded ({first_line(error)}); without a network, bring the weights from "
            "elsewhere and give their file as `pretrained`, or a folder with open_clip_config.json as `model`"
        ) from error
    return model


def _read_config(folder: Path | None, name: str, clip: nn.Module) -> tuple[dict[str, Any], list[str] | None]:
    """The contents of `open_clip_config.json`, and the merges of a reduced tokenizer where there is one."""
    if folder is None:
        model = open_clip.get_model_config(name)
        # both may come with the weights, not with the name
        model["quick_gelu"] = any(isinstance(part, QuickGELU) for part in clip.modules())
        preprocess = {key: clip.visual.preprocess_cfg[key] for key in ("mean", "std")}  # type: ignore[union-attr, index]
        return {"model_cfg": model, "preprocess_cfg": preprocess, "tokenizer": name}, None
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    file = folder / MERGES
    return config, gzip.decompress(file.read_bytes()).decode().splitlines()[1:] if file.is_file() else None


def _write_config(folder: Path, config: dict[str, Any], merges: list[str] | None) -> None:
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if merges is not None:  # open_clip's format: a first line that is skipped, then a merge a line
        (folder / MERGES).write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges]).encode(), mtime=0))


def _tokenizer(name: str, config: dict[str, Any], merges: list[str] | None) -> Any:
    if merges is None:
        return open_clip.get_tokenizer(config.get("tokenizer", name))
    with tempfile.TemporaryDirectory() as folder:  # open_clip reads merges from files only
        _write_config(Path(folder), config, merges)
        context: int = config["model_cfg"]["text_cfg"]["context_length"]
        return open_clip.SimpleTokenizer(str(Path(folder) / MERGES), context_length=context)
