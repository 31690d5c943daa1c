"""Tests of the files that `ovseg segment` writes, and of resuming."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback
from PIL import Image
from pycocotools.coco import COCO

from ovseg.callbacks import SegmentationWriter
from ovseg.callbacks.pictures import save_picture
from ovseg.callbacks.segmentations import fingerprint
from ovseg.models import OpenVocabSegmenter
from ovseg.models.views import Views
from ovseg.structures import InputError, Vocabulary
from tests import tiny
from tests.data.test_pairs import files_of_at_most
from tests.stages import REPOSITORY, ovseg, refusal

Capture = pytest.CaptureFixture[str]
WORDS = "cat, red sky, grass, a dog"


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("segmenter")
    tiny.segmenter(root / "clip").save_pretrained(root / "saved")
    return root / "saved"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write three images of different sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(tiny.images((30, 40), (41, 20), (25, 25))):
        Image.fromarray((255 * image.permute(1, 2, 0)).byte().numpy()).save(folder / f"{index}.png")
    return folder


def words(segmenter: Path, photos: Path, out: Path, *more: object) -> list[str]:
    flags = ["--model", segmenter, "--images", photos, "--vocabulary", WORDS, "--out", out, *more]
    return [str(word) for word in ["segment", *flags, "--trainer.enable_progress_bar", "false"]]


def files(out: Path) -> dict[str, bytes]:
    """Return the contents of the output files in a folder."""
    return {file.name: file.read_bytes() for file in sorted(out.iterdir()) if file.suffix in (".png", ".json")}


def times(out: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in out.iterdir() if file.suffix in (".png", ".json")}


def test_pycocotools_reads_the_labels_from_the_segments(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    ovseg(*words(segmenter, photos, tmp_path / "out"))
    images_with_several_segments = 0
    for index, size in enumerate([(30, 40), (41, 20), (25, 25)]):
        with Image.open(tmp_path / "out" / f"{index}_labels.png") as image:
            labels = np.asarray(image)
        assert labels.shape == size
        data = COCO(str(tmp_path / "out" / f"{index}_segments.json"))
        painted = np.full(size, 255)
        for annotation in data.loadAnns(data.getAnnIds()):
            mask = data.annToMask(annotation).astype(bool)
            rows, columns = mask.nonzero()
            assert annotation["area"] == mask.sum()
            x, y, width, height = annotation["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert data.loadCats(annotation["category_id"])[0]["name"] == WORDS.split(", ")[annotation["category_id"]]
            painted[mask] = annotation["category_id"]
        assert np.array_equal(painted, labels)
        assert data.loadImgs(1)[0]["file_name"] == f"{index}.png"
        images_with_several_segments += len(data.getAnnIds()) > 1
    assert images_with_several_segments


class Stop(Callback):
    """Presses Ctrl-C at the second image."""

    def on_predict_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        if index == 1:
            raise KeyboardInterrupt


def test_a_stopped_run_resumes(segmenter: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    uninterrupted, out = tmp_path / "uninterrupted", tmp_path / "out"
    ovseg(*words(segmenter, photos, uninterrupted))
    with pytest.raises(SystemExit):
        ovseg(*words(segmenter, photos, out, "--trainer.callbacks", "tests.callbacks.test_segmentations.Stop"))
    before = times(out)
    assert sorted(before) == ["0_labels.png", "0_overlay.png", "0_segments.json"]

    (out / "1_labels.png").write_bytes(b"half")  # like a file of a killed run
    capsys.readouterr()
    ovseg(*words(segmenter, photos, out))
    printed = capsys.readouterr().out
    assert "2 images segmented into" in printed and "1 already complete (32-true)" in printed
    assert files(out) == files(uninterrupted)
    assert before.items() <= times(out).items()

    Image.new("RGB", (9, 9), "red").save(photos / "1.png")
    (out / "2_segments.json").write_text('{"info": 3}')
    before = times(out)
    ovseg(*words(segmenter, photos, out))
    rewritten = {name for name, time in times(out).items() if time != before[name]}
    assert rewritten == {name for name in before if name[0] in "12"}


def test_the_fingerprint_changes_with_network_settings_and_vocabulary(tmp_path: Path) -> None:
    network, words = tiny.segmenter(tmp_path / "clip"), Vocabulary(("cat", "sky"))
    first = fingerprint(network, words, 1)
    network.save_pretrained(tmp_path / "model")
    assert fingerprint(OpenVocabSegmenter.from_pretrained(tmp_path / "model"), words, 1) == first
    others = {
        fingerprint(network, words, 2),
        fingerprint(network, Vocabulary(("cat", "sky"), (("cat",), ("a sky",))), 1),
    }
    network.views = Views(mirror=True)
    others.add(fingerprint(network, words, 1))
    network.views, network.mask_threshold = Views(), 0.4
    others.add(fingerprint(network, words, 1))
    network.mask_threshold = 0.5
    assert fingerprint(network, words, 1) == first
    network.clip.visual.prompt.mask_embedding.data[0, 0, 0] += 0.01  # type: ignore[union-attr]
    others.add(fingerprint(network, words, 1))
    assert len(others) == 5 and first not in others


@pytest.mark.parametrize("change", ["order", "last digit"])
def test_the_fingerprint_changes_with_order_and_last_digit_of_the_weights(change: str, tmp_path: Path) -> None:
    network, words = tiny.segmenter(tmp_path / "clip"), Vocabulary(("cat", "sky"))
    first, weight = fingerprint(network, words), network.proposer.query_head[0].weight.data
    if change == "order":
        weight.copy_(weight.flip(0))
    else:
        weight[0, 0] += 1e-7
    assert fingerprint(network, words) != first


def test_broken_images_are_listed_and_the_others_segmented(
    segmenter: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    (photos / "0.png").write_text("hello")
    (photos / "1.png").write_bytes((photos / "2.png").read_bytes()[:70])
    for workers in (1, 0):  # the second run has only the broken images left
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            ovseg(*words(segmenter, photos, tmp_path / "out", "--data.num_workers", workers))
        assert stopped.value.code == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if str(photos) in line or "could not" in line]
        assert lines[0] == "2 images could not be used:"
        assert lines[1].startswith(f"{photos / '0.png'} is not an image")
        assert lines[2].startswith(f"{photos / '1.png'} cannot be used")
        assert sorted(files(tmp_path / "out")) == ["2_labels.png", "2_overlay.png", "2_segments.json"]


def test_two_processes_resume_the_run_of_one(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    ovseg(*words(segmenter, photos, tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "1_overlay.png").unlink()
    (photos / "3.png").write_text("hello")  # read by the second process, reported by the first
    ddp = ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ovseg", *words(segmenter, photos, tmp_path / "two", *ddp)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 1 and "MEMBER: 2/2" in done.stderr, done.stderr
    assert done.stderr.count("1 images could not be used:") == 1 and "3.png is not an image" in done.stderr
    assert "1 images segmented into" in done.stdout and "2 already complete" in done.stdout
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_tasks_other_than_segmentation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a LightningModule; see conf/segment\.yaml"):
        SegmentationWriter(tmp_path).setup(L.Trainer(logger=False), L.LightningModule(), "predict")


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    (tmp_path / "out").mkdir()
    with files_of_at_most(60), pytest.raises(InputError) as error:
        save_picture(picture, tmp_path / "out" / "0_overlay.png")
    assert str(error.value).startswith(f"{tmp_path}/out/0_overlay.png cannot be written (File too large); free disk")
    assert list((tmp_path / "out").iterdir()) == []
    save_picture(picture, tmp_path / "out" / "0_overlay.png")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["0_overlay.png"]


def test_a_full_disk_without_a_file_name_is_one_sentence(
    segmenter: Path, photos: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SegmentationWriter, "setup", fail)
    assert refusal(capsys, *words(segmenter, photos, tmp_path / "out")).startswith("a file cannot be written (No space")
