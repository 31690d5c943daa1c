"""The benchmark of region encoders: its counts of FLOPs, its baseline, and the tables in docs/performance.md."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovseg.models import CLIPAdapter, CropEncoder, SinglePassEncoder
from tests.stages import REPOSITORY


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a file of scripts/benchmarks."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    yield lambda name: import_module(f"benchmarks.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def clip() -> CLIPAdapter:
    return CLIPAdapter("toy").eval()


@torch.no_grad()
def test_the_formula_for_crops_counts_what_torch_counts(part: Any, clip: CLIPAdapter) -> None:
    floors, crops = part("floors"), torch.rand(3, 3, clip.image_size, clip.image_size)
    with sdpa_kernel(SDPBackend.MATH):  # torch does not count fused attention
        counted = floors.counted_flops(lambda: clip.visual(crops))
    assert floors.crop_flops(clip, 3) == counted


@torch.no_grad()
@pytest.mark.parametrize("branch_block", [1, 3])
def test_the_formula_for_a_single_pass_counts_at_most_what_torch_counts(
    part: Any, clip: CLIPAdapter, branch_block: int
) -> None:
    floors, encoder = part("floors"), SinglePassEncoder(clip, 128, branch_block).eval()
    image, masks = torch.rand(3, 128, 192), part("region_parts").draw_masks(8, (128, 192)) > 0.5
    with sdpa_kernel(SDPBackend.MATH):
        counted = floors.counted_flops(lambda: encoder([image], [masks]))
    formula = floors.single_pass_flops(clip, 8, 16 * 24, branch_block)
    assert 0.95 * counted < formula <= counted  # the coverage of masks is not part of the formula


@torch.no_grad()
def test_the_baseline_has_the_features_of_crops(part: Any, clip: CLIPAdapter) -> None:
    parts = part("region_parts")
    image, masks = torch.rand(3, 96, 128), parts.draw_masks(12, (96, 128)) > 0.5
    masks[5] = False
    baseline, crops = (encoder(clip).eval()([image], [masks])[0] for encoder in (parts.PlainCrops, CropEncoder))
    torch.testing.assert_close(baseline.features, crops.features, atol=1e-4, rtol=0)
    assert torch.equal(baseline.valid, crops.valid) and not baseline.valid[5]


def test_the_page_has_the_tables_of_the_last_run() -> None:
    script = runpy.run_path(str(REPOSITORY / "scripts" / "benchmark_table.py"))
    page = script["SPEED_PAGE"].read_text(encoding="utf-8")
    assert script["with_times"](page) == page, "run `python scripts/benchmark_table.py`"
    names = script["tables"](json.loads(script["SPEED"].read_text(encoding="utf-8"))).keys()
    assert names == {"run", "rows", "targets", "mining", "growth"}
    assert all(f"<!-- {name} -->\n" in page for name in names)
