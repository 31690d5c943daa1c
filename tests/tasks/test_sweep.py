"""A sweep gives the numbers of as many single tests, and reports them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from ovseg.callbacks.sweep import SweepWriter, best_setting, table
from ovseg.models import OpenVocabSegmenter
from ovseg.models.views import Views
from ovseg.structures import EvalBatch, InputError, Vocabulary
from ovseg.tasks import SegmentationTask, SweepTask
from ovseg.tasks.sweep import Setting, labels_of_grid
from tests import tiny
from tests.stages import CONF, ovseg, refusal
from tests.tasks.data import Batches, trainer

VOCABULARY = Vocabulary(("cat", "red sky", "grass", "a dog"), seen=(True, False, True, False))
WEIGHTS, THRESHOLDS = [0.7, 0.0, 1.0], [0.5, 0.8]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny.segmenter(tmp_path / "clip", classifier="clip").save_pretrained(tmp_path / "segmenter")
    return str(tmp_path / "segmenter")


def batches() -> list[EvalBatch]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(80, 70), (33, 64)]
    labels = [torch.randint(0, 4, size, generator=generator) for size in sizes]
    labels[0][:9] = 255
    return [
        EvalBatch([image], [size], ["0.jpg"], [label])
        for image, size, label in zip(tiny.images((64, 64), (64, 96)), sizes, labels, strict=True)
    ]


def confusion(task: SegmentationTask | SweepTask) -> torch.Tensor:
    """What the data makes a task count; of a sweep, at its first setting."""
    trainer().test(task, Batches(batches(), VOCABULARY), verbose=False)
    return (task.miou if isinstance(task, SegmentationTask) else task.mious[0]).confusion


def test_every_setting_counts_what_a_run_of_its_own_counts(folder: str) -> None:
    sweep = SweepTask(folder, WEIGHTS, THRESHOLDS)
    confusion(sweep)
    assert list(sweep.results) == [(threshold, weight) for threshold in THRESHOLDS for weight in sorted(WEIGHTS)]
    matrices = []
    for setting, miou in zip(sweep.settings, sweep.mious, strict=True):
        alone = SegmentationTask(folder, setting.ensemble_weight, setting.mask_threshold, classifier="ensemble")
        assert torch.equal(confusion(alone), miou.confusion)
        expected = {name: float(value) for name, value in alone.miou.compute().items()}
        assert sweep.results[setting] == pytest.approx(expected, nan_ok=True)
        matrices.append(miou.confusion)
    different = {tuple(matrix.flatten().tolist()) for matrix in matrices}
    assert len(different) == 5  # of six, as the threshold does not matter where CLIP has no say


def test_each_network_runs_no_more_often_than_needed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = OpenVocabSegmenter.from_pretrained(folder)
    segmenter.set_vocabulary(VOCABULARY)
    (image,) = tiny.images((64, 96))
    calls: list[str] = []
    segmenter.proposer.register_forward_hook(lambda *_: calls.append("proposals"))
    segmenter.clip.visual.register_forward_hook(lambda *_: calls.append("clip"))
    assert len(list(labels_of_grid(segmenter, image, (64, 96), [0.3, 0.5, 0.8], [0.0, 0.2, 0.7, 1.0]))) == 12
    assert calls == ["proposals", "clip", "clip", "clip"]
    calls.clear()
    assert len(list(labels_of_grid(segmenter, image, (64, 96), [0.3, 0.5], [0.0]))) == 2
    assert calls == ["proposals"]


def test_views_are_swept_as_they_are_answered(folder: str) -> None:
    segmenter = OpenVocabSegmenter.from_pretrained(folder)
    segmenter.classifier, segmenter.views = "ensemble", Views(mirror=True, window=64)
    segmenter.set_vocabulary(VOCABULARY)
    (image,) = tiny.images((64, 96))
    (swept,) = labels_of_grid(segmenter, image, (70, 100), [0.5], [0.7])
    assert torch.equal(swept, segmenter.labels([image], [(70, 100)])[0])


def test_all_classes_of_the_background_count_as_one(folder: str) -> None:
    data = [batch._replace(labels=[batch.labels[0].clamp(max=2)]) for batch in batches()]
    task = SweepTask(folder, [0.7], [0.5])
    trainer().test(task, Batches(data, Vocabulary(VOCABULARY.names, background_from=2)), verbose=False)
    (miou,) = task.mious
    assert miou.confusion.shape == (3, 3)
    assert int(miou.confusion.sum()) == sum(batch.labels[0].numel() for batch in data)


RESULTS = {
    Setting(threshold, weight): {"miou_union": value, "pacc": 1 - value}
    for (threshold, weight), value in {(0.4, 0.6): 0.25, (0.4, 0.7): 0.5, (0.5, 0.6): 0.125, (0.5, 0.7): 0.0}.items()
}


def test_the_best_setting_is_that_of_the_metric() -> None:
    assert best_setting(RESULTS, "miou_union") == (0.4, 0.7)
    assert best_setting(RESULTS, "pacc") == (0.5, 0.7)
    assert [line.split() for line in table(RESULTS, "miou_union")[1:]] == [
        ["0.6", "0.7", "(ensemble_weight)"],
        ["threshold", "0.4", "25.00", "50.00"],
        ["threshold", "0.5", "12.50", "0.00"],
    ]


def test_a_sweep_without_labels_has_no_best_setting(tmp_path: Path) -> None:
    undefined = {setting: {"miou_union": float("nan")} for setting in RESULTS}
    with pytest.raises(InputError, match="miou_union is undefined because no pixel is labelled"):
        best_setting(undefined, "miou_union")


@pytest.mark.parametrize(
    ("weights", "thresholds", "reason"),
    [
        ([], [0.5], r"ensemble_weights are \[\]"),
        ([0.5, 0.5], [0.5], "ensemble_weights are"),
        ([0.5], [1.5], r"mask_thresholds are \[1.5\]; give one or more distinct numbers from 0 to 1"),
    ],
)
def test_grids_that_cannot_be_used_are_refused(weights: list[float], thresholds: list[float], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        SweepTask("toy", weights, thresholds)


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Of a sweep over two scenes, with networks of random weights."""
    root = tmp_path_factory.mktemp("sweep")
    ovseg("toy", "--out", root / "world", "--scenes", 1, "--val_scenes", 2)
    tiny.segmenter(root / "clip").save_pretrained(root / "segmenter")
    data = ["--data.images", root / "world" / "val2017", "--data.labels", root / "world" / "stuffthingmaps" / "val2017"]
    return ["--config", CONF / "toy" / "sweep.yaml", *data, "--model.segmenter", root / "segmenter"]


def test_the_command_writes_a_table_and_a_picture(
    flags: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--model.ensemble_weights", "[0.2, 0.8]", "--model.mask_thresholds", "[0.4, 0.6, 0.9]"]
    ovseg("sweep", *flags, *grid, "--out", tmp_path, "--metric", "pacc")
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [(row["mask_threshold"], row["ensemble_weight"]) for row in rows] == [
        (threshold, weight) for threshold in ("0.4", "0.6", "0.9") for weight in ("0.2", "0.8")
    ]
    best = max(rows, key=lambda row: float(row["pacc"]))
    assert float(best["pacc"]) > 0 and {"miou_union", "miou_target"} <= best.keys()
    printed = capsys.readouterr().out
    flag = f"--model.ensemble_weight {best['ensemble_weight']} --model.mask_threshold {best['mask_threshold']}"
    assert f"best: {100 * float(best['pacc']):.2f} with {flag}" in printed
    assert "use held-out data instead" in printed
    assert "sweep.png (32-true)\n" in printed
    with Image.open(tmp_path / "sweep.png") as picture:
        assert min(picture.size) > 200
    assert (tmp_path / "sweep.yaml").is_file()


def test_only_a_sweep_is_swept(flags: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = ["--config", CONF / "toy" / "test.yaml", *flags[2:], "--out", tmp_path]
    assert "sweep needs a SweepTask, not SegmentationTask; see conf/sweep.yaml" in refusal(capsys, "sweep", *test)


def test_the_writer_writes_what_the_task_found(folder: str, tmp_path: Path) -> None:
    task = SweepTask(folder, WEIGHTS, THRESHOLDS)
    trainer(0, SweepWriter(tmp_path / "out")).test(task, Batches(batches(), VOCABULARY), verbose=False)
    rows = list(csv.DictReader((tmp_path / "out" / "sweep.csv").open()))
    assert len(rows) == 6
    for row, (setting, values) in zip(rows, task.results.items(), strict=True):
        assert {name: float(cell) for name, cell in row.items()} == pytest.approx(
            {**setting._asdict(), **values}, nan_ok=True
        )
