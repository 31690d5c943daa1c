"""The folder that a run lives in: what it keeps there, where it goes on from, and what it must not write over."""

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

RESULTS = {"test": "report.json", "sweep": "sweep.csv"}  # what another run of the verb would write over


class SaveVerbConfig(SaveConfigCallback):
    """Keeps command and configuration of a run as `<verb>.yaml` in its folder; `test` leaves `fit.yaml` as it is."""

    def __init__(self, parser: LightningArgumentParser, config: Any, config_filename: str, command: str) -> None:
        super().__init__(parser, config, config_filename, save_to_log_dir=False)
        self.command = command

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.config_filename
        config = self.config.clone()
        if "ckpt_path" in config:
            config["ckpt_path"] = None  # the file says what the run is, not where it was taken up
        self.parser.save(config, path, skip_unset=False, overwrite=True, multifile=False)
        path.write_text(f"# {self.command}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")


def run_folder(verb: str, config: Mapping[str, Any]) -> Path:
    """Where a run lives; each benchmark has a folder of its own."""
    if given := config.get("out") or config["trainer"]["default_root_dir"]:
        return Path(given)
    folder = Path("runs", verb)
    if verb != "test":
        return folder
    data: str = config["data"]["class_path"]
    return folder / data.rpartition(".")[2].removesuffix("DataModule")


def starting_checkpoint(verb: str, folder: Path, given: str | None) -> str | None:
    """The checkpoint that a run starts from; None for the beginning.

    `best` and `last` are those of its folder. `last` is the newest, be it what Lightning saved when SLURM was about to
    end the job; where there is none yet, `fit` begins. The same command requeued by SLURM goes on, whatever it says.
    """
    of_slurm = list(folder.glob("hpc_ckpt_*.ckpt"))
    states = [file for file in [folder / "last.ckpt", *of_slurm] if file.is_file()]
    if verb == "fit" and "SLURM_JOB_ID" in os.environ and SLURMEnvironment.detect():
        requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
        given = "last" if states and (requeued or (of_slurm and given is None)) else given
    if given == "last" and states:
        return str(max(states, key=lambda file: file.stat().st_mtime_ns))
    if given == "last" and verb == "fit":
        return None
    return str(folder / f"{given}.ckpt") if given in ("best", "last") else given


def check_start(verb: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that is not there or cannot be used, and to train over an earlier run."""
    checkpoint = config["ckpt_path"]
    if checkpoint and "://" not in checkpoint:
        if not Path(checkpoint).is_file():
            raise InputError(f"ckpt_path {checkpoint} does not exist; give the last.ckpt of a run, or leave it out")
        read_state(checkpoint)  # refuses what is damaged, or more than values
    elif (
        not checkpoint and verb == "fit" and (folder / "last.ckpt").is_file() and not config["trainer"]["fast_dev_run"]
    ):
        raise InputError(
            f"{folder} holds a run already (last.ckpt); add --ckpt_path last to go on, or choose another "
            "--trainer.default_root_dir"
        )


def check_results(verb: str, folder: Path, command: str) -> None:
    """Refuse to write over what another command found."""
    results = folder / RESULTS.get(verb, "")
    if verb not in RESULTS or not results.is_file():
        return
    config = folder / f"{verb}.yaml"
    earlier = config.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") if config.is_file() else ""
    if earlier != command:
        whose = f"`{earlier}`" if earlier.startswith("ovseg ") else f"another {verb}"
        place = "--out" if verb == "sweep" else "--trainer.default_root_dir"
        raise InputError(f"{results} is of {whose}; choose another {place}, or delete {folder}")
