"""Damaged model files are refused in one sentence, never with an error of a library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ovseg.models import CLIPAdapter, MaskProposer, OpenVocabSegmenter
from ovseg.structures import InputError
from tests import tiny

SETTINGS, PROPOSER, CLIP = "segmenter.yaml", "proposer/proposer.json", "clip/open_clip_config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny.segmenter(folder / "clip").save_pretrained(folder / "segmenter")
    return folder / "segmenter"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "segmenter"))


@pytest.fixture(scope="module")
def checkpoint(saved: Path) -> dict[str, Any]:
    segmenter = OpenVocabSegmenter.from_pretrained(saved)
    parts = {"clip": segmenter.clip, "proposer": segmenter.proposer}
    return {
        "state_dict": {
            f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
        },
        "architectures": {name: part.architecture() for name, part in parts.items()},
    }


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "report"),
    [
        (b"\xff\xfe", "holds no valid settings"),
        (b"templates: [2020-99-99]", "holds no valid settings"),
        (b"[" * 3000, "holds no valid settings"),
        (b"resize: [64.5, 128.0]", "resize is"),
        (b"resize: [.inf, .inf]", "resize is"),
        (b"resize: [400000, 600000]", "more than 100 megapixels"),
    ],
)
def test_malformed_settings_are_refused(folder: Path, content: bytes, report: str) -> None:
    (folder / SETTINGS).write_bytes(content)
    assert report in refusal(lambda: OpenVocabSegmenter.from_pretrained(folder))


@pytest.mark.parametrize("width", [-1, 0, True, 10**13, 10**30])
@pytest.mark.parametrize("name", ["text_dim", "head_width"])
def test_impossible_widths_are_refused(folder: Path, name: str, width: int) -> None:
    values = json.loads((folder / PROPOSER).read_text()) | {name: width}
    (folder / PROPOSER).write_text(json.dumps(values))
    assert "does not describe a proposal network" in refusal(lambda: MaskProposer(str(folder / "proposer")))


def test_deeply_nested_json_is_refused(folder: Path) -> None:
    (folder / PROPOSER).write_text("[" * 100_000)
    assert "cannot be read" in refusal(lambda: MaskProposer(str(folder / "proposer")))


def test_a_folder_without_its_merges_is_refused(folder: Path) -> None:
    (folder / "clip" / "merges.txt.gz").unlink()  # open_clip's own tokenizer has 49,408 tokens
    clip = CLIPAdapter(str(folder / "clip"))
    assert "its text tower has only 916 tokens; copy the tokenizer's files" in refusal(
        lambda: clip.encode_text(["a cat"])
    )


def test_a_standard_deviation_of_zero_is_refused(folder: Path) -> None:
    values = json.loads((folder / CLIP).read_text()) | {"preprocess_cfg": {"std": [0, 1, 1]}}
    (folder / CLIP).write_text(json.dumps(values))
    assert "set three numbers" in refusal(lambda: CLIPAdapter(str(folder / "clip")))


@pytest.mark.parametrize("architectures", ["clip proposer", [1], None, {1: 2}, {"clip": 7, "proposer": 7}])
@pytest.mark.parametrize("network", [CLIPAdapter, MaskProposer])
def test_malformed_architectures_are_refused(
    checkpoint: dict[str, Any], tmp_path: Path, network: Any, architectures: Any
) -> None:
    torch.save(checkpoint | {"architectures": architectures}, tmp_path / "last.ckpt")
    assert "contains no network" in refusal(lambda: network(str(tmp_path / "last.ckpt")))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [1],
        lambda state: state | {1: torch.zeros(1)},
        lambda state: {key: value.to_sparse() if value.ndim else value for key, value in state.items()},
        lambda state: {key: value.to("meta") for key, value in state.items()},
        lambda state: {key: value.to(torch.complex64) for key, value in state.items()},
        lambda state: state | {"clip.clip.positional_embedding": torch.zeros(1).expand(10**8, 64)},
    ],
    ids=["list", "numbered", "sparse", "meta", "complex", "one_value_for_all"],
)
@pytest.mark.parametrize("network", [CLIPAdapter, MaskProposer])
def test_malformed_weights_are_refused(
    checkpoint: dict[str, Any], tmp_path: Path, network: Any, change: Callable[[Any], Any]
) -> None:
    torch.save(checkpoint | {"state_dict": change(checkpoint["state_dict"])}, tmp_path / "last.ckpt")
    refusal(lambda: network(str(tmp_path / "last.ckpt")))


def test_key_names_of_another_model_are_refused(folder: Path) -> None:
    """open_clip mistakes these for a MobileCLIP and converts them accordingly."""
    clip = Path(tiny.clip_folder(folder.parent / "other"))
    torch.save(
        {"image_encoder.model.patch_emb.0.block.conv.weight": torch.zeros(1)}, clip / "open_clip_pytorch_model.bin"
    )
    assert "does not fit this CLIP" in refusal(lambda: CLIPAdapter(str(clip)))
