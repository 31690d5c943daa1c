"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def param_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    lr_factors: Mapping[str, float] | None = None,
    decay_biases: bool = True,
) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay.

    Weight decay never applies to norms, embeddings and scalars.

    Args:
        module: the module to train.
        lr: base learning rate.
        weight_decay: weight decay of all other parameters.
        lr_factors: prefix of a parameter's name → factor on `lr`; the longest matching prefix wins.
        decay_biases: apply weight decay to biases and other vectors (the paper does for proposals, not for CLIP).

    Returns:
        Parameter groups for a torch optimizer.
    """
    factors = lr_factors or {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    grouped: set[nn.Parameter] = set()
    for module_name, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in grouped:
                continue
            grouped.add(parameter)
            full_name = f"{module_name}.{name}".lstrip(".")
            prefixes = [prefix for prefix in factors if full_name.startswith(prefix)]
            factor = factors[max(prefixes, key=len)] if prefixes else 1.0
            undecayed = (
                isinstance(part, (*NORMS, nn.Embedding))
                or parameter.ndim == 0
                or name == "relative_position_bias_table"
                or (parameter.ndim == 1 and not decay_biases)
            )
            groups.setdefault((lr * factor, 0.0 if undecayed else weight_decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


class WarmupPolyLR(LambdaLR):
    """Polynomial decay (1 − step / total)^power, multiplied by a linear warm-up from `warmup_factor` to 1.

    Args:
        optimizer: whose learning rates to schedule.
        total: number of optimizer steps until the learning rate is 0.
        warmup: number of optimizer steps of warm-up.
        power: exponent of the decay.
        warmup_factor: factor on the learning rate at step 0.
    """

    def __init__(
        self, optimizer: Optimizer, total: int, warmup: int, power: float = 0.9, warmup_factor: float = 1e-6
    ) -> None:
        def factor(step: int) -> float:
            ramp = warmup_factor + (1 - warmup_factor) * step / warmup if step < warmup else 1.0
            return float(ramp * max(1 - step / total, 0.0) ** power)

        super().__init__(optimizer, factor)


class WarmupCosineLR(LambdaLR):
    """Linear warm-up from 0, followed by cosine decay to 0.

    Args:
        optimizer: whose learning rates to schedule.
        total: number of optimizer steps, warm-up included.
        warmup: number of optimizer steps of warm-up.
    """

    def __init__(self, optimizer: Optimizer, total: int, warmup: int) -> None:
        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1.0)))

        super().__init__(optimizer, factor)
