"""Training steps on a GPU: bf16 against fp32, and two ranks against one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from ovseg.tasks import AdapterTask
from tests import tiny
from tests.tasks.data import Batches
from tests.tasks.test_adapter import ALL_TEXTS, QUIET, Gradients, batch, gradients, halves
from tests.tasks.test_proposals import VOCABULARY
from tests.tasks.test_proposals import batch as scenes
from tests.tasks.test_proposals import task as proposals

pytestmark = pytest.mark.gpu


def of_step(task: L.LightningModule, data: Batches, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Return the gradients of one step on the GPU, in the first process."""
    folder.mkdir()
    torch.manual_seed(0)  # for the points of the mask loss
    steps: dict[str, Any] = {"accelerator": "gpu", "max_steps": 1, "limit_val_batches": 0, **QUIET, **options}
    L.Trainer(callbacks=[Gradients(folder)], **steps).fit(task.train(), datamodule=data)
    result: dict[str, torch.Tensor] = torch.load(folder / "0-0.pt", map_location="cpu")
    return result


def same_direction(half: dict[str, torch.Tensor], full: dict[str, torch.Tensor], least: float) -> None:
    assert half.keys() == full.keys()
    one, other = (torch.cat([grads[name].flatten().double() for name in sorted(full)]) for grads in (half, full))
    assert torch.isfinite(one).all() and not torch.equal(one, other)
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > least


PRECISIONS = ("bf16-mixed", "32-true")


def test_adapter_gradients_in_bf16_agree_with_fp32(real_gpu: torch.device, tmp_path: Path) -> None:
    both = [
        of_step(
            AdapterTask(tiny.clip(tmp_path / "clip", 2), "both"),
            Batches([batch()]),
            tmp_path / precision,
            devices=1,
            precision=precision,
        )
        for precision in PRECISIONS
    ]
    same_direction(*both, least=0.99)


def test_proposal_gradients_in_bf16_agree_with_fp32(real_gpu: torch.device, tmp_path: Path) -> None:
    data = Batches([scenes()], VOCABULARY)
    both = [
        of_step(proposals(tmp_path / "clip"), data, tmp_path / precision, devices=1, precision=precision)
        for precision in PRECISIONS
    ]
    same_direction(*both, least=0.8)  # in bf16 a query may match another segment; 0.89 in bf16 on a CPU


def test_two_ranks_over_nccl_compute_the_gradients_of_one(real_gpu: torch.device, tmp_path: Path) -> None:
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"{count} GPU here; NCCL needs two")
    expected = gradients(AdapterTask(tiny.clip(tmp_path / "clip", 2), "both"), [batch()], tmp_path / "one")
    two = AdapterTask(tiny.clip(tmp_path / "clip", 2), "both")
    result = of_step(two, Batches(halves(), texts=ALL_TEXTS), tmp_path / "two", devices=2, strategy="ddp_spawn")
    assert result.keys() == expected.keys()
    for name, value in expected.items():  # other processes, whose convolutions may use TF32
        torch.testing.assert_close(result[name], value, rtol=1e-2, atol=1e-3 * float(value.abs().max()) + 1e-7)
