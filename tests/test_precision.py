"""Half precision on accelerators: when it is the default, and what always stays in full precision."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from ovseg.cli import hardware
from ovseg.cli.main import run_trainer_verb
from ovseg.cli.trainer import OVSegTrainer
from ovseg.data.toy import write_toy
from ovseg.data.vocabulary import read_vocabulary
from ovseg.images import read_image, to_tensor
from ovseg.models import OpenVocabSegmenter
from tests import tiny
from tests.stages import CONF, write


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_toy(root, 1, val_scenes=2)
    return root


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    tiny.segmenter(folder / "clip").save_pretrained(folder / "saved")
    return folder / "saved"


def test_a_gpu_has_half_precision_unless_the_user_says_otherwise(
    segmenter: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU in the place of a GPU, with bf16."""
    monkeypatch.setattr(OVSegTrainer, "test", functools.wraps(OVSegTrainer.test)(lambda self, *args, **kwargs: None))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    matmul: list[str] = []
    monkeypatch.setattr("torch.set_float32_matmul_precision", matmul.append)
    data = ("--data.images", world / "val2017", "--data.labels", world / "stuffthingmaps" / "val2017")
    words = ("test", "--config", CONF / "toy" / "test.yaml", *data, "--model.segmenter", segmenter)
    words = (*words, "--trainer.default_root_dir", tmp_path)

    def precision(*more: object) -> str:
        trainer = run_trainer_verb([str(word) for word in (*words, *more)]).trainer
        assert isinstance(trainer.precision_plugin, MixedPrecision) == (trainer.precision == "bf16-mixed")
        return str(trainer.precision)

    assert precision() == "32-true" and not matmul
    monkeypatch.setattr(hardware, "on_gpu", lambda accelerator: True)
    assert precision() == "bf16-mixed" and matmul == ["high"]
    assert precision("--trainer.precision", "32-true") == "32-true"
    assert precision("--config", write(tmp_path / "full.yaml", "trainer: {precision: 32-true}")) == "32-true"


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_bf16_is_taken_where_the_gpu_itself_has_it(bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: including_emulation or bf16)
    assert hardware.half_precision() == expected


def test_training_keeps_the_precision_of_its_config() -> None:
    assert {*hardware.HALF_VERBS} == {"test", "sweep", "segment", "mine"}
    assert hardware.has_precision({"precision": None, "plugins": [MixedPrecision("bf16-mixed", "cpu")]})
    assert not hardware.has_precision({"precision": None, "plugins": None})


@pytest.mark.parametrize(
    ("accelerator", "expected"), [("cpu", False), ("gpu", True), ("cuda", True), ("mps", False), ("auto", False)]
)
def test_what_a_gpu_is(accelerator: str, expected: bool) -> None:
    if accelerator == "auto":
        expected = torch.cuda.is_available()
    assert hardware.on_gpu(accelerator) == expected


@torch.no_grad()
def test_half_precision_names_the_same_pixels(world: Path) -> None:
    segmenter = OpenVocabSegmenter.from_pretrained("toy")
    segmenter.set_vocabulary(read_vocabulary("toy"))
    images = [to_tensor(read_image(path)) for path in sorted((world / "val2017").iterdir())]
    full = torch.cat([found.flatten() for found in segmenter.labels(images)])
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.cat([found.flatten() for found in segmenter.labels(images)])
    assert not torch.equal(full, half)  # or it was not half
    assert float((full == half).float().mean()) > 0.99


@torch.no_grad()
def test_half_precision_touches_no_score(tmp_path: Path) -> None:
    segmenter = tiny.segmenter(tmp_path / "clip")
    segmenter.set_vocabulary(["cat", "red sky", "grass"])
    (image,), masks = tiny.images((64, 64)), torch.ones(3, 64, 64, dtype=torch.bool)
    regions, region_masks = torch.stack(tiny.images((32, 32), (32, 32))), torch.ones(2, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert segmenter.clip.visual(regions, region_masks).dtype == torch.bfloat16  # the towers are
        features = segmenter.clip.encode_regions(regions, region_masks), segmenter.clip.encode_text(["cat", "a dog"])
        found = segmenter.propose([image])[0]
        logits = segmenter.classify_regions(image, masks).logits
        ((scores, probs),) = segmenter.score_proposals([image])
        (dense,) = segmenter([image])
    for feature in features:
        assert feature.dtype == torch.float32
        torch.testing.assert_close(feature.norm(dim=-1), torch.ones(2), rtol=0, atol=1e-6)
    for tensor in (found.mask_probs, found.class_logits, logits, scores, probs, dense):
        assert tensor is not None and tensor.dtype == torch.float32
    torch.testing.assert_close(dense, torch.einsum("qk,qhw->khw", scores, probs))
