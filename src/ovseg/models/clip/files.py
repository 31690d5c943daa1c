"""CLIP models of open_clip from names, the hub and files, none of which is ever executed."""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from ovseg.checkpoint import (
    Architecture,
    check_and_load,
    check_target,
    first_line,
    quiet,
    read_architecture,
    read_state,
    toy_weights,
)
from ovseg.limits import read_gzip
from ovseg.models.clip.config import CONFIG, TEXT_TOWER, model_config, read_json, text_tower, towers
from ovseg.models.clip.tokenizer import MERGES, SUFFIXES, is_tokenizer_file, tokenizer_files
from ovseg.structures import InputError

WEIGHTS, PROMPT = "open_clip_model.safetensors", "mask_prompt.safetensors"  # the first is a name that open_clip knows

WRITTEN_HERE = {"written_by": "ovseg"}
"""Entry of the config of a folder that is ours to write again: others give their files the same names."""

WEIGHTS_OF_OTHERS = (
    WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
)
"""What folders call them, the first that is there counts, as in open_clip."""

NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")
"""Constants that OpenAI's files, and old ones of open_clip, keep among their weights."""


@contextmanager
def resolve_folder(model: str) -> Iterator[Path | None]:
    """Resolve `model` to a folder.

    Checkpoints are unpacked to a temporary folder without weights; plain model names yield None.
    """
    folder = toy_weights("clip") if model == "toy" else Path(model.removeprefix("local-dir:"))
    if folder.suffix == ".ckpt":
        with tempfile.TemporaryDirectory() as temporary:  # open_clip builds models from files only
            try:
                write_architecture(Path(temporary), read_architecture(folder, "clip"))
            except InputError:
                raise
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{folder} describes no CLIP ({first_line(error)}); give a checkpoint of adapter training"
                ) from error
            yield Path(temporary)
    elif folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise InputError(f"{folder} is not a CLIP folder: it has no {CONFIG}; `ovseg bundle` writes one")
        yield folder
    else:
        yield None


def hub_name(folder: Path | None, name: str, pretrained: str | None) -> str:
    """What building a model asks the hub for, or `.` if nothing; a folder asks for nothing."""
    if folder is not None:
        return "."
    if name.startswith("hf-hub:"):
        return name
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    return pretrained or text.get("hf_model_name") or text.get("hf_tokenizer_name") or "."


def create_clip(folder: Path | None, name: str, pretrained: str | None) -> tuple[nn.Module, bool, dict[str, Any]]:
    """A model of a folder, or by open_clip's name, also `hf-hub:…`.

    Returns:
        The model; whether it has the weights of a tag, a file, its folder or its hub, or random ones; its `model_cfg`.

    Raises:
        InputError: the model is unknown, or weights are missing, unreadable or of another architecture.
    """
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    try:
        with quiet("open_clip"):  # it warns of random weights before we load ours
            model = model_config(folder, name)
            with towers(folder, name, model) as configs:
                clip: nn.Module = open_clip.create_model(
                    name if folder is None else f"local-dir:{folder}",
                    load_weights=False,
                    pretrained_text=False,
                    force_quick_gelu=bool(tag.get("quick_gelu")),
                    force_preprocess_cfg=tag,
                    **configs,
                )
            file = _weights_in(folder) if folder is not None else _weights_of(name, pretrained, tag)
    except InputError:
        raise
    except Exception as error:  # of torch, timm, the hub and open_clip itself
        what = f"CLIP {folder or name}" + (f" with weights {pretrained!r}" if pretrained else "")
        raise InputError(
            f"{what} could not be loaded ({first_line(error)}); without a network, bring the weights from "
            "elsewhere and give their file as `pretrained`, or a folder with open_clip_config.json as `model`"
        ) from error
    if file is not None:
        _load(clip, file)
    return clip, file is not None, model


def _weights_in(folder: Path) -> Path | None:
    files = [folder / known for known in WEIGHTS_OF_OTHERS if (folder / known).is_file()]
    others = [file for file in sorted(folder.glob("*.*")) if file.suffix in {".safetensors", ".bin", ".pt", ".pth"}]
    if not files and (unknown := [file.name for file in others if file.name != PROMPT]):
        raise InputError(f"{folder} has no {WEIGHTS}, but {unknown[0]}; rename that if it has the weights of CLIP")
    return files[0] if files else None


def _weights_of(name: str, pretrained: str | None, tag: dict[str, Any]) -> Path | None:
    if name.startswith("hf-hub:"):
        return Path(download_pretrained_from_hf(name.removeprefix("hf-hub:")))
    if tag:
        return Path(download_pretrained(tag))
    if pretrained and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(f"{pretrained!r} is neither a file nor a tag that open_clip knows for {name} (it has: {tags})")
    return Path(pretrained) if pretrained else None


def _load(clip: nn.Module, file: Path) -> None:
    """Load what open_clip loads, in all layouts that it converts, but only by `read_state`, and only if all fits."""
    content = read_state(file)
    state = content.get("state_dict", content)  # training checkpoints of open_clip
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(f"{file} holds no state dict of a CLIP; give a checkpoint or weights of open_clip or OpenAI")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        state = convert_state_dict(clip, {key: value for key, value in state.items() if key not in NO_WEIGHTS})
    except Exception as error:  # it takes names for those of a model, and that for what it builds
        raise InputError(
            f"{file} does not fit this CLIP ({first_line(error)}); it is of another architecture"
        ) from error
    if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):  # of one entry, or a number
        own = getattr(clip, key, None)
        if key in state and isinstance(own, Tensor) and own.numel() == state[key].numel():
            state[key] = state[key].reshape(own.shape)
    with contextlib.suppress(AssertionError, RuntimeError):  # of another width, which the next line says
        resize_pos_embed(state, clip)
        resize_text_pos_embed(state, clip)
    check_and_load(clip, state, file)


def read_config(folder: Path | None, model: dict[str, Any], clip: nn.Module) -> tuple[dict[str, Any], list[str] | None]:
    """The contents of `open_clip_config.json`, and the merges of a reduced tokenizer where there is one."""
    if folder is None:
        # both may come with the weights, not with the name
        model["quick_gelu"] = any(isinstance(part, QuickGELU) for part in clip.modules())
        preprocess = {key: clip.visual.preprocess_cfg[key] for key in ("mean", "std")}  # type: ignore[union-attr, index]
        return {"model_cfg": model, "preprocess_cfg": preprocess}, None
    stored = read_json(folder / CONFIG)
    config = {"model_cfg": model, **{key: stored[key] for key in ("preprocess_cfg",) if key in stored}}
    file = folder / MERGES
    return config, read_gzip(file).splitlines()[1:] if file.is_file() else None


def architecture_of(config: dict[str, Any], merges: list[str] | None, tokenizer: Any, clip: nn.Module) -> Architecture:
    """What rebuilds a CLIP without its weights, a hub or its folder."""
    parts = {"tokenizer": tokenizer_files(tokenizer), "text_tower": text_tower(clip)}
    return {"config": config, "merges": merges, **{name: part for name, part in parts.items() if part is not None}}


def check_clip_target(folder: Path) -> None:
    """Refuse a folder that does not hold an earlier CLIP of ours, see `check_target`."""
    check_target(folder, CONFIG, json.dumps(WRITTEN_HERE)[1:-1])


def write_architecture(folder: Path, architecture: Architecture) -> None:
    """Write it as a folder that open_clip reads.

    Raises:
        InputError: it would write what no tokenizer is made of; nothing is written then.
    """
    files: dict[str, str] = architecture.get("tokenizer", {})
    if others := [name for name in files if not is_tokenizer_file(name)]:
        raise InputError(
            f"a tokenizer of CLIP comes with the file {others[0]!r}, which is not {', '.join(SUFFIXES)}; take it out"
        )
    _write_json(folder / CONFIG, {**architecture["config"], **WRITTEN_HERE})
    merges = architecture["merges"]
    if merges is not None:  # open_clip's format: a first line that is skipped, then a merge a line
        (folder / MERGES).write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges]).encode(), mtime=0))
    if "text_tower" in architecture:
        _write_json(folder / TEXT_TOWER, architecture["text_tower"])
    for name, content in files.items():
        (folder / name).write_bytes(content.encode("latin-1"))


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
