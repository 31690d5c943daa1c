"""Masks that the data bring take the place of a segmenter's own proposals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image
from torch import Tensor

from ovseg import rle
from ovseg.models import OpenVocabSegmenter
from ovseg.models.views import Views
from ovseg.structures import EvalBatch, InputError, Vocabulary
from ovseg.tasks import SegmentationTask, SweepTask
from tests import tiny
from tests.stages import ovseg
from tests.tasks.data import Batches, trainer

VOCABULARY = Vocabulary(("cat", "red sky", "grass", "a dog"))
SIZES = [(64, 64), (64, 96)]


class MaskedBatches(Batches):
    """Batches that bring masks."""

    masks = "from a file"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("segmenter")
    tiny.segmenter(root / "clip").save_pretrained(root / "saved")
    return str(root / "saved")


def quarters(size: tuple[int, int]) -> Tensor:
    """(4, H, W) bool, no pixel in two of them."""
    rows, columns = torch.arange(size[0]) < size[0] // 2, torch.arange(size[1]) < size[1] // 2
    return torch.stack([(rows == top)[:, None] & (columns == left) for top in (True, False) for left in (True, False)])


def batches() -> list[EvalBatch]:
    """Four quarters of four classes each, which are also the masks."""
    answer = []
    for index, (image, size) in enumerate(zip(tiny.images(*SIZES), SIZES, strict=True)):
        masks = quarters(size)
        labels = masks.long().argmax(0)
        answer.append(EvalBatch([image], [size], [f"{index}.png"], [labels], masks=[masks]))
    return answer


def test_true_masks_score_what_the_mask_oracle_scores(folder: str) -> None:
    """Where CLIP alone classifies masks that do not overlap, the answer is the names of the true segments."""
    given = SegmentationTask(folder)
    trainer().test(given, MaskedBatches(batches(), VOCABULARY), verbose=False)
    oracle = SegmentationTask(folder, oracle="masks")
    trainer().test(oracle, Batches(batches(), VOCABULARY), verbose=False)
    assert torch.equal(given.miou.confusion, oracle.miou.confusion)
    assert given.recall.compute() == 1
    own = SegmentationTask(folder)
    trainer().test(own, Batches(batches(), VOCABULARY), verbose=False)
    assert not torch.equal(own.miou.confusion, given.miou.confusion)


def test_a_task_returns_to_its_network(folder: str) -> None:
    task, plain = SegmentationTask(folder), SegmentationTask(folder)
    trainer().test(task, MaskedBatches(batches(), VOCABULARY), verbose=False)
    assert task.segmenter.classifier == "clip"
    for each in (task, plain):
        trainer().test(each, Batches(batches(), VOCABULARY), verbose=False)
    assert torch.equal(task.miou.confusion, plain.miou.confusion) and task.segmenter.classifier == "ensemble"


def test_scores_weigh_masks(folder: str) -> None:
    """Of two masks of one pixel's area the one with the higher score decides."""
    batch = batches()[0]
    (left, right), size = torch.split(quarters(SIZES[0])[:2], 1), SIZES[0]
    del right
    whole = torch.ones((1, *size), dtype=torch.bool)
    labels = {}
    for name, scores in (("quarter", [1.0, 0.0]), ("whole", [0.0, 1.0])):
        masks = torch.cat([left, whole])
        data = MaskedBatches([batch._replace(masks=[masks], mask_scores=[torch.tensor(scores)])], VOCABULARY)
        (((answer,),),) = (trainer().predict(SegmentationTask(folder), data),)  # type: ignore[misc]
        labels[name] = answer[0].labels if isinstance(answer, list) else answer.labels
    segmenter = OpenVocabSegmenter.from_pretrained(folder)
    segmenter.set_vocabulary(VOCABULARY)
    quarter, all_of_it = segmenter.classify_regions(batch.images[0], torch.cat([left, whole])).logits.argmax(1).tolist()
    assert labels["quarter"][0, 0] == quarter and (labels["whole"] == all_of_it).all()


def test_a_sweep_weighs_scores_of_masks(folder: str) -> None:
    """Each setting counts what a run with these settings counts."""
    scores = torch.tensor([0.9, 0.2, 0.6, 0.4])
    overlapping = [
        batch._replace(masks=[batch.masks[0] | batch.masks[0].roll(9, 2)], mask_scores=[scores])  # type: ignore[index]
        for batch in batches()
    ]
    sweep = SweepTask(folder, [0.3, 1.0], [0.5])
    trainer().test(sweep, MaskedBatches(overlapping, VOCABULARY), verbose=False)
    for weight, miou in zip([0.3, 1.0], sweep.mious, strict=True):
        single = SegmentationTask(folder, ensemble_weight=weight, classifier="ensemble")
        trainer().test(single, MaskedBatches(overlapping, VOCABULARY), verbose=False)
        assert torch.equal(single.miou.confusion, miou.confusion)


@pytest.mark.parametrize("oracle", [None, "classes"])
def test_an_image_without_masks_gets_the_first_class(folder: str, oracle: Literal["classes"] | None) -> None:
    """In a test, with an oracle of classes, in a sweep and in a prediction; the other image is not affected."""
    first, second = batches()
    data = MaskedBatches([first._replace(masks=[torch.zeros((0, *SIZES[0]), dtype=torch.bool)]), second], VOCABULARY)
    task, alone = SegmentationTask(folder, oracle=oracle), SegmentationTask(folder, oracle=oracle)
    trainer().test(task, data, verbose=False)
    trainer().test(alone, MaskedBatches([second], VOCABULARY), verbose=False)
    missed = task.miou.confusion - alone.miou.confusion
    quarter = SIZES[0][0] * SIZES[0][1] // 4
    assert missed.sum() == 4 * quarter and sorted(missed.flatten().tolist())[-4:] == [quarter] * 4
    assert task.recall.compute() == 0.5
    if oracle is None:
        sweep = SweepTask(folder, [1.0], [0.5])
        trainer().test(sweep, data, verbose=False)
        assert torch.equal(sweep.mious[0].confusion, task.miou.confusion)
        (answers, _) = trainer().predict(SegmentationTask(folder), data)  # type: ignore[misc]
        assert (answers[0].labels == 0).all()


def test_contradictions_are_refused(folder: str) -> None:
    data = MaskedBatches(batches(), VOCABULARY)
    with pytest.raises(InputError, match="views needs masks proposed by a network; remove"):
        trainer().test(SegmentationTask(folder, views=Views(mirror=True)), data)
    with pytest.raises(InputError, match=r"uses the ground-truth segments as masks; remove --data\.masks"):
        trainer().test(SegmentationTask(folder, oracle="masks"), data)
    with pytest.raises(InputError, match="remove weight 0"):
        trainer().test(SweepTask(folder, [0.0, 0.5], [0.5]), data)
    with pytest.raises(InputError, match="'proposals' needs class logits, which GivenMasks does not have"):
        trainer().test(SegmentationTask(folder, classifier="proposals"), data)


def test_segment_takes_the_masks_of_another_program(tmp_path: Path, folder: str) -> None:
    """`--data.masks` from the command line; other masks are another answer, the same are not asked again."""
    images, size = tmp_path / "images", SIZES[0]
    images.mkdir()
    pixels = (tiny.images(size)[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(images / "000000000007.png")
    masks, results = quarters(size), tmp_path / "results.json"
    words = ["segment", "--model", folder, "--images", images, "--vocabulary", "cat, red sky, grass, a dog"]
    words += ["--data.masks", results, "--out", tmp_path / "out"]

    def run(chosen: Tensor) -> Image.Image:
        content = [
            {"image_id": 7, "segmentation": {"size": list(size), "counts": counts.decode()}, "score": 0.5}
            for counts in rle.encode(chosen)
        ]
        results.write_text(json.dumps(content))
        ovseg(*words)
        return Image.open(tmp_path / "out" / "000000000007_labels.png").copy()

    first = torch.tensor(list(run(masks).getdata())).reshape(size)
    for mask in masks:
        assert len(first[mask].unique()) == 1
    second = torch.tensor(list(run(masks[:1]).getdata())).reshape(size)
    assert len(second[masks[0]].unique()) == 1 and not torch.equal(first, second)
