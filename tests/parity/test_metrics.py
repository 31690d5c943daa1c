"""Metrics compared with two published evaluators (golden g6)."""

from __future__ import annotations

import math

import pytest
import torch

from ovseg.metrics import MeanBestIoU, MeanIoU
from tests.parity import goldens

ARRAYS, DETAILS = goldens.arrays("g6_eval"), goldens.details("g6_eval")


def metric_for(tag: str, ignore_index: int = 255) -> MeanIoU:
    info = DETAILS[tag]
    base = (info["evaluation_set"] or {}).get("base")
    seen = None if base is None else [index in base for index in range(info["num_classes"])]
    metric = MeanIoU([str(index) for index in range(info["num_classes"])], ignore_index, seen)
    for index in range(info["n_images"]):
        target = ARRAYS[f"{tag}_gt{index}"].long()
        target[target == 255] = ignore_index
        metric.update(ARRAYS[f"{tag}_pred{index}"].long(), target)
    return metric


@pytest.mark.parametrize("ignore_index", [255, 65535])
@pytest.mark.parametrize("tag", list(DETAILS))
def test_every_number_equals_the_evaluators(tag: str, ignore_index: int) -> None:
    metric, results = metric_for(tag, ignore_index), DETAILS[tag]["results"]
    actual, release = metric.compute(), results["ovseg"]
    expected = {
        "miou_union": release["mIoU"],
        "miou_target": results["detectron2"]["mIoU"],
        "fwiou": release["fwIoU"],
        "macc": release["mACC"],
        "pacc": release["pACC"],
    }
    if DETAILS[tag]["evaluation_set"]:
        expected |= {
            "miou_union_seen": release["mIoU-base"],
            "miou_union_unseen": release["mIoU-unbase"],
            "miou_union_harmonic": release["hIoU-base"],
        }
    for name, value in expected.items():
        assert 100 * float(actual[name]) == pytest.approx(value, abs=1e-9), name
    per_class = metric.per_class()
    for index in range(DETAILS[tag]["num_classes"]):
        for name, ours in (("IoU", "iou"), ("ACC", "accuracy")):
            value = release[f"{name}-c{index}"]
            assert 100 * float(per_class[ours][index]) == pytest.approx(
                math.nan if value is None else value, nan_ok=True
            )


@pytest.mark.parametrize("tag", list(DETAILS))
def test_confusion_counts_equal_exactly(tag: str) -> None:
    stored = ARRAYS[f"{tag}_conf_ovseg"][:-1, :-1]  # [pred, target], last one ignored
    assert torch.equal(metric_for(tag).confusion, stored.T)


def test_counts_of_two_processes_add_up() -> None:
    """Two processes count the same as one."""
    torch.manual_seed(0)
    whole, parts = MeanIoU("abc"), [MeanIoU("abc"), MeanIoU("abc")]
    for index in range(5):
        preds, target = torch.randint(0, 3, (2, 9, 7))
        whole.update(preds, target)
        parts[index % 2].update(preds, target)
    assert torch.equal(whole.confusion, parts[0].confusion + parts[1].confusion)


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 labels or predictions are outside the 3 classes"):
        MeanIoU("abc").update(torch.zeros(2, dtype=torch.int64), torch.tensor([1, 7]))


def test_mean_best_iou_by_hand() -> None:
    labels = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 255]])
    proposals = torch.zeros(3, 2, 4, dtype=torch.bool)
    proposals[0, :, :2] = True  # all of class 0
    proposals[1, :, 2:] = True  # all of class 1; the ignored pixel does not count
    proposals[2, 0] = True
    metric = MeanBestIoU()
    metric.update(proposals, labels)
    assert float(metric.compute()) == 1.0
    metric.update(proposals[2:], labels)  # 2 of 5 pixels of class 0's union... IoU 2/6, and 2/5 for class 1
    assert float(metric.compute()) == pytest.approx((2 + 2 / 6 + 2 / 5) / 4)
