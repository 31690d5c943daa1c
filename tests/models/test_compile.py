"""The compiled image tower gives the same features for any number of regions, with few compilations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from ovseg.cli.trainer import OVSegTrainer
from ovseg.models import CLIPAdapter
from ovseg.structures import RegionTextBatch
from ovseg.tasks import AdapterTask
from tests import tiny
from tests.tasks.data import Batches, Losses

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


def train(clip: CLIPAdapter, compile: bool) -> list[float]:
    """Return the losses of three steps of adapter training under the Trainer of the command line."""
    task, losses = AdapterTask(clip, "both", lr=1e-3, prompt_lr=0.1, warmup_steps=1), Losses()
    batch = RegionTextBatch(*regions(4), ["cat", "sofa", "sky", "dog"], torch.arange(4))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    run = OVSegTrainer(compile=compile, accelerator="cpu", max_steps=3, max_epochs=-1, callbacks=[losses], **quiet)
    run.fit(task.train(), Batches([batch]))
    return losses.values


def test_the_trainer_compiles_the_tower_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(CLIPAdapter, "compile_visual", lambda self: self.visual.compile(backend=counter))
    plain, clip = (tiny.clip(tmp_path / "clip", prompt_depth=2) for _ in range(2))
    losses = train(plain, compile=False)
    assert counter.frame_count == 0
    assert train(clip, compile=True) == pytest.approx(losses) and losses[-1] < losses[0]
    assert counter.frame_count > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="inductor needs a C compiler on a CPU")
def test_inductor_gives_the_same_features(tmp_path: Path) -> None:
    plain, clip = (tiny.clip(tmp_path / "clip", prompt_depth=2) for _ in range(2))
    clip.compile_visual()
    check(clip, plain)
