"""Config files that cannot be read, and names in them that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovseg.cli.config_files import check_config
from ovseg.structures import InputError
from tests.stages import CONF, refusal, write

Capture = pytest.CaptureFixture[str]
TOY = CONF / "toy" / "proposals.yaml"

FILES = {
    "trainer:\n  max_steps: 3\n max_epochs: 2\n": ", line 3, column 2: invalid YAML (while parsing a block mapping: ",
    "data: [1": ", line 1, column 9: invalid YAML (while parsing a flow sequence: ",
    "data:\n\troot: x": ", line 2, column 1: invalid YAML (while scanning for the next token: found character '\\t'",
    "trainer: {max_steps: 3}\ndata: a.yaml\ntrainer: {}": ", line 3: 'trainer' is already set in line 1; remove",
    "trainer:\n  max_steps: 3\n  devices: 1\n  max_steps: 4": ", line 4: 'max_steps' is already set in line 2; remove",
    "model: {{x}: 3}": ", line 1: a key is a list or a mapping; quote text that begins with { or [",
    "": " is empty; write settings into it",
    "# trainer: {max_steps: 3}\n": " is empty; write settings into it",
    "- trainer: {max_steps: 3}\n": " is a list, not a mapping; write one `key: value` a line, without leading hyphens",
    "sky\nsea\n": " is text without keys; write one `key: value` a line",
    "trainer:\n  - max_steps: 3\n": ", line 2: trainer is a list, not a mapping; write one `key: value` a line",
    "model:\n  init_args:\n    - lr: 3": ", line 3: init_args is a list, not a mapping; write",
    "\0\1\2": " is not a text file in UTF-8; save it as one",
}


@pytest.mark.parametrize("text", FILES)
@pytest.mark.parametrize("parent", ["", "data: part/own.yaml", "model: {a: 1, init_args: part/own.yaml}"])
def test_a_file_that_cannot_be_read_is_named_with_its_line(text: str, parent: str, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    own = write(tmp_path / "part" / "own.yaml", text)
    config = write(tmp_path / "stage.yaml", parent) if parent else own
    with pytest.raises(InputError) as error:
        check_config(config)
    assert str(error.value).startswith(f"{own}{FILES[text]}")


def test_anchors_and_lists_of_fragments_are_allowed(tmp_path: Path) -> None:
    write(tmp_path / "callbacks.yaml", "- class_path: lightning.pytorch.callbacks.Timer\n")
    anchors = "trainer: {callbacks: callbacks.yaml, model: [1], a: &a {b: *a}, c: {<<: *a}, d: [*a, *a]}"
    check_config(write(tmp_path / "stage.yaml", anchors))


def test_a_config_that_names_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "data: b.yaml")
    write(tmp_path / "b.yaml", "data: a.yaml")
    with pytest.raises(InputError, match=r"a\.yaml names itself, directly or through other configs"):
        check_config(tmp_path / "a.yaml")


def test_configs_of_every_flag_are_checked(capsys: Capture, tmp_path: Path) -> None:
    own = write(tmp_path / "own.yaml", "data:\n  root: x\n  root: y\n")
    for flags in (("--config", own), (f"--config={own}",), ("-c", own), ("--config", TOY, "--data", own)):
        assert refusal(capsys, "fit", *flags).startswith(f"{own}, line 3: 'root' is already set in line 2")
    own.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert refusal(capsys, "fit", "--config", TOY, f"--trainer={own}").startswith(f"{own} is not a text file in UTF-8")


def test_an_interpolation_of_nothing_is_named(capsys: Capture, tmp_path: Path) -> None:
    sentence = "${nothere} names no key of the configuration; correct it, or set that key"
    own = write(tmp_path / "own.yaml", "trainer: {default_root_dir: '${nothere}'}")
    assert refusal(capsys, "fit", "--config", TOY, "--config", own).startswith(f"{own}: {sentence}")
    flag = ("--trainer.default_root_dir", "x/${nothere}")
    assert refusal(capsys, "fit", "--config", TOY, *flag).startswith(f"the command line: {sentence}")
    write(own, "trainer: {default_root_dir: 'runs/${trainer.max_stepz}'}")
    assert "${trainer.max_stepz} names no key" in refusal(capsys, "fit", "--config", TOY, "--config", own)
    write(own, "trainer: {default_root_dir: '${env:HOME}'}")
    assert f"{own}: ${{env:HOME}} cannot be resolved (" in refusal(capsys, "fit", "--config", TOY, "--config", own)


NAMES = {
    "dta: {class_path: ovseg.data.CaptionDataModule}": "did you mean --data?",
    "dta: x.yaml": "did you mean --data?",
    "modle: {lr: 3}": "did you mean --model?",
    "model: {class_path: ovseg.tasks.ProposalTaskk}": "did you mean ovseg.tasks.ProposalTask?",
    "model: {class_path: ovseg.taskss.ProposalTask}": "did you mean ovseg.tasks.ProposalTask?",
    "model: {class_path: PropsalTask}": "did you mean ovseg.tasks.ProposalTask?",
    "data: {class_path: ovseg.data.ADE20K150DatModule}": "did you mean ovseg.data.ADE20K150DataModule?",
    "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.ModelCheckpont}]}": (
        "did you mean lightning.pytorch.callbacks.ModelCheckpoint?"
    ),
}


@pytest.mark.parametrize("text", NAMES)
def test_the_nearest_name_is_suggested(text: str, capsys: Capture, tmp_path: Path) -> None:
    own = write(tmp_path / "own.yaml", text)
    sentence = refusal(capsys, "fit", "--config", own)
    assert sentence.startswith(f"{own}: ") and sentence.endswith(NAMES[text])


def test_a_value_that_is_no_yaml_is_said_without_a_parser_s_names(capsys: Capture) -> None:
    sentence = refusal(capsys, "fit", "--config", TOY, "--model.loss", "{class_path: [")
    assert "string>" not in sentence and "model.loss" in sentence
