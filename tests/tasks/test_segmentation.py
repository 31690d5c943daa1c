"""Testing and predicting with a segmenter folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ovseg.metrics import MeanIoU
from ovseg.models import OpenVocabSegmenter
from ovseg.structures import EvalBatch, InputError, Vocabulary
from ovseg.tasks import Segmentation, SegmentationTask
from tests import tiny
from tests.tasks.data import Batches, trainer

VOCABULARY = Vocabulary(("cat", "red sky", "grass", "a dog"), seen=(True, False, True, False))
SIZES = [(80, 70), (50, 70), (33, 64)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny.segmenter(tmp_path / "clip").save_pretrained(tmp_path / "segmenter")
    return str(tmp_path / "segmenter")


def batches() -> list[EvalBatch]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for index, (image, size) in enumerate(zip(tiny.images((64, 64), (50, 70), (64, 96)), SIZES, strict=True)):
        labels = torch.randint(0, 5, size, generator=generator)
        labels[labels == 4] = 255
        found.append(EvalBatch([image], [size], [f"{index}.jpg"], [labels]))
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"ensemble_weight": 0.2, "mask_threshold": 0.6}, {"classifier": "clip"}, {"ensemble_weight": 0.0}]
)
def test_metrics_equal_those_computed_outside(folder: str, settings: dict[str, Any]) -> None:
    (result,) = trainer().test(SegmentationTask(folder, **settings), Batches(batches(), VOCABULARY), verbose=False)
    segmenter = OpenVocabSegmenter.from_pretrained(folder)
    for name, value in settings.items():
        setattr(segmenter, name, value)
    segmenter.set_vocabulary(VOCABULARY)
    miou = MeanIoU(VOCABULARY.names, seen=VOCABULARY.seen)
    for batch in batches():
        (scores,) = segmenter(batch.images, batch.sizes)
        miou.update(scores.argmax(0), batch.labels[0])
    expected = miou.compute()
    assert result.keys() == {f"test/{name}" for name in expected}
    for name, value in expected.items():
        assert result[f"test/{name}"] == pytest.approx(value.item(), abs=2e-3, nan_ok=True), name


@pytest.mark.parametrize("case", ["255 is a class", "background is one class of two names"])
def test_labels_of_every_vocabulary_are_counted(case: str, folder: str) -> None:
    if case == "255 is a class":
        vocabulary = Vocabulary(tuple(f"word {number}" for number in range(256)))
        labels = [(batch.labels[0] + 252).where(batch.labels[0] != 255, 65535) for batch in batches()]
    else:
        vocabulary = Vocabulary(VOCABULARY.names, background_from=2)
        labels = [batch.labels[0].clamp(max=2).where(batch.labels[0] != 255, 255) for batch in batches()]
    data = [batch._replace(labels=[found]) for batch, found in zip(batches(), labels, strict=True)]
    (result,) = trainer().test(SegmentationTask(folder), Batches(data, vocabulary), verbose=False)

    segmenter = OpenVocabSegmenter.from_pretrained(folder)
    segmenter.set_vocabulary(vocabulary)
    miou = MeanIoU(vocabulary.scored_names, ignore_index=65535 if len(vocabulary) == 256 else 255)
    for batch in data:
        found = segmenter.labels(batch.images, batch.sizes)[0]
        miou.update(found if len(vocabulary) == 256 else found.where(found < 2, 2), batch.labels[0])
    assert int(miou.confusion.sum()) == sum(int((batch.labels[0] != 255).sum()) for batch in batches())
    for name, value in miou.compute().items():
        assert result[f"test/{name}"] == pytest.approx(value.item(), abs=1e-6, nan_ok=True), name


def test_the_vocabulary_is_that_of_the_data_of_each_run(folder: str) -> None:
    task = SegmentationTask(folder)
    (first,) = trainer().test(task, Batches(batches(), VOCABULARY), verbose=False)
    names = Vocabulary(VOCABULARY.names[::-1])
    (other,) = trainer().test(task, Batches(batches(), names), verbose=False)
    (again,) = trainer().test(task, Batches(batches(), VOCABULARY), verbose=False)
    assert first == again and first != other and "test/miou_union_seen" not in other


def test_predictions_are_the_segmenter_s_labels(folder: str) -> None:
    task = SegmentationTask(folder)
    found = trainer().predict(task, Batches(batches(), VOCABULARY))
    segmenter = OpenVocabSegmenter.from_pretrained(folder)
    segmenter.set_vocabulary(VOCABULARY)
    assert found is not None and len(found) == 3
    for batch, answers in zip(batches(), found, strict=True):
        (answer,) = answers
        assert isinstance(answer, Segmentation) and [answer.name] == batch.names
        assert torch.equal(answer.labels, segmenter.labels(batch.images, batch.sizes)[0])


def test_images_come_at_the_segmenter_s_resolution_unless_the_data_says_otherwise(folder: str) -> None:
    for resize, expected in ((None, (64, 128)), ((32, 48), (32, 48))):
        data = Batches(batches(), VOCABULARY)
        data.dataset.resize = resize
        trainer().test(SegmentationTask(folder), data, verbose=False)
        assert data.dataset.resize == expected


@pytest.mark.parametrize("settings", [{"ensemble_weight": 1.5}, {"mask_threshold": -0.1}])
def test_settings_out_of_range_are_refused(folder: str, settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=f"{name} is .*; give a number from 0 to 1"):
        SegmentationTask(folder, **settings)
