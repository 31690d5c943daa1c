"""The folder of a run: its configuration, the checkpoint it resumes from, and the results it must not overwrite."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from ovseg.checkpoint import read_state
from ovseg.structures import InputError
from ovseg.whole_file import whole_file

RESULTS = {"test": "report.json", "sweep": "sweep.csv"}  # files that another run of the verb would overwrite


class SaveVerbConfig(SaveConfigCallback):
    """Save the command and configuration of a run as `<verb>.yaml`, so that `test` does not overwrite `fit.yaml`."""

    def __init__(self, parser: LightningArgumentParser, config: Any, config_filename: str, command: str) -> None:
        super().__init__(parser, config, config_filename, save_to_log_dir=False)
        self.command = command

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, the command as a comment on its first line."""
        path = Path(trainer.default_root_dir) / self.config_filename
        config = self.config.clone()
        if "ckpt_path" in config:
            config["ckpt_path"] = None  # the file describes the run, not the point it resumed from
        with whole_file(path) as partial:
            partial.write_text(f"# {self.command}\n{self.parser.dump(config, skip_unset=False)}", encoding="utf-8")


def run_folder(verb: str, config: Mapping[str, Any]) -> Path:
    """Return the run's folder. By default, each verb has one, and `test` has one for each benchmark."""
    if chosen := config.get("out") or config["trainer"]["default_root_dir"]:
        return Path(chosen)
    folder = Path("runs", verb)
    if verb != "test":
        return folder
    data: str = config["data"]["class_path"]
    return folder / data.rpartition(".")[2].removesuffix("DataModule")


def starting_checkpoint(verb: str, folder: Path, ckpt_path: str | None) -> str | None:
    """Return the checkpoint that a run starts from, or None to start from scratch.

    `best` and `last` name checkpoints of the run folder. `last` is the newest one, including those that Lightning saves
    before SLURM ends a job; if there is none, `fit` starts from scratch. A job that SLURM requeues always resumes.
    """
    of_slurm = list(folder.glob("hpc_ckpt_*.ckpt"))
    states = [file for file in [folder / "last.ckpt", *of_slurm] if file.is_file()]
    if verb == "fit" and "SLURM_JOB_ID" in os.environ and SLURMEnvironment.detect():
        requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
        ckpt_path = "last" if states and (requeued or (of_slurm and ckpt_path is None)) else ckpt_path
    if ckpt_path == "last" and states:
        return str(max(states, key=lambda file: file.stat().st_mtime_ns))
    if ckpt_path == "last" and verb == "fit":
        return None
    return str(folder / f"{ckpt_path}.ckpt") if ckpt_path in ("best", "last") else ckpt_path


def check_start(verb: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a missing or damaged checkpoint, and refuse to train over an earlier run.

    Raises:
        InputError: the checkpoint cannot be used, or the folder holds an earlier run.
    """
    checkpoint = config["ckpt_path"]
    if checkpoint and "://" not in checkpoint:
        if not Path(checkpoint).is_file():
            raise InputError(f"ckpt_path {checkpoint} does not exist; give the last.ckpt of a run, or leave it out")
        read_state(checkpoint)  # refuses damaged files, and pickles that hold more than values
    elif (
        not checkpoint and verb == "fit" and (folder / "last.ckpt").is_file() and not config["trainer"]["fast_dev_run"]
    ):
        raise InputError(
            f"{folder} already holds a run (last.ckpt); add --ckpt_path last to resume it, or choose another "
            "--trainer.default_root_dir"
        )


def check_results(verb: str, folder: Path, command: str) -> None:
    """Refuse to overwrite the results of another command.

    Raises:
        InputError: the folder holds results of another command.
    """
    results = folder / RESULTS.get(verb, "")
    if verb not in RESULTS or not results.is_file():
        return
    config = folder / f"{verb}.yaml"
    earlier = config.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") if config.is_file() else ""
    if earlier != command:
        writer = f"`{earlier}`" if earlier.startswith("ovseg ") else f"another {verb}"
        flag = "--out" if verb == "sweep" else "--trainer.default_root_dir"
        raise InputError(f"{results} was written by {writer}; choose another {flag}, or delete {folder}")
