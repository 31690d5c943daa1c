"""Read the weights of a TorchScript archive, such as OpenAI's CLIP files, without running its code.

`torch.jit.load` is unsafe for untrusted files: it runs the archive's own code (`__setstate__`), and TorchScript can
write files. The weights are in a pickle of modules, which is read here with an inert class in place of every module.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


def is_torchscript(path: Path) -> bool:
    """Return whether the file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the state dict of the scripted module: its parameters and buffers by name, on the CPU.

    Raises:
        UnpicklingError: the archive contains anything but modules of tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        content = _Reader(archive).load()
    if not isinstance(content, _Module):
        raise pickle.UnpicklingError("it contains no module")
    return dict(_state(content))


class _Module:
    """The attributes of a scripted module, without its methods."""

    state_names: frozenset[str]  # names of its parameters and buffers
    attributes: dict[str, Any]

    def __setstate__(self, attributes: Any) -> None:
        if not isinstance(attributes, dict):
            raise pickle.UnpicklingError("a module needs its own code to restore its state")
        self.attributes = attributes


class _Reader(pickle.Unpickler):
    """Unpickle modules, tensors and typed values, and refuse everything else."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._root = archive.namelist()[0].split("/")[0]
        self._storages: dict[str, Tensor] = {}
        super().__init__(BytesIO(archive.read(f"{self._root}/data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for an allowed global.

        Raises:
            UnpicklingError: the global is not allowed.
        """
        if module.split(".")[0] == "__torch__":
            return type(name, (_Module,), {"state_names": self._state_names(module, name)})
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch.jit._pickle":  # called with a list or dict and the name of its type
            return _value
        if (module, name) == ("collections", "OrderedDict"):  # the hooks of a tensor, always empty
            return OrderedDict
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weights file")

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a tensor's storage as a flat tensor; tensors with the same storage share it."""
        _, dtype, key, *_ = pid
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]

    def _state_names(self, module: str, name: str) -> frozenset[str]:
        """Read the names of a module's parameters and buffers from its code, without running it.

        Other attributes can be tensors as well, such as OpenAI's `attn_mask`.
        """
        code = self._archive.read(f"{self._root}/code/{module.replace('.', '/')}.py").decode()
        body = code.partition(f"class {name}(Module):\n")[2].partition("\nclass ")[0]
        lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", body, flags=re.MULTILINE)
        return frozenset(re.findall(r'"(\w+)"', "".join(lists)))


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) > storage.numel():  # a stride of 0 turns a single number into a tensor of any size
        raise ValueError(f"a tensor of shape {size} has only {storage.numel():,} values stored")
    return storage.as_strided(size, stride, offset)


def _value(value: Any, *_: Any) -> Any:
    return value


def _state(module: _Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _state(value, f"{prefix}{name}.")
        elif name in module.state_names:
            yield prefix + name, value
