"""Tests of resuming training data where a checkpoint stopped, and of the sampling order."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset

from ovseg.data.loading import EpochSampler, GroupSampler, ResumableLoader, seeded, train_loader
from ovseg.data.resumable import ResumableDataModule
from ovseg.structures import InputError
from tests.stages import CONF, refusal


class Numbers(Dataset[Tensor]):
    """Each sample is its key and a random number, as augmentation would draw it."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, key: int) -> Tensor:
        with seeded(0, key):
            return torch.stack([torch.tensor(float(key)), torch.rand(())])


GROUPS = torch.tensor([5, 0, 0, 1, 1, 1, 2, 0, 5, 3, 3, 3, 3, 3, 3, 4, 1, 5, 6, 6, 7, 5])


def loader(num_workers: int = 0, groups: Tensor | None = None) -> ResumableLoader:
    return train_loader(Numbers(), 4, 0, num_workers, torch.stack, groups)


def steps(monkeypatch: pytest.MonkeyPatch, groups: Tensor | None, processes: int, accumulated: int) -> list[set[int]]:
    """Return the keys of each optimizer step of an epoch: four keys per step over all processes."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: processes)
    served: list[list[list[int]]] = []  # process → batch → keys
    for rank in range(processes):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        loader = train_loader(Numbers(), 4 // processes // accumulated, 0, 0, torch.stack, groups, accumulated)
        served.append([batch[:, 0].int().tolist() for batch in loader])
    batches = [set(chain(*of_processes)) for of_processes in zip(*served, strict=True)]
    return [set(chain(*batches[first : first + accumulated])) for first in range(0, len(batches), accumulated)]


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["single", "groups"])
@pytest.mark.parametrize(("processes", "accumulated"), [(2, 1), (4, 1), (1, 2), (1, 4), (2, 2)])
def test_a_step_is_the_same_on_any_number_of_devices(
    monkeypatch: pytest.MonkeyPatch, groups: Tensor | None, processes: int, accumulated: int
) -> None:
    expected = steps(monkeypatch, groups, 1, 1)
    assert len(expected) == 5 and all(len(step) == 4 for step in expected)
    assert steps(monkeypatch, groups, processes, accumulated) == expected


@pytest.mark.parametrize(
    ("total", "devices", "accumulated", "reason"),
    [
        (32, 3, 1, "total_batch_size of 32 cannot be divided among 3 processes; give --data.total_batch_size 30"),
        (2, 3, 1, "give --data.total_batch_size 3"),
        (32, 1, 5, "among 1 process with 5 batches each; give --data.total_batch_size 30"),
        (32, 2, 3, "among 2 processes with 3 batches each; give --data.total_batch_size 30"),
    ],
)
def test_an_indivisible_batch_size_is_refused(total: int, devices: int, accumulated: int, reason: str) -> None:
    data = ResumableDataModule(total)
    data.trainer = Trainer(accelerator="cpu", devices=devices, accumulate_grad_batches=accumulated, logger=False)
    with pytest.raises(InputError, match=reason):
        data.batch_size()


def test_an_indivisible_batch_size_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config", CONF / "toy" / "proposals.yaml", "--trainer.default_root_dir", tmp_path / "run"]
    words += ["--trainer.accumulate_grad_batches", 3, "--trainer.enable_model_summary", "false"]
    assert "give --data.total_batch_size 15" in refusal(capsys, *words)
    assert not (tmp_path / "run").exists()


class Recorder(LightningModule):
    """Records the batches of its training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen: list[list[float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append(batch.flatten().tolist())
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def train(length: dict[str, int], callback: ModelCheckpoint, num_workers: int = 0, resume: Path | None = None) -> Any:
    model = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **length,
    )
    validation = DataLoader(torch.zeros(2, 2), batch_size=1)
    trainer.fit(model, loader(num_workers), validation, ckpt_path=resume, weights_only=True)
    return model.seen


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("length", [{"max_epochs": 3}, {"max_steps": 15}], ids=["epochs", "steps"])
@pytest.mark.parametrize(
    ("when", "steps"),
    [
        ({"every_n_train_steps": 1}, (2, 5, 8)),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, (5, 10)),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, (5, 10)),
    ],
    ids=["in-epoch", "after-epoch", "after-validation"],
)
def test_resuming_sees_what_the_uninterrupted_run_sees(
    tmp_path: Path, length: dict[str, int], when: dict[str, Any], steps: tuple[int, ...]
) -> None:
    def saving() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **when)

    whole = train(length, saving())
    assert len({tuple(batch) for batch in whole}) == 15
    for step in steps:
        assert train(length, saving(), resume=tmp_path / f"step={step}.ckpt") == whole[step:]


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["single", "groups"])
def test_resuming_does_not_depend_on_workers(groups: Tensor | None) -> None:
    whole = loader(0, groups)
    expected = [*whole, *whole]
    interrupted = loader(2, groups)
    batches = iter(interrupted)
    assert all(torch.equal(next(batches), expected[step]) for step in range(3))
    state = interrupted.state_dict()
    resumed = loader(2, groups)
    resumed.load_state_dict(state)
    remaining = [*resumed, *resumed]
    assert len(remaining) == 7
    assert all(map(torch.equal, remaining, expected[3:]))


def test_each_epoch_is_a_different_permutation() -> None:
    sampler = EpochSampler(Numbers(), num_replicas=1, rank=0)
    keys = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        keys.append(list(sampler))
        assert sorted(keys[epoch]) == list(range(22 * epoch, 22 * (epoch + 1)))
    assert keys[0] != [key - 22 for key in keys[1]]


def test_processes_share_an_epoch() -> None:
    shares = [list(EpochSampler(Numbers(), num_replicas=2, rank=rank)) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(22))


def keys_of(world: int, batch_size: int, epoch: int = 0, drop_last: bool = True) -> list[list[int]]:
    """Return the keys that each of `world` processes reads."""
    samplers = [
        GroupSampler(Numbers(), GROUPS, batch_size, num_replicas=world, rank=rank, drop_last=drop_last)
        for rank in range(world)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def test_groups_stay_together_and_are_shuffled() -> None:
    ((*first,), (*second,)) = (keys_of(1, 22, epoch)[0] for epoch in range(2))
    assert sorted(first) == list(range(22)) and sorted(second) == list(range(22, 44))  # each once per epoch
    orders = [[int(GROUPS[key % 22]) for key in keys] for keys in (first, second)]
    assert orders[0] != orders[1]
    for order in orders:
        assert len(list(groupby(order))) == 8  # one run per group


@pytest.mark.parametrize("epoch", [0, 3])
def test_processes_share_each_batch_of_groups(epoch: int) -> None:
    (single,) = keys_of(1, 8, epoch)
    shares = keys_of(2, 4, epoch)
    assert len(single) == 22
    for step in range(2):
        assert shares[0][4 * step :][:4] + shares[1][4 * step :][:4] == single[8 * step :][:8]


def test_a_single_short_batch_of_groups_is_padded_evenly() -> None:
    shares = keys_of(4, 32, drop_last=False)
    assert [len(share) for share in shares] == [6] * 4  # 2 of the 22 samples are repeated
    assert {key for share in shares for key in share} == set(range(22))


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["single", "groups"])
def test_every_epoch_serves_all_samples_if_they_are_fewer_than_a_step(groups: Tensor | None) -> None:
    loader = train_loader(Numbers(), 8, 0, 0, torch.stack, groups, batches_per_step=4)
    for epoch in range(2):
        keys = [int(key) for batch in loader for key in batch[:, 0]]
        assert sorted(keys) == list(range(22 * epoch, 22 * (epoch + 1)))


def test_overfitting_repeats_the_same_batches() -> None:
    model = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        overfit_batches=2,
        max_epochs=2,
        limit_val_batches=0,
    )
    trainer.fit(model, loader())
    assert [batch[0::2] for batch in model.seen] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
    assert model.seen[:2] == model.seen[2:]


def test_seeded_restores_the_generator() -> None:
    before = torch.get_rng_state()
    with seeded(1, 2):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(1, 3):
        assert not torch.equal(torch.rand(3), first)
    with seeded(1, 2):
        assert torch.equal(torch.rand(3), first)


def test_modules_that_workers_import_do_not_import_lightning() -> None:
    """Workers started by `forkserver` or `spawn` import the modules of the data set and the collate function."""
    modules = (
        "loading",
        "pairs.regions",
        "pairs.whole_images",
        "captions.images",
        "toy.cutting",
        "toy.labelled_scenes",
    )
    code = (
        "".join(f"import ovseg.data.{module}; " for module in modules) + "import sys; print('lightning' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == "False"
