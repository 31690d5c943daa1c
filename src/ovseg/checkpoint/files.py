"""Read weight files, and load them into modules with readable errors."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor, nn

from ovseg.checkpoint.torchscript import is_torchscript, read_torchscript
from ovseg.limits import check_archive
from ovseg.structures import InputError

Architecture = dict[str, Any]
"""JSON-like values from which a network is rebuilt, without its weights."""

ARCHITECTURES = "architectures"
"""Entry of a training checkpoint that maps the name of a network in the task to its `Architecture`, so that the network
can be rebuilt from the checkpoint alone. It never overrides a setting of a run."""


def toy_weights(part: str = "") -> Path:
    """Return the folder of the packaged toy weights, or of one part of them."""
    return Path(str(files("ovseg") / "weights" / "toy" / part))


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Silence a library's log, except critical messages, while a network is built."""
    target = logging.getLogger(None if logger == "open_clip" else logger)  # open_clip uses the root logger
    level = target.level
    target.setLevel(logging.CRITICAL)  # errors are raised, and should be reported once
    try:
        yield
    finally:
        target.setLevel(level)


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Make the hub's libraries use their cache while the hub is unreachable, unless `name` is a local path.

    Without this they retry every file for half a minute.
    """
    if Path(name).exists() or constants.HF_HUB_OFFLINE or _hub_answers():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _hub_answers() -> bool:
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except HTTPError:
        return True  # an error response is still a response
    except OSError:
        return False
    return True


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, a bare state dict or the weights of a TorchScript archive, without executing code from it.

    Tensors are on the CPU.

    Raises:
        InputError: the file is missing or damaged, or contains objects other than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights not found: {path}; check the path, or train them with `ovseg fit`")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if zipfile.is_zipfile(path):
            check_archive(path)
        if is_torchscript(path):
            return read_torchscript(path)
        with path.open("rb") as file:
            if file.read(1) not in (b"P", pickle.PROTO):  # a zip archive, or the format before torch 1.6
                raise ValueError("unknown file format")
        # memory-mapped, because the optimizer's state in a checkpoint can be three times as large as the weights
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        _check_tensors(content)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} contains Python objects beside its weights, which are never executed here; save only the state "
            "dict"
        ) from error
    except Exception as error:  # torch and safetensors raise many different errors for damaged files
        raise InputError(
            f"{path} is not a readable weights file ({first_line(error)}); download or save it again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} contains a {type(content).__name__}, not a state dict; save the state dict alone")
    return content


def _check_tensors(content: Any) -> None:
    """Refuse tensors that cannot be weights, such as those larger than their storage."""
    parts = [content, *(content.get(name) for name in ("state_dict", "model"))] if isinstance(content, dict) else []
    for key, value in (entry for part in parts if isinstance(part, dict) for entry in part.items()):
        if not isinstance(value, Tensor):
            continue
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_nested or value.is_quantized or value.is_complex():
            raise ValueError(f"{key!r} is not a plain tensor of real numbers")
        # a stride of 0 turns a single number into a tensor of any size
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{key!r} has shape {tuple(value.shape)}, but fewer values are stored")


def read_architecture(path: str | Path, name: str) -> Architecture:
    """Read the architecture of one network in a training checkpoint.

    Args:
        name: name of the network in the task, such as `clip`.

    Raises:
        InputError: the checkpoint has no such network.
    """
    architectures = read_state(path).get(ARCHITECTURES)
    if not isinstance(architectures, dict) or not isinstance(architectures.get(name), dict):
        known = (", ".join(map(str, architectures)) if isinstance(architectures, dict) else "") or "none from ovseg"
        raise InputError(f"{path} contains no network {name!r} (it has: {known}); give the checkpoint of another stage")
    architecture: Architecture = architectures[name]
    return architecture


def load_weights(module: nn.Module, path: str | Path, prefix: str = "") -> None:
    """Load weights from a checkpoint, a state dict or a safetensors file; the keys must match exactly.

    Args:
        prefix: load only keys with this prefix, which is removed.

    Raises:
        InputError: the file cannot be read, or keys are missing, unexpected or of another shape. `module` is unchanged.
    """
    content = read_state(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path} contains no state dict; download or save it again")
    check_and_load(module, under(state, prefix), path)


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries of a state dict whose keys begin with `prefix`, with the prefix removed."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def check_and_load(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict if every key and shape matches, see `check_fit`; otherwise, `module` is unchanged."""
    check_fit(module, weights, source)
    module.load_state_dict(weights)


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that every key and shape of a state dict matches those of a module.

    Args:
        source: where the weights come from, for the error.

    Raises:
        InputError: names the first keys that are missing, unexpected or of another shape.
    """
    current = module.state_dict()
    problems = {
        "missing": [key for key in current if key not in weights],
        "unexpected": [key for key in weights if key not in current],
        "of another shape": [
            key for key in current if key in weights and getattr(weights[key], "shape", None) != current[key].shape
        ],
    }
    if any(problems.values()):
        report = "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for kind, keys in problems.items()
            if keys
        )
        raise InputError(
            f"{source} does not fit this {type(module).__name__}: {report}; give weights of the same architecture"
        )


def check_target(folder: str | Path, file: str, mark: str = "") -> None:
    """Check that a model may be written into a folder: it is new, empty or contains an earlier model of this kind.

    Args:
        file: name of a file that every model of this kind has.
        mark: text that this file must contain, if other projects use the same file name.

    Raises:
        InputError: the folder contains anything else.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder to write")
    ours = (folder / file).is_file() and mark in (folder / file).read_text(encoding="utf-8", errors="replace")
    if not ours and any(folder.iterdir()):
        raise InputError(f"{folder} contains files that ovseg did not write; give a new or empty folder")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, shortened to 200 characters, or the error's type if it is empty."""
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 200, placeholder=" …")
