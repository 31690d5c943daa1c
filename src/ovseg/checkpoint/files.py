"""Files of weights: ours, and any state dict, loaded with errors that can be read."""

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
"""JSON-like values that rebuild a network without its weights."""

ARCHITECTURES = "architectures"
"""Entry of a training checkpoint: name of a network in the task → its `Architecture`, so that a checkpoint is enough to
rebuild the network, wherever it is moved. Nothing in it overrides a setting of a run."""


def toy_weights(part: str = "") -> Path:
    """The folder of the weights that the package ships, or of one part of them."""
    return Path(str(files("ovseg") / "weights" / "toy" / part))


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Hold back what a library logs below errors while a network is built."""
    target = logging.getLogger() if logger == "open_clip" else logging.getLogger(logger)  # open_clip logs to the root
    level = target.level
    target.setLevel(logging.CRITICAL)  # what fails is raised, and said once
    try:
        yield
    finally:
        target.setLevel(level)


@contextmanager
def hub_or_cache(name: str) -> Iterator[None]:
    """Make the hub's libraries answer from their cache while the hub is out of reach, if `name` is not on disk.

    Left alone they try again for half a minute for every file.
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
        return True  # it said no, but it is there
    except OSError:
        return False
    return True


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, a bare state dict or the weights of a TorchScript archive, without executing anything in it.

    Raises:
        InputError: the file is missing, cut short, or holds objects other than tensors and plain values.
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
            if file.read(1) not in (b"P", pickle.PROTO):  # an archive of today, or a file of torch before 1.6
                raise ValueError("its content is of another kind")
        # mapped, not read: a checkpoint may hold an optimizer three times the size of the weights asked for
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        _check_tensors(content)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds Python objects beside its weights, which are never executed here; save its state dict alone"
        ) from error
    except Exception as error:  # torch and safetensors raise a dozen kinds for a damaged file
        raise InputError(
            f"{path} is not a readable weights file ({first_line(error)}); fetch or save it again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def _check_tensors(content: Any) -> None:
    """Refuse tensors that cannot be weights, among them those that are larger than what is stored of them."""
    parts = [content, *(content.get(name) for name in ("state_dict", "model"))] if isinstance(content, dict) else []
    for key, value in (entry for part in parts if isinstance(part, dict) for entry in part.items()):
        if not isinstance(value, Tensor):
            continue
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_nested or value.is_quantized or value.is_complex():
            raise ValueError(f"{key!r} is no plain tensor of real numbers")
        # a stride of 0 would make a large tensor of a number
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{key!r}, of shape {tuple(value.shape)}, has fewer values than that")


def read_architecture(path: str | Path, name: str) -> Architecture:
    """The architecture of one network of a training checkpoint.

    Raises:
        InputError: the checkpoint has no such network.
    """
    architectures = read_state(path).get(ARCHITECTURES)
    if not isinstance(architectures, dict) or not isinstance(architectures.get(name), dict):
        known = (", ".join(map(str, architectures)) if isinstance(architectures, dict) else "") or "none of ours"
        raise InputError(
            f"{path} holds no network called {name!r} (it has: {known}); give the checkpoint of another stage"
        )
    architecture: Architecture = architectures[name]
    return architecture


def load_weights(module: nn.Module, path: str | Path, prefix: str = "") -> None:
    """Load weights from a checkpoint, a state dict or safetensors; every key must be used and every weight given.

    Args:
        prefix: of the keys in the file that belong to `module`; others are left alone.

    Raises:
        InputError: names the first keys that are missing, unexpected or of another shape. `module` is unchanged.
    """
    content = read_state(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path} holds no state dict; fetch or save it again")
    check_and_load(module, under(state, prefix), path)


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state dict whose keys begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def check_and_load(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """`load_state_dict` that changes nothing unless all fits, and says in one sentence what does not."""
    own = module.state_dict()
    problems = {
        "missing": [key for key in own if key not in weights],
        "unexpected": [key for key in weights if key not in own],
        "of another shape": [
            key for key in own if key in weights and getattr(weights[key], "shape", None) != own[key].shape
        ],
    }
    if any(problems.values()):
        report = "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for kind, keys in problems.items()
            if keys
        )
        raise InputError(f"{source} does not fit this {type(module).__name__}: {report}; it is of another architecture")
    module.load_state_dict(weights)


def check_target(folder: str | Path, file: str, mark: str = "") -> None:
    """Refuse to write a model into a folder that holds anything else, before anything is written.

    Args:
        file: name of a file that every model of this kind has.
        mark: text in that file, where other projects have files of that name.

    Raises:
        InputError: it is not empty, and holds no earlier model of this kind.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder to write")
    ours = (folder / file).is_file() and mark in (folder / file).read_text(encoding="utf-8", errors="replace")
    if not ours and any(folder.iterdir()):
        raise InputError(f"{folder} holds files that were not written here; give a new folder or an empty one")


def first_line(error: Exception) -> str:
    """What an error of a library says, cut to one line; its kind where it says nothing."""
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 200, placeholder=" …")
