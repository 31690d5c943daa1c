"""Models are saved into new folders and over earlier models, and never over anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ovseg.models import CLIPAdapter, MaskProposer, OpenVocabSegmenter
from ovseg.structures import InputError
from tests import tiny
from tests.stages import ovseg, refusal

MODELS = ["clip", "proposer", "segmenter"]


def model(kind: str, folder: Path, seed: int = 0) -> Any:
    if kind == "proposer":
        return tiny.proposer(seed=seed)
    return tiny.clip(folder, prompt_depth=2, seed=seed) if kind == "clip" else tiny.segmenter(folder)


def content(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def folder_of_others(kind: str, folder: Path) -> Path:
    """Write a folder of another project that resembles one of ours."""
    folder.mkdir()
    config = {"model_cfg": tiny.CLIP, "preprocess_cfg": {}}
    names = {"clip": "open_clip_config.json", "proposer": "config.json", "segmenter": "README.md"}
    (folder / names[kind]).write_text(json.dumps(config))
    for name in ("model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        save_file({"weight": torch.ones(1)}, folder / name)
    return folder


@pytest.mark.parametrize("kind", MODELS)
def test_files_of_others_are_never_overwritten(tmp_path: Path, kind: str) -> None:
    folder = folder_of_others(kind, tmp_path / "theirs")
    before = content(folder)
    with pytest.raises(InputError, match="theirs contains files that ovseg did not write; give a new or empty"):
        model(kind, tmp_path / "new").save_pretrained(folder)
    assert content(folder) == before
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="file is a file; give the folder to write"):
        model(kind, tmp_path / "new").save_pretrained(file)


@pytest.mark.parametrize("part", ["clip", "proposer"])
def test_part_of_another_segmenter_is_never_overwritten(tmp_path: Path, part: str) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "segmenter.yaml").touch()
    folder_of_others(part, tmp_path / "theirs" / part)
    before = content(tmp_path / "theirs")
    with pytest.raises(InputError, match=f"theirs/{part} contains files that ovseg did not write"):
        model("segmenter", tmp_path / "new").save_pretrained(tmp_path / "theirs")
    assert content(tmp_path / "theirs") == before


@pytest.mark.parametrize("kind", MODELS)
def test_an_earlier_model_is_overwritten(tmp_path: Path, kind: str) -> None:
    """Even if it is incomplete; files that were added to its folder stay."""
    first, second = model(kind, tmp_path / "new"), model(kind, tmp_path / "new", seed=1)
    saved = tmp_path / "saved"
    saved.mkdir()
    first.save_pretrained(saved)
    (saved / "notes.txt").write_text("mine")
    for file in sorted(saved.rglob("*.safetensors")):
        file.unlink()
    second.save_pretrained(saved)
    second.save_pretrained(tmp_path / "fresh")
    assert content(saved) == content(tmp_path / "fresh") | {Path("notes.txt"): b"mine"}
    source: Any = {"clip": CLIPAdapter, "proposer": MaskProposer, "segmenter": OpenVocabSegmenter.from_pretrained}[kind]
    again, state = source(str(saved)).state_dict(), second.state_dict()
    assert all(torch.equal(again[key], value) for key, value in state.items())


def test_removed_prompts_leave_no_file(tmp_path: Path) -> None:
    tiny.clip(tmp_path / "new", prompt_depth=2).save_pretrained(tmp_path / "saved")
    assert CLIPAdapter(str(tmp_path / "saved")).visual.prompt is not None
    tiny.clip(tmp_path / "new").save_pretrained(tmp_path / "saved")
    assert CLIPAdapter(str(tmp_path / "saved")).visual.prompt is None


def test_an_interrupted_save_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the part that is new nor the part that is old."""
    segmenter = tiny.segmenter(tmp_path / "new")
    segmenter.save_pretrained(tmp_path / "saved")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(segmenter.clip, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        segmenter.save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match=r"segmenter\.yaml holds no valid settings .*; bundle it again"):
        OpenVocabSegmenter.from_pretrained(tmp_path / "saved")


def test_commands_check_the_target_before_reading_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of_others("segmenter", tmp_path / "theirs")
    before = content(folder)
    message = "theirs contains files that ovseg did not write; give a new or empty folder"
    bundle = ["bundle", "--proposer", "toy", "--clip", "toy", "--out"]
    assert refusal(capsys, *bundle, folder).endswith(message)
    assert refusal(capsys, "bundle", "--proposer", "missing.ckpt", "--clip", "x", "--out", folder).endswith(message)
    assert refusal(capsys, "import", "missing.pth", "--out", folder).endswith(message)
    assert content(folder) == before
    ovseg(*bundle, tmp_path / "new")
    ovseg(*bundle, tmp_path / "new")
