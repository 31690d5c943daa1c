"""Two processes give the result of one; a process that dies ends the run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from tests import tiny
from tests.stages import CONF, REPOSITORY, ovseg


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a test on five scenes, with networks of random weights."""
    root = tmp_path_factory.mktemp("distributed")
    ovseg("toy", "--out", root / "world", "--scenes", 1, "--val_scenes", 5)
    tiny.segmenter(root / "clip").save_pretrained(root / "segmenter")
    data = ["--data.images", root / "world" / "val2017", "--data.labels", root / "world" / "stuffthingmaps" / "val2017"]
    model = ["--model.segmenter", root / "segmenter", "--trainer.enable_progress_bar", "false"]
    return [str(word) for word in ["test", "--config", CONF / "toy" / "test.yaml", *data, *model]]


def run_ddp(flags: list[str], out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command line of its own, since Lightning starts the second process by repeating it."""
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.default_root_dir", str(out)]
    command = [sys.executable, "-m", "ovseg", *flags, *ddp, *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def logged(run: Path) -> list[dict[str, str]]:
    return [row for file in run.rglob("metrics.csv") for row in csv.DictReader(file.open())]


def test_test_on_two_processes_gives_the_numbers_of_one(flags: list[str], tmp_path: Path) -> None:
    ovseg(*flags, "--trainer.default_root_dir", tmp_path / "one")
    (expected,) = logged(tmp_path / "one")
    assert float(expected["test/miou_union"]) > 0

    done = run_ddp(flags, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert logged(tmp_path / "two") == [expected]
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("metrics", "images", "classes", "confusions", "chosen"):
        assert one[name] == two[name]
    assert (tmp_path / "one" / "per_class.csv").read_text() == (tmp_path / "two" / "per_class.csv").read_text()
    assert done.stdout.count("mIoU (union)") == 1


def test_fewer_images_than_processes_are_refused(flags: list[str], tmp_path: Path) -> None:
    folders = [Path(flags[flags.index(f"--data.{part}") + 1]) for part in ("images", "labels")]
    for folder in folders:
        (tmp_path / folder.parent.name).mkdir()
        shutil.copy(min(folder.iterdir()), tmp_path / folder.parent.name)
    one = [str(tmp_path / folder.parent.name) for folder in folders]
    done = run_ddp([*flags, "--data.images", one[0], "--data.labels", one[1]], tmp_path / "run")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "ovseg: 1 images are too few for 2 processes; give --trainer.devices 1\n" in done.stderr


class Killed(L.Callback):
    """The system ends the second process in its first batch."""

    def on_test_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_ends_the_run_without_a_number(flags: list[str], tmp_path: Path) -> None:
    done = run_ddp(flags, tmp_path, "--trainer.callbacks", "tests.tasks.test_distributed.Killed")
    assert done.returncode != 0 and "MEMBER: 2/2" in done.stderr
    assert not logged(tmp_path) and "miou" not in done.stdout.lower()
    assert not list(tmp_path.rglob("report*"))


class Fails(L.Callback):
    """One process meets a fault in its third step."""

    def __init__(self, process: int) -> None:
        self.process = process

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_rank == self.process and trainer.global_step == 2:
            raise RuntimeError("this process has had enough")


@pytest.mark.parametrize("process", [0, 1])
def test_a_fault_in_one_process_is_seen_at_once_and_the_run_goes_on(tmp_path: Path, process: int) -> None:
    words = ["fit", "--config", CONF / "toy" / "proposals.yaml", "--trainer.max_steps", 4]
    words += ["--model.proposer.init_args.model", json.dumps(tiny.mask2former()), "--model.proposer.text_dim", tiny.DIM]
    words += ["--model.clip.model", tiny.clip_folder(tmp_path / "clip"), "--data.scenes", 16]
    flags = [str(word) for word in [*words, "--data.num_workers", 0, "--trainer.enable_progress_bar", "false"]]
    flags += ["--data.total_batch_size", "4"]
    fault = ["--trainer.callbacks", "tests.tasks.test_distributed.Fails", "--trainer.callbacks.process", str(process)]
    done = run_ddp(flags, tmp_path / "run", *fault)
    assert done.returncode != 0 and "this process has had enough" in done.stderr

    if process == 0:  # Lightning may kill it before it has saved, when the other ends
        last = tmp_path / "run" / "last.ckpt"
        assert torch.load(last, weights_only=True)["global_step"] == 2
        done = run_ddp(flags, tmp_path / "run", "--ckpt_path", str(last))
        assert done.returncode == 0, done.stderr
        assert torch.load(last, weights_only=True)["global_step"] == 4
