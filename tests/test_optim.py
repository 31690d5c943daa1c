"""Parameter groups and schedules against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ovseg.optim import WarmupCosineLR, WarmupPolyLR, param_groups


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4))
        self.queries = nn.Embedding(2, 4)
        self.scale = nn.Parameter(torch.zeros(()))
        self.class_embedding = nn.Parameter(torch.zeros(4))
        self.tied = self.head[0].weight
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def settings(network: Network, **options: object) -> dict[str, tuple[float, float]]:
    """Name of every parameter in a group → (lr, weight decay)."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = param_groups(network, 1.0, 0.1, **options)  # type: ignore[arg-type]
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    return {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_groups_as_for_proposals() -> None:
    assert settings(Network(), lr_factors={"backbone": 0.5, "backbone.0": 0.25}) == {
        "backbone.0.weight": (0.25, 0.1),  # the longest prefix counts
        "backbone.0.bias": (0.25, 0.1),
        "backbone.1.weight": (0.5, 0.0),
        "backbone.1.bias": (0.5, 0.0),
        "tied": (1.0, 0.1),  # and not again as head.0.weight
        "head.0.bias": (1.0, 0.1),
        "head.1.weight": (1.0, 0.0),
        "head.1.bias": (1.0, 0.0),
        "head.2.weight": (1.0, 0.0),
        "head.2.bias": (1.0, 0.0),
        "queries.weight": (1.0, 0.0),
        "scale": (1.0, 0.0),
        "class_embedding": (1.0, 0.1),
    }


def test_groups_as_for_clip_decay_matrices_alone() -> None:
    decayed = {name for name, (_, decay) in settings(Network(), decay_biases=False).items() if decay}
    assert decayed == {"backbone.0.weight", "tied"}


def rates(schedule: type[WarmupPolyLR] | type[WarmupCosineLR], steps: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(optimizer, **options)  # type: ignore[arg-type]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_poly_by_hand() -> None:
    found = rates(WarmupPolyLR, 101, total=100, warmup=10)
    assert found[0] == pytest.approx(2e-6)
    assert found[5] == pytest.approx(2 * (1e-6 + (1 - 1e-6) * 0.5) * 0.95**0.9)
    assert found[10] == pytest.approx(2 * 0.9**0.9)
    assert found[50] == pytest.approx(2 * 0.5**0.9)
    assert found[100] == 0


def test_cosine_by_hand() -> None:
    found = rates(WarmupCosineLR, 13, total=12, warmup=4)
    assert found[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert found[6] == pytest.approx(1 + math.cos(math.pi / 4))
    assert found[8] == pytest.approx(1.0)
    assert found[12] == pytest.approx(0.0)


@pytest.mark.parametrize("schedule", [WarmupPolyLR, WarmupCosineLR])
def test_a_run_of_one_step_has_a_rate(schedule: type[WarmupPolyLR] | type[WarmupCosineLR]) -> None:
    assert rates(schedule, 2, total=1, warmup=0) == pytest.approx([2.0, 0.0])
