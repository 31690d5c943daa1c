"""Files are written completely or not at all."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.cli import LightningArgumentParser

from ovseg.cli.run_folder import SaveVerbConfig
from ovseg.structures import InputError
from ovseg.whole_file import whole_file
from tests.data.test_pairs import files_of_at_most


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out" / "labels.json"
    with whole_file(path) as partial:
        partial.write_text("old")
    with pytest.raises(TypeError), whole_file(path) as partial:
        partial.write_text(5)  # type: ignore[arg-type]
    assert [file.read_text() for file in path.parent.iterdir()] == ["old"]


def test_a_full_disk_leaves_the_earlier_config_of_a_run(tmp_path: Path) -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--name", type=str)
    trainer, task = L.Trainer(logger=False, default_root_dir=tmp_path), L.LightningModule()
    SaveVerbConfig(parser, parser.parse_args(["--name", "x"]), "fit.yaml", "ovseg fit").save_config(
        trainer, task, "fit"
    )
    long = SaveVerbConfig(parser, parser.parse_args(["--name", "x" * 200]), "fit.yaml", "ovseg fit")
    with (
        files_of_at_most(100),
        pytest.raises(InputError, match=r"fit\.yaml cannot be written \(File too large\); free"),
    ):
        long.save_config(trainer, task, "fit")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("fit.yaml", "# ovseg fit\nname: x\n")]
