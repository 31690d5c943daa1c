"""Tests of the last and best checkpoint: atomic writes, restarts and errors."""

from __future__ import annotations

import io
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader

from ovseg.callbacks import BestCheckpoint, LastCheckpoint
from ovseg.callbacks.checkpoints import WholeCheckpointIO
from ovseg.structures import InputError
from tests import killed

QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}


class Scored(L.LightningModule):
    """Logs one of the given scores in the validation after each step."""

    monitor = "val/score"

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        return self.weight

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        self.log("val/score", self.scores[self.trainer.global_step - 1], batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, task: Scored, steps: int, *more: L.Callback, resume: bool = False, validate: bool = True) -> None:
    """Train up to `steps` steps, in epochs of two."""
    callbacks = [BestCheckpoint(folder), *more, LastCheckpoint(folder)]
    validation = {"val_check_interval": 1, "check_val_every_n_epoch": None} if validate else {}
    trainer = L.Trainer(**QUIET, **validation, max_steps=steps, num_sanity_val_steps=0, callbacks=callbacks)
    loader, val_loader = DataLoader(range(2)), DataLoader(range(int(validate)))  # type: ignore[arg-type, var-annotated]
    trainer.fit(task, loader, val_loader, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)


def step(checkpoint: Path) -> int:
    global_step: int = torch.load(checkpoint, weights_only=True)["global_step"]
    return global_step


def test_the_best_checkpoint_survives_a_restart(tmp_path: Path) -> None:
    scores = [0.1, 0.5, 0.3, 0.4, 0.6, 0.2]
    for steps, best in ((1, 1), (2, 2), (4, 2), (6, 5)):  # 0.4 after the restart is less than 0.5 before it
        fit(tmp_path, Scored(scores), steps, resume=steps > 1)
        assert step(tmp_path / "best.ckpt") == best
        assert step(tmp_path / "last.ckpt") == steps
    assert {file.name for file in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}


class ReadLast(L.Callback):
    """Reads `last.ckpt` in the third step, as a run killed there would resume from it."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            last = torch.load(Path(str(trainer.checkpoint_callbacks[-1].dirpath), "last.ckpt"), weights_only=True)
            [self.state] = [state for name, state in last["callbacks"].items() if name.startswith("BestCheckpoint")]


def test_the_last_checkpoint_stores_the_best_score_of_the_same_validation(tmp_path: Path) -> None:
    reader = ReadLast()
    fit(tmp_path, Scored([0.1, 0.5, 0.3]), 3, reader)
    assert float(reader.state["best_model_score"]) == pytest.approx(0.5)


@pytest.mark.parametrize("monitor", [None, "val/another"])
def test_there_is_no_best_checkpoint_without_a_score(tmp_path: Path, monitor: str | None) -> None:
    task = Scored([0.1, 0.2])
    task.monitor = monitor  # type: ignore[assignment]
    fit(tmp_path, task, 2)
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt"}


# Writing


class HoldOpen(L.Callback):
    """Holds the checkpoint of the first step open, like a reader while the next one is written."""

    def __init__(self, last: Path) -> None:
        self.last = last

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 1:
            self.bytes, self.file = self.last.read_bytes(), self.last.open("rb")


def test_the_previous_checkpoint_is_not_overwritten_if_the_temporary_folder_is_on_another_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm on a separate file system")
    with tempfile.TemporaryDirectory(dir=elsewhere) as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        reader = HoldOpen(tmp_path / "last.ckpt")
        fit(tmp_path, Scored([0.1, 0.2]), 2, reader)
        with reader.file as previous:
            assert previous.read() == reader.bytes
        assert step(tmp_path / "last.ckpt") == 2


def fit_and_die(folder: Path) -> None:
    """Train, and kill this process when half of the second `last.ckpt` is written."""
    save, saves = torch.save, []

    def save_in_halves(content: Any, file: Any) -> None:
        buffer = io.BytesIO()
        save(content, buffer)
        saves.append(file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2]))
        file.flush()
        if len(saves) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        file.write(buffer.getvalue()[saves[-1] :])

    torch.save = save_in_halves
    fit(folder, Scored([]), 4, validate=False)


def test_a_run_killed_during_a_save_resumes_from_the_previous_checkpoint(tmp_path: Path) -> None:
    process = killed.CONTEXT.Process(target=fit_and_die, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == -9
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", ".checkpoint.part"}
    assert step(tmp_path / "last.ckpt") == 2  # the end of the first epoch
    fit(tmp_path, Scored([]), 4, validate=False, resume=True)
    assert step(tmp_path / "last.ckpt") == 4
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt"}


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    io, path = WholeCheckpointIO(), tmp_path / "run" / "last.ckpt"
    io.save_checkpoint({"value": torch.ones(100_000)}, path)
    before = path.read_bytes()
    (path.parent / ".checkpoint.part").symlink_to("/dev/full")  # always full
    with pytest.raises(InputError) as refused:
        io.save_checkpoint({"value": torch.zeros(100_000)}, path)
    assert str(refused.value).startswith(f"{path} cannot be written (No space left on device), and the previous ")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    io.save_checkpoint({"value": torch.zeros(100_000)}, path)
    assert not torch.load(path, weights_only=True)["value"].any()


def test_the_error_names_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        WholeCheckpointIO().save_checkpoint({}, tmp_path / "file" / "last.ckpt")


def test_errors_of_pickle_are_not_reported_as_disk_errors(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        WholeCheckpointIO().save_checkpoint({"value": lambda: 0}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


class CustomIO(TorchCheckpointIO):
    """A checkpoint plugin of the user's."""


def test_a_custom_checkpoint_plugin_is_not_replaced(tmp_path: Path) -> None:
    trainer = L.Trainer(**QUIET, max_steps=1, plugins=[CustomIO()], callbacks=[LastCheckpoint(tmp_path)])
    trainer.fit(Scored([]), DataLoader(range(2)))  # type: ignore[arg-type]
    assert type(trainer.strategy.checkpoint_io) is CustomIO
