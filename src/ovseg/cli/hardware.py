"""Which accelerator and which precision a run uses unless the user chooses."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.plugins import Precision

HALF_VERBS = ("test", "sweep", "segment", "mine")  # half precision suffices for these on a GPU


def set_hardware_defaults(trainer: MutableMapping[str, Any], verb: str) -> None:
    """Set accelerator and precision in the Trainer's arguments where the user has not chosen them.

    Args:
        trainer: arguments of the Trainer; changed in place.
        verb: the verb that runs; those in `HALF_VERBS` run in half precision on a GPU.
    """
    if trainer["accelerator"] == "auto" and MPSAccelerator.is_available():
        trainer["accelerator"] = "cpu"  # Apple's GPUs lack the double precision that boxes and metrics need
    if on_gpu(trainer["accelerator"]):
        torch.set_float32_matmul_precision("high")  # TF32; on a CPU it changes numbers and saves no time
        if verb in HALF_VERBS and not has_precision(trainer):
            trainer["precision"] = half_precision()


def on_gpu(accelerator: Any) -> bool:
    """Return whether the Trainer will run on NVIDIA's or AMD's GPUs."""
    if accelerator == "auto":
        return CUDAAccelerator.is_available()
    return accelerator in ("cuda", "gpu") or isinstance(accelerator, CUDAAccelerator)


def has_precision(trainer: Mapping[str, Any]) -> bool:
    """Return whether a flag, config or plugin sets the precision."""
    plugins = trainer["plugins"] or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    return trainer["precision"] is not None or any(isinstance(plugin, Precision) for plugin in plugins)


def half_precision() -> Literal["bf16-mixed", "16-mixed"]:
    """Return bf16, which has the range of fp32, where the GPU supports it natively, and fp16 elsewhere."""
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
