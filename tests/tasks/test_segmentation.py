"""Testing and predicting with a segmenter folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ovseg.callbacks import SegmentationWriter
from ovseg.data import ImagesDataModule, SegmentationBenchmark
from ovseg.metrics import MeanIoU
from ovseg.models import OpenVocabSegmenter
from ovseg.models.views import Views
from ovseg.structures import EvalBatch, InputError, Vocabulary
from ovseg.tasks import Segmentation, SegmentationTask, SweepTask
from ovseg.tasks.segmentation import Oracle
from ovseg.tasks.segments import oracle_scores, relabel_segments, segment_masks
from tests import tiny
from tests.tasks.data import Batches, trainer

VOCABULARY = Vocabulary(("cat", "red sky", "grass", "a dog"), seen=(True, False, True, False))
SIZES = [(80, 70), (50, 70), (33, 64)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("segmenter")
    tiny.segmenter(root / "clip").save_pretrained(root / "saved")
    return str(root / "saved")


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
    beside = {"mask_accuracy", "mask_accuracy_seen", "mask_accuracy_unseen", "proposal_recall"}
    assert result.keys() == {f"test/{name}" for name in expected.keys() | beside}
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


class Shapes(L.Callback):
    """The resolution of every image."""

    def __init__(self) -> None:
        self.found: list[tuple[int, ...]] = []

    def on_test_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, *_: Any) -> None:
        self.found += [tuple(image.shape[1:]) for image in batch.images]

    on_predict_batch_start = on_test_batch_start


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A segmenter of another resolution."""
    root = tmp_path_factory.mktemp("other")
    segmenter = tiny.segmenter(root / "clip")
    segmenter.resize = (48, 96)
    segmenter.save_pretrained(root / "saved")
    return str(root / "saved")


def photo(root: Path) -> Path:
    """An image of 80 × 70, and labels of it beside."""
    for name, mode in (("images", "RGB"), ("labels", "L")):
        (root / name).mkdir()
        Image.new(mode, (70, 80)).save(root / name / "0.png")
    return root


@pytest.mark.parametrize("resize", [None, (32, 64)])
def test_each_segmenter_gets_its_resolution_from_one_benchmark(
    folder: str, other: str, tmp_path: Path, resize: tuple[int, int] | None
) -> None:
    """Unless the data has one of its own; a task that says none gets the images as they are."""
    root = photo(tmp_path)
    data = SegmentationBenchmark(str(root / "images"), str(root / "labels"), "cat, sky", resize=resize)
    shapes = Shapes()
    tasks = [SegmentationTask(folder), SegmentationTask(other), SweepTask(folder, [0.5], [0.5]), Silent()]
    for task in tasks:
        trainer(0, shapes).test(task, data, verbose=False)
    own = [(73, 64), (55, 48), (73, 64), (80, 70)]
    assert shapes.found == (own if resize is None else [(37, 32)] * 4)


class Silent(L.LightningModule):
    """Takes what comes."""

    def test_step(self, batch: EvalBatch, batch_index: int) -> None: ...


def test_each_run_segments_all_images_at_its_resolution(folder: str, other: str, tmp_path: Path) -> None:
    data, shapes = ImagesDataModule(str(photo(tmp_path) / "images"), "cat, sky"), Shapes()
    for segmenter, out in ((folder, "first"), (folder, "first"), (other, "second")):
        writer = SegmentationWriter(tmp_path / out)
        trainer(0, shapes, writer).predict(SegmentationTask(segmenter), data, return_predictions=False)
    assert shapes.found == [(73, 64), (55, 48)]  # nothing was left to do in the second run
    assert (tmp_path / "second" / "0_segments.json").is_file()


def test_regions_and_proposals_are_counted_as_outside(folder: str) -> None:
    (result,) = trainer().test(SegmentationTask(folder, mask_threshold=0.4), Batches(batches(), VOCABULARY))
    segmenter = OpenVocabSegmenter.from_pretrained(folder)
    segmenter.set_vocabulary(VOCABULARY)
    right, regions, best = torch.zeros(4), torch.zeros(4), []
    for batch in batches():
        (image,), (labels,) = batch.images, batch.labels
        coarse = F.interpolate(labels[None, None].float(), image.shape[1:], mode="nearest-exact")[0, 0]
        ((_, probs),) = segmenter.score_proposals([image])
        fine = F.interpolate((probs > 0.4)[None].float(), labels.shape, mode="nearest-exact")[0].bool()
        for index in range(4):
            logits, _ = segmenter.classify_regions(image, (coarse == index)[None])
            right[index] += int(logits.argmax()) == index
            regions[index] += 1
            segment, found = labels == index, fine & (labels != 255)
            best.append(max(float((segment & one).sum() / (segment | one).sum()) for one in found))
    seen = torch.tensor(VOCABULARY.seen)
    assert 0 < right.sum() < 12
    assert result["test/mask_accuracy"] == pytest.approx(float(right.sum() / 12))
    assert result["test/mask_accuracy_seen"] == pytest.approx(float(right[seen].sum() / 6))
    assert result["test/mask_accuracy_unseen"] == pytest.approx(float(right[~seen].sum() / 6))
    assert result["test/proposal_recall"] == pytest.approx(sum(best) / len(best), abs=1e-6)


@pytest.mark.parametrize("kind", [None, "classes"])
def test_views_are_averaged_and_their_proposals_count(folder: str, kind: Oracle | None) -> None:
    data = Batches([EvalBatch(tiny.images((48, 90)), [(50, 70)], ["0.jpg"], [batches()[1].labels[0]])], VOCABULARY)

    def tested(views: Views | None) -> dict[str, float]:
        task = SegmentationTask(folder, oracle=kind, views=views)
        return dict(trainer().test(task, data, verbose=False)[0])

    whole, mirrored, windows = tested(None), tested(Views(mirror=True)), tested(Views(window=48, stride=21))
    assert tested(Views(window=96)) == whole
    assert mirrored["test/pacc"] != whole["test/pacc"] != windows["test/pacc"]
    assert mirrored["test/proposal_recall"] >= whole["test/proposal_recall"] > 0
    for result in (mirrored, windows):  # regions are named as they are
        assert result["test/mask_accuracy"] == whole["test/mask_accuracy"]
    if kind is None:
        segmenter = OpenVocabSegmenter.from_pretrained(folder)
        segmenter.views = Views(window=48, stride=21)
        segmenter.set_vocabulary(VOCABULARY)
        (batch,) = data.batches
        miou = MeanIoU(VOCABULARY.names)
        miou.update(segmenter.labels(batch.images, batch.sizes)[0], batch.labels[0])
        assert windows["test/miou_union"] == pytest.approx(float(miou.compute()["miou_union"]))


def oracle(folder: str, kind: Oracle, data: list[EvalBatch]) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Metrics of a test with an oracle, and its answers."""
    answers = Answers()
    (result,) = trainer(0, answers).test(SegmentationTask(folder, oracle=kind), Batches(data, VOCABULARY))
    return dict(result), answers.labels


class Answers(L.Callback):
    """Keeps what a test step gives."""

    def __init__(self) -> None:
        self.labels: list[torch.Tensor] = []

    def on_test_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.labels += [answer.labels for answer in outputs["answers"]]


def squares() -> list[EvalBatch]:
    """Four squares of four classes at network resolution, and a pixel of one class too small for it."""
    labels = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(64, 0).repeat_interleave(64, 1)
    labels[:64, :64], labels[1, 1], labels[2, 2] = 3, 0, 255
    (image,) = tiny.images((64, 64))
    return [EvalBatch([image], [(128, 128)], ["0.jpg"], [labels])]


def test_oracle_masks_are_named_by_clip_and_by_nothing_else(folder: str) -> None:
    result, (answer,) = oracle(folder, "masks", squares())
    labels = squares()[0].labels[0]
    assert "test/proposal_recall" not in result
    for index in range(4):  # a segment has one name
        assert len(torch.unique(answer[labels == index])) == 1
    right = sum(bool((answer[labels == index] == index).all()) for index in range(4))
    assert result["test/mask_accuracy"] == right / 4  # the same names, by segments
    assert result["test/pacc"] == pytest.approx(
        float((answer == labels).sum() / (labels != 255).sum()), abs=1e-6
    )  # and by pixels

    segmenter = OpenVocabSegmenter.from_pretrained(folder)
    segmenter.set_vocabulary(VOCABULARY)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, :32, 32:] = True
    logits, _ = segmenter.classify_regions(squares()[0].images[0], mask)
    assert answer[0, -1] == logits.argmax()


def test_oracle_classes_leave_only_the_proposals_to_err(folder: str) -> None:
    for data in (batches(), squares()):
        _, answers = oracle(folder, "classes", data)
        segmenter = OpenVocabSegmenter.from_pretrained(folder)
        segmenter.set_vocabulary(VOCABULARY)
        for batch, answer in zip(data, answers, strict=True):
            (labels,) = batch.labels
            ((_, probs),) = segmenter.score_proposals(batch.images)
            masks = F.interpolate((probs > 0.5)[None].float(), labels.shape, mode="nearest-exact")[0].bool()
            scores = torch.zeros(4, *labels.shape)
            for mask, prob in zip(masks & (labels != 255), probs, strict=True):
                ious = torch.tensor([(mask & (labels == k)).sum() / (mask | (labels == k)).sum() for k in range(4)])
                if ious.max() > 0:
                    scores[ious.argmax()] += F.interpolate(prob[None, None], labels.shape, mode="bilinear")[0, 0]
            assert (answer == scores.argmax(0)).float().mean() > 0.999


def test_perfect_parts_leave_nothing_to_the_oracle() -> None:
    labels = torch.tensor([[0, 0, 3], [0, 255, 3], [2, 2, 2]])
    classes, masks = segment_masks(labels, (3, 3), 255)
    assert classes.tolist() == [0, 2, 3]
    assert torch.equal(relabel_segments(labels, classes, classes).where(labels != 255, 255), labels)
    assert torch.equal(oracle_scores(masks, labels, 255), torch.eye(3))
    assert torch.equal(oracle_scores(torch.zeros_like(masks), labels, 255), torch.zeros(3, 3))


@pytest.mark.parametrize("kind", [None, "masks", "classes"])
def test_images_without_labels_count_nowhere(folder: str, kind: Oracle | None) -> None:
    empty = batches()[0]._replace(labels=[torch.full((80, 70), 255)])
    for data in ([empty], [*batches(), empty]):
        (result,) = trainer().test(SegmentationTask(folder, oracle=kind), Batches(data, VOCABULARY), verbose=False)
        if len(data) == 1:
            assert all(math.isnan(value) for value in result.values())
        else:
            assert [result] == trainer().test(
                SegmentationTask(folder, oracle=kind), Batches(batches(), VOCABULARY), verbose=False
            )


def test_true_segments_are_named_only_where_wanted(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the proposals alone, CLIP then has nothing to do."""
    named = trainer().test(SegmentationTask(folder, classifier="proposals"), Batches(batches(), VOCABULARY))[0]
    monkeypatch.setattr(OpenVocabSegmenter, "classify_regions", None)
    task = SegmentationTask(folder, classifier="proposals", name_segments=False)
    (plain,) = trainer().test(task, Batches(batches(), VOCABULARY))
    assert plain == {name: value for name, value in named.items() if "mask_accuracy" not in name} != named
    with pytest.raises(InputError, match="oracle masks needs the classes that CLIP predicts for segments"):
        SegmentationTask(folder, oracle="masks", name_segments=False)


def test_oracles_are_refused_where_they_mean_nothing(folder: str) -> None:
    with pytest.raises(InputError, match="oracle masks lets CLIP alone classify the masks; remove classifier ensemble"):
        SegmentationTask(folder, oracle="masks", classifier="ensemble")
    with pytest.raises(InputError, match="oracle classes needs labels"):
        trainer().predict(SegmentationTask(folder, oracle="classes"), Batches(batches(), VOCABULARY))


@pytest.mark.parametrize("settings", [{"ensemble_weight": 1.5}, {"mask_threshold": -0.1}])
def test_settings_out_of_range_are_refused(folder: str, settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=f"{name} is .*; give a number from 0 to 1"):
        SegmentationTask(folder, **settings)
