"""Load open_clip models by name, from the hub and from files, without executing anything in them."""

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
from ovseg.models.clip.tokenizer import MERGES, is_tokenizer_file, tokenizer_files
from ovseg.structures import InputError

WEIGHTS, PROMPT = "open_clip_model.safetensors", "mask_prompt.safetensors"  # open_clip looks for the first

WRITTEN_HERE = {"written_by": "ovseg"}
"""Config entry of folders saved by ovseg, which may be overwritten; other projects use the same file names."""

WEIGHT_FILES = (
    WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Possible names of the weights file in a folder, in order of precedence, as in open_clip."""

NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")
"""Constants stored among the weights in OpenAI's files and in old files of open_clip."""


@contextmanager
def resolve_folder(model: str) -> Iterator[Path | None]:
    """Resolve `model` to a folder.

    Checkpoints are unpacked to a temporary folder without weights; plain model names yield None.
    """
    folder = toy_weights("clip") if model == "toy" else Path(model.removeprefix("local-dir:"))
    if folder.suffix == ".ckpt":
        with tempfile.TemporaryDirectory() as temporary:  # open_clip reads configs from files only
            try:
                write_architecture(Path(temporary), read_architecture(folder, "clip"))
            except InputError:
                raise
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{folder} does not describe a CLIP ({first_line(error)}); use a checkpoint of adapter training"
                ) from error
            yield Path(temporary)
    elif folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise InputError(f"{folder} is not a CLIP folder: it has no {CONFIG}; create one with `ovseg bundle`")
        yield folder
    else:
        yield None


def hub_name(folder: Path | None, name: str, pretrained: str | None) -> str:
    """Return the name that building this model downloads from a hub, or `.` if it downloads nothing."""
    if folder is not None:
        return "."
    if name.startswith("hf-hub:"):
        return name
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    return pretrained or text.get("hf_model_name") or text.get("hf_tokenizer_name") or "."


def create_clip(folder: Path | None, name: str, pretrained: str | None) -> tuple[nn.Module, bool, dict[str, Any]]:
    """Build a CLIP from a folder, an open_clip model name or an `hf-hub:` name.

    Returns:
        The model; whether it has trained weights (random ones otherwise); its `model_cfg`.

    Raises:
        InputError: the model is unknown, or its weights are missing, unreadable or of another architecture.
    """
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    try:
        with quiet("open_clip"):  # it warns about random weights, but the weights are loaded below
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
            file = _weights_in(folder) if folder is not None else _find_weights(name, pretrained, tag)
    except InputError:
        raise
    except Exception as error:  # torch, timm, the hub and open_clip raise many kinds
        subject = f"CLIP {folder or name}" + (f" with weights {pretrained!r}" if pretrained else "")
        raise InputError(
            f"{subject} could not be loaded ({first_line(error)}); if this machine is offline, download the weights "
            "elsewhere and set `pretrained` to their file, or `model` to a folder with open_clip_config.json"
        ) from error
    if file is not None:
        _load(clip, file)
    return clip, file is not None, model


def _weights_in(folder: Path) -> Path | None:
    """Return the weights file of a folder, None if it has none."""
    files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    others = [file for file in sorted(folder.glob("*.*")) if file.suffix in {".safetensors", ".bin", ".pt", ".pth"}]
    if not files and (unknown := [file.name for file in others if file.name != PROMPT]):
        raise InputError(
            f"{folder} has no {WEIGHTS} but has {unknown[0]}; if that file holds the weights of CLIP, rename it"
        )
    return files[0] if files else None


def _find_weights(name: str, pretrained: str | None, tag: dict[str, Any]) -> Path | None:
    """Return the weights file of a named model, downloaded if necessary; None for random weights."""
    if name.startswith("hf-hub:"):
        return Path(download_pretrained_from_hf(name.removeprefix("hf-hub:")))
    if tag:
        return Path(download_pretrained(tag))
    if pretrained and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(
            f"{pretrained!r} is neither a file nor an open_clip tag for {name}; set a file or one of its tags: {tags}"
        )
    return Path(pretrained) if pretrained else None


def _load(clip: nn.Module, file: Path) -> None:
    """Load weights in any layout that open_clip can convert. Files are read by `read_state` only; all keys must fit."""
    content = read_state(file)
    state = content.get("state_dict", content)  # open_clip's training checkpoints nest it
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(f"{file} holds no state dict of a CLIP; use a checkpoint or weights of open_clip or OpenAI")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        state = convert_state_dict(clip, {key: value for key, value in state.items() if key not in NO_WEIGHTS})
    except Exception as error:  # it guesses the model from the keys, and fails in many ways if the guess is wrong
        raise InputError(
            f"{file} does not fit this CLIP ({first_line(error)}); choose the model of its architecture"
        ) from error
    if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):  # stored as a scalar or as a vector of one entry
        parameter = getattr(clip, key, None)
        if key in state and isinstance(parameter, Tensor) and parameter.numel() == state[key].numel():
            state[key] = state[key].reshape(parameter.shape)
    with contextlib.suppress(AssertionError, RuntimeError):  # `check_and_load` reports a wrong width properly
        resize_pos_embed(state, clip)
        resize_text_pos_embed(state, clip)
    check_and_load(clip, state, file)


def read_config(folder: Path | None, model: dict[str, Any], clip: nn.Module) -> tuple[dict[str, Any], list[str] | None]:
    """Return the contents of `open_clip_config.json`, and the merges of a reduced tokenizer (None without one)."""
    if folder is None:
        # both may depend on the weights rather than on the model's name
        model["quick_gelu"] = any(isinstance(part, QuickGELU) for part in clip.modules())
        preprocess = {key: clip.visual.preprocess_cfg[key] for key in ("mean", "std")}  # type: ignore[union-attr, index]
        return {"model_cfg": model, "preprocess_cfg": preprocess}, None
    stored = read_json(folder / CONFIG)
    config = {"model_cfg": model, **{key: stored[key] for key in ("preprocess_cfg",) if key in stored}}
    file = folder / MERGES
    return config, read_gzip(file).splitlines()[1:] if file.is_file() else None


def architecture_of(config: dict[str, Any], merges: list[str] | None, tokenizer: Any, clip: nn.Module) -> Architecture:
    """Collect what rebuilds a CLIP, except for its weights, without a hub or its original folder."""
    parts = {"tokenizer": tokenizer_files(tokenizer), "text_tower": text_tower(clip)}
    return {"config": config, "merges": merges, **{name: part for name, part in parts.items() if part is not None}}


def check_clip_target(folder: Path) -> None:
    """Refuse to write into a folder that holds anything other than a CLIP saved by ovseg, see `check_target`."""
    check_target(folder, CONFIG, json.dumps(WRITTEN_HERE)[1:-1])


def write_architecture(folder: Path, architecture: Architecture) -> None:
    """Write an architecture as a folder that open_clip can read.

    Raises:
        InputError: the tokenizer has files that no tokenizer needs; nothing is written.
    """
    files: dict[str, str] = architecture.get("tokenizer", {})
    if others := [name for name in files if not is_tokenizer_file(name)]:
        raise InputError(f"the tokenizer of this CLIP has the file {others[0]!r}, which no tokenizer needs; remove it")
    _write_json(folder / CONFIG, {**architecture["config"], **WRITTEN_HERE})
    merges = architecture["merges"]
    if merges is not None:  # open_clip skips the first line and expects one merge on each of the others
        (folder / MERGES).write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges]).encode(), mtime=0))
    if "text_tower" in architecture:
        _write_json(folder / TEXT_TOWER, architecture["text_tower"])
    for name, content in files.items():
        (folder / name).write_bytes(content.encode("latin-1"))


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
