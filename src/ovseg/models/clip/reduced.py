"""Copies of an image tower with weights of lower precision, for inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ovseg.models.clip.mask_prompt import MaskPromptedViT


class ReducedTower:
    """A copy of an image tower in another dtype, made at first use and again whenever the weights have changed.

    It is no module, so the copy has no place in a state dict, and copies and pickles of its owner start without one.
    """

    def __init__(self) -> None:
        self._tower: MaskPromptedViT | None = None
        self._state: tuple[Any, ...] = ()

    def of(self, visual: MaskPromptedViT, dtype: torch.dtype) -> MaskPromptedViT:
        """Return the copy of `visual` in `dtype`, in evaluation mode and without gradients."""
        compiled = visual._compiled_call_impl is not None
        tensors = (*visual.parameters(), *visual.buffers())
        state = (dtype, compiled, *((tensor.data_ptr(), _version(tensor)) for tensor in tensors))
        if self._tower is None or state != self._state:
            self._tower = None  # frees the old copy before the new one is made
            tower = copy.deepcopy(visual).to(dtype).eval().requires_grad_(False)
            if compiled:
                tower.compile()
            self._tower, self._state = tower, state
        return self._tower

    def __deepcopy__(self, memo: Any) -> ReducedTower:
        return ReducedTower()

    def __reduce__(self) -> tuple[type[ReducedTower], tuple[()]]:
        return ReducedTower, ()


def _version(tensor: Tensor) -> int:
    """Return a number that in-place changes increase; tensors made in inference mode do not count them."""
    return 0 if tensor.is_inference() else tensor._version
