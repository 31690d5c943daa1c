"""Metrics by hand, at full size, and in cases the goldens do not cover."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.profiler import ProfilerActivity, profile

from ovseg.callbacks.findings import confusions
from ovseg.metrics import MeanIoU


def test_every_number_by_hand() -> None:
    metric = MeanIoU(["cat", "dog", "sky", "sea"], seen=[True, False, True, True])
    # dog is only predicted, sea occurs nowhere
    metric.update(torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 0, 0, 0, 2, 255]))
    per_class = metric.per_class()
    assert per_class["iou"].tolist() == pytest.approx([2 / 4, math.nan, 1 / 2, math.nan], nan_ok=True)
    assert per_class["accuracy"].tolist() == pytest.approx([2 / 4, math.nan, 1, math.nan], nan_ok=True)
    assert per_class["pixels"].tolist() == [4, 0, 1, 0]
    expected = {
        "miou_union": (1 / 2 + 0 + 1 / 2) / 3,
        "miou_target": (1 / 2 + 1 / 2) / 2,
        "fwiou": 4 / 5 * 1 / 2 + 1 / 5 * 1 / 2,
        "macc": (1 / 2 + 1) / 2,
        "pacc": 3 / 5,
        "miou_union_seen": 1 / 2,
        "miou_union_unseen": 0,
        "miou_union_harmonic": 0,
        "miou_target_seen": 1 / 2,
        "miou_target_unseen": math.nan,  # no unseen class occurs
        "miou_target_harmonic": math.nan,
    }
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected, nan_ok=True)


def test_unlabelled_images_are_not_counted() -> None:
    void = torch.full((4, 5), 65535)
    metric = MeanIoU("abc", ignore_index=65535)
    metric.update(torch.ones_like(void), void)
    assert all(math.isnan(value) for value in metric.compute().values())
    per_class = metric.per_class()
    assert torch.isnan(per_class["iou"]).all() and torch.isnan(per_class["accuracy"]).all()
    assert per_class["pixels"].tolist() == [0, 0, 0]

    preds, target = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]])
    metric.update(preds, target)
    expected = MeanIoU("abc")
    expected.update(preds, target)
    assert torch.equal(metric.confusion, expected.confusion)


def test_255_is_a_class_if_there_are_more_than_255() -> None:
    metric = MeanIoU([str(index) for index in range(847)], ignore_index=65535)
    metric.update(torch.tensor([255, 846, 3]), torch.tensor([255, 255, 65535]))
    assert metric.confusion.sum() == 2
    assert (metric.confusion[255, 255], metric.confusion[255, 846]) == (1, 1)


def test_847_classes_at_2_megapixels_take_little_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    preds, target = torch.randint(0, 847, (2, 1200, 1800), generator=generator)
    target[:100] = 65535
    metric = MeanIoU([str(index) for index in range(847)], ignore_index=65535)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        metric.update(preds, target)
        metric.compute()
        metric.per_class()
    # the sum of all allocations, an upper bound of the peak
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in record.events())
    assert 2**20 < allocated < 300 * 2**20
    assert metric.confusion.sum() == 1100 * 1800


def test_thousands_of_classes_need_no_second_matrix() -> None:
    classes = 4000
    preds, target = torch.randint(0, classes, (2, 50, 50), generator=torch.Generator().manual_seed(0))
    metric = MeanIoU([str(index) for index in range(classes)], ignore_index=65535)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        metric.update(preds, target)
        metric.compute()
        most_frequent = confusions(metric.confusion, metric.class_names)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in record.events())
    assert allocated < 8 * classes**2 / 8
    assert metric.confusion.sum() == 2500 and len(most_frequent) == 20


# Two processes connected by gloo count exactly what one process counts

NAMES = ["cat", "dog", "sky", "sea", "sand"]
COUNTS = (5, 1)  # images in all; one process gets an image more, or the only one


def updated_metric(images: range) -> MeanIoU:
    """Return the metric after these images of a small random data set."""
    metric = MeanIoU(NAMES, seen=[True, False, True, False, True])
    for image in images:
        generator = torch.Generator().manual_seed(image)
        preds, target = torch.randint(0, 4, (2, 30, 20 + image), generator=generator)  # sand occurs nowhere
        target[torch.rand(target.shape, generator=generator) < 0.2] = 255
        metric.update(preds, target)
    return metric


def results(metric: MeanIoU) -> dict[str, Tensor]:
    return {**metric.compute(), **metric.per_class()}


def count_in_process(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([results(updated_metric(range(rank, count, 2))) for count in COUNTS], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_the_results_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(count_in_process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    expected = [results(updated_metric(range(count))) for count in COUNTS]
    for rank in (0, 1):
        distributed_results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for actual, single in zip(distributed_results, expected, strict=True):
            assert actual.keys() == single.keys()
            for name, value in single.items():
                assert torch.equal(actual[name].nan_to_num(-1), value.nan_to_num(-1)), name


def test_255_in_byte_labels_is_a_class_if_65535_is_ignored() -> None:
    metric = MeanIoU([str(index) for index in range(256)], ignore_index=65535)
    metric.update(torch.tensor([255, 3]), torch.tensor([255, 3], dtype=torch.uint8))
    assert int(metric.confusion.sum()) == 2
