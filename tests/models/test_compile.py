"""The compiled image tower gives the same features for any number of regions, with few compilations."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from ovseg.models import CLIPAdapter
from ovseg.tasks import MiningTask, SegmentationTask, SweepTask
from tests import tiny

COUNTS = (5, 7, 12, 30, 9)


def regions(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    masks = torch.rand(count, 32, 32, generator=generator) > 0.5
    masks[:, 16:] = False
    return torch.rand(count, 3, 32, 32, generator=generator), masks


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@torch.no_grad()
def check(clip: CLIPAdapter, plain: CLIPAdapter) -> None:
    for count in COUNTS:
        torch.testing.assert_close(clip.encode_regions(*regions(count)), plain.encode_regions(*regions(count)))


def test_two_compilations_serve_any_number_of_regions_and_keep_names(tmp_path: Path) -> None:
    plain, clip = (tiny.clip(tmp_path / "clip", prompt_depth=2) for _ in range(2))
    counter = CompileCounter()  # runs the graphs unchanged
    clip.visual.compile(backend=counter, fullgraph=True)  # compiles the tower as one graph
    check(clip, plain)
    assert counter.frame_count == 2  # one for the first number, one for all others
    assert list(clip.state_dict()) == list(plain.state_dict())
    clip.save_pretrained(tmp_path / "saved")
    again = CLIPAdapter(str(tmp_path / "saved")).eval()
    check(again, plain)


def test_tasks_compile_the_tower_on_demand(tmp_path: Path) -> None:
    tiny.segmenter(tmp_path / "clip").save_pretrained(tmp_path / "saved")
    for compiled in (False, True):
        for clip in (
            SegmentationTask(str(tmp_path / "saved"), compile=compiled).segmenter.clip,
            SweepTask(str(tmp_path / "saved"), [0.5], [0.5], compile=compiled).segmenter.clip,
            MiningTask(tiny.clip(tmp_path / "plain"), compile=compiled).clip,
        ):
            assert (clip.visual._compiled_call_impl is not None) == compiled  # torch calls it instead of `forward`


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="inductor needs a C compiler on a CPU")
def test_inductor_gives_the_same_features(tmp_path: Path) -> None:
    plain, clip = (tiny.clip(tmp_path / "clip", prompt_depth=2) for _ in range(2))
    clip.compile_visual()
    check(clip, plain)
