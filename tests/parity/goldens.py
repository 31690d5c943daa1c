"""Golden arrays: what the released implementation computed from random weights (see README.md beside them)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "goldens"
DEVIATIONS: dict[str, tuple[float, int]] = {}  # part → largest |Δ| from the golden numbers, number of values compared


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def details(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def state(name: str) -> dict[str, Tensor]:
    """Load weights, which are stored as float16 without loss."""
    return {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in load_file(FOLDER / f"{name}.safetensors").items()
    }


def unpack(packed: Tensor, *shape: int) -> Tensor:
    """Convert bits written by `numpy.packbits` to a bool tensor."""
    bits = np.unpackbits(packed.numpy(), axis=-1)
    return torch.from_numpy(bits).bool().reshape(*shape)


def close(part: str, actual: Tensor, expected: Tensor, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    """Compare `actual` with golden numbers and record the largest deviation for the summary."""
    assert actual.shape == expected.shape
    record(part, float((actual - expected).abs().max()), expected.numel())
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def record(part: str, deviation: float, count: int) -> None:
    """Record the largest deviation of a part and the number of values compared."""
    largest, before = DEVIATIONS.get(part, (0.0, 0))
    DEVIATIONS[part] = (max(largest, deviation), before + count)
