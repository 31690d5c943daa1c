"""Tests of the report of `ovseg test`."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ovseg.callbacks import ReportWriter
from ovseg.callbacks.findings import Confusion, ImageScore, choose, confusions, image_iou
from ovseg.data import SegmentationBenchmark
from ovseg.data.benchmarks.ade20k import ReducedImages
from ovseg.structures import Vocabulary
from ovseg.tasks import SegmentationTask
from tests import tiny
from tests.stages import CONF, ovseg
from tests.tasks.data import trainer

# Parts of the report


def test_iou_of_an_image_by_hand() -> None:
    labels = torch.tensor([[0, 0, 2], [2, 2, 255]])
    preds = torch.tensor([[0, 3, 2], [2, 0, 1]])
    # intersection over union is 1 / 3 for class 0, 2 / 3 for class 2 and 0 / 1 for class 3; class 1 is not labelled
    assert float(image_iou(preds, labels, 4, 255)) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert math.isnan(image_iou(preds, torch.full((2, 3), 65535), 4, 65535))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (9, {"best": "876", "median": "345", "worst": "012"}),
        (6, {"best": "54", "median": "23", "worst": "01"}),
        (2, {"best": "1", "median": "0", "worst": "0"}),
        (0, {}),
    ],
)
def test_images_are_chosen_by_rank(images: int, expected: dict[str, str]) -> None:
    scores = [ImageScore(str(index), index / 10) for index in range(images)] + [ImageScore("unlabelled", math.nan)]
    names = {group: "".join(score.name for score in chosen) for group, chosen in choose(scores[::-1]).items()}
    assert names == expected


def test_confusions_are_ranked_by_pixels() -> None:
    counts = torch.tensor([[50, 0, 3], [4, 1, 0], [0, 0, 9]])
    expected = [Confusion("b", "a", 4, 4 / 5), Confusion("a", "c", 3, 3 / 53)]
    assert confusions(counts, "abc") == expected
    assert confusions(counts, "abc", limit=1) == expected[:1]


# Files of a run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write four scenes and a segmenter with random weights."""
    root = tmp_path_factory.mktemp("report")
    ovseg("toy", "--out", root / "world", "--scenes", 1, "--val_scenes", 4)
    tiny.segmenter(root / "clip", templates="single").save_pretrained(root / "segmenter")
    return root


@pytest.fixture(scope="module")
def run(world: Path) -> tuple[Path, str]:
    """Run `ovseg test`, and return the run folder and what was printed."""
    data = [
        "--data.images",
        world / "world" / "val2017",
        "--data.labels",
        world / "world" / "stuffthingmaps" / "val2017",
    ]
    flags = ["--model.segmenter", world / "segmenter", "--trainer.enable_progress_bar", "false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        printed: list[str] = []
        root_dir = ["--trainer.default_root_dir", world / "run"]
        ovseg("test", "--config", CONF / "toy" / "test.yaml", *data, *flags, *root_dir)
    return world / "run", "\n".join(printed)


class Page(HTMLParser):
    """Collects the links and texts of a page, and checks that its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_report_contains_the_logged_numbers(run: tuple[Path, str]) -> None:
    folder, printed = run
    report = json.loads((folder / "report.json").read_text())
    with next(folder.rglob("metrics.csv")).open() as lines:
        logged = {
            name.removeprefix("test/"): value for name, value in next(csv.DictReader(lines)).items() if "/" in name
        }
    assert report["metrics"].keys() == logged.keys()
    for name, value in report["metrics"].items():
        assert (math.nan if value is None else value) == pytest.approx(float(logged[name]), nan_ok=True)
    assert report["images"] == 4 and report["images_per_second"] > 0 and report["peak_memory_mib"] > 100
    assert report["command"].startswith("ovseg test --config ") and report["versions"]["torch"]

    rows = [line.split() for line in printed.splitlines()]
    metrics = report["metrics"]
    assert [
        "mIoU",
        "(union)",
        *(f"{100 * metrics[f'miou_union{group}']:.1f}" for group in ("", "_seen", "_unseen")),
    ] in [row[:5] for row in rows]
    assert "test/miou_union" not in printed  # Lightning's own table is not printed
    assert printed.splitlines()[-2].endswith(", 32-true")


def test_the_classes_are_consistent_with_the_metrics(run: tuple[Path, str]) -> None:
    folder, _ = run
    report = json.loads((folder / "report.json").read_text())
    with (folder / "per_class.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 24 and rows[0]["name"] == "circle" and rows[0]["seen"] == "True"
    present = [row for row in rows if row["iou"]]
    assert len(present) == report["classes_in_labels"] < 24
    assert sum(float(row["iou"]) for row in present) / len(present) == pytest.approx(report["metrics"]["miou_target"])
    union = [row for row in rows if int(row["pixels"]) or int(row["predicted"])]
    assert len(union) == report["classes_in_labels_or_predictions"]
    correct = sum(float(row["mask_accuracy"]) * int(row["regions"]) for row in present)
    assert correct / sum(int(row["regions"]) for row in rows) == pytest.approx(report["metrics"]["mask_accuracy"])
    pixels = sum(int(row["pixels"]) for row in rows)
    assert pixels == sum(int(row["predicted"]) for row in rows)
    confused = sum(row["pixels"] for row in report["confusions"])
    assert 0 < confused <= pixels * (1 - report["metrics"]["pacc"]) + 1


def test_the_page_is_self_contained(run: tuple[Path, str]) -> None:
    folder, _ = run
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert "<th>all</th><th>seen</th><th>unseen</th><th>harmonic</th>" in text
    assert len(page.links) == 6 and all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not re.search(r"<script|@import|url\(|https?:", text.split("<h2>Run")[0])
    for link in page.links:
        with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as picture:
            picture.load()
            assert picture.width > picture.height >= 300
    config = yaml.safe_load((folder / "test.yaml").read_text())
    assert config["model"]["init_args"]["segmenter"] in "".join(page.texts)


@pytest.mark.parametrize("case", ["255 is a class", "background is one class of many", "scored at another size"])
def test_every_vocabulary_and_size_can_be_reported(case: str, world: Path, tmp_path: Path) -> None:
    folders: list[Any] = [world / "world" / "val2017", world / "world" / "stuffthingmaps" / "val2017"]
    names = [f"<word> {index}" for index in range(300 if case == "255 is a class" else 30)]
    (tmp_path / "words.txt").write_text("\n".join(names))
    if case == "255 is a class":  # then 65535 is unlabelled
        for file in sorted(folders[1].iterdir()):
            with Image.open(file) as labels:
                values = np.asarray(labels).astype(np.uint16) + 270
            values[values == 255 + 270] = 65535
            values[:3] = 65535
            Image.fromarray(values).save(tmp_path / file.name)
        folders[1] = tmp_path
    data = SegmentationBenchmark(*map(str, folders), str(tmp_path / "words.txt"))
    if case == "background is one class of many":
        data.dataset.read_labels = lambda path, size: data.labels(path, size).clamp(max=5)
        data.vocabulary = Vocabulary(tuple(names), background_from=5)
    if case == "scored at another size":
        data.dataset = ReducedImages(data.labels, None, short_side=50)
    task = SegmentationTask(str(world / "segmenter"))
    trainer(0, ReportWriter(tmp_path / "run")).test(task, data, verbose=False)

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["name"] for row in report["classes"]] == list(data.vocabulary.scored_names)
    text = (tmp_path / "run" / "report.html").read_text()
    assert len(Page(text).links) == 6 and "&lt;word&gt;" in text and "<word>" not in text
    assert "<th>all</th><th>definition</th>" in text  # no columns for seen and unseen classes, which are unknown
