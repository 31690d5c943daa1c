"""The host synchronises with the device only where it must, and never once per item."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ovseg.callbacks.findings import image_iou
from ovseg.metrics import MaskAccuracy, MeanBestIoU, MeanIoU
from ovseg.ops import crop_regions, semantic_labels
from ovseg.structures import CaptionBatch, RegionTextPair
from ovseg.tasks import MiningTask
from ovseg.tasks.pair_filters import PairFilters
from ovseg.tasks.segments import relabel_segments, segment_masks
from tests import tiny
from tests.gpu.conftest import GPU
from tests.gpu.pretend import There, pretend_gpu

NAMES = ["cat", "dog", "sky", "sea"]


def labels() -> tuple[Tensor, Tensor]:
    """Return predictions and ground truth, a fifth of which is unlabelled."""
    generator = torch.Generator().manual_seed(0)
    predictions, truth = torch.randint(0, 4, (2, 30, 40), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    return predictions, truth


def squares(count: int, side: int = 64) -> Tensor:
    """Return (count, side, side) masks of different boxes, the last one empty."""
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    for index in range(count - 1):
        masks[index, index : index + 20, 2 * index % 30 : 40] = True
    return masks


def same_pairs(pairs: list[RegionTextPair], expected: list[RegionTextPair]) -> None:
    """Check that regions and nouns are the same, and similarities up to rounding."""
    assert len(pairs) == len(expected) > 0
    for one, other in zip(pairs, expected, strict=True):
        assert one[:7] == other[:7] and one[7:] == pytest.approx(other[7:], abs=1e-4)


def test_the_simulated_gpu_detects_cpu_tensors_and_waits() -> None:
    """The other tests rely on it: tensors created without a device, and every kind of wait."""
    with pretend_gpu() as gpu:
        there = torch.arange(6.0, device="cuda")
        assert isinstance(there, There) and there.device.type == "cuda"
        for mistake in (
            lambda: there + torch.ones(6),
            lambda: torch.cat([there, torch.ones(1)]),
            lambda: torch.where(there > 2, there, torch.zeros(6)),
            lambda: there.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError), match=r"two devices|no numpy array"):
                mistake()
        there.add_(torch.ones(())).mul_(2)  # scalars on the CPU are allowed
        assert not gpu.waits
        assert there.tolist() == [2, 4, 6, 8, 10, 12] and there[there > 5].sum().item() == 36
        torch.tensor([1.0], device="cuda")
        assert gpu.waits == Counter({"_to_copy": 2, "index": 1, "_local_scalar_dense": 1})


def test_pixels_and_regions_are_counted_without_a_wait(gpu: GPU) -> None:
    predictions, truth = labels()
    expected, areas = MeanIoU(NAMES), MaskAccuracy(4)
    expected.update(predictions, truth)
    areas.update(predictions[0], predictions[1])
    metric, there = MeanIoU(NAMES).to(gpu.device), MaskAccuracy(4).to(gpu.device)
    on_gpu = predictions.to(gpu.device), truth.to(gpu.device)
    iou = image_iou(*on_gpu, 4, 255)  # warm-up: kernels are loaded on first use
    metric.update(*on_gpu)
    metric.reset()
    with gpu.never_waits():
        metric.update(*on_gpu)
        there.update(on_gpu[0][0], on_gpu[0][1])
        iou = image_iou(*on_gpu, 4, 255)
    assert torch.equal(metric.confusion.cpu(), expected.confusion)
    assert torch.equal(there.correct.cpu(), areas.correct) and torch.equal(there.regions.cpu(), areas.regions)
    assert float(iou) == pytest.approx(float(image_iou(predictions, truth, 4, 255)))
    for name, value in metric.compute().items():
        assert float(value) == float(expected.compute()[name])


def test_labels_outside_the_classes_are_refused_in_compute(gpu: GPU) -> None:
    metric = MeanIoU(NAMES).to(gpu.device)
    for pair in ([1, 1], [4, 1]), ([1, 1], [-1, 255]), ([7, 7], [1, 255]):
        metric.update(*torch.tensor(pair).to(gpu.device))
        with pytest.raises(ValueError, match="1 labels or predictions are outside the 4 classes"):
            metric.compute()
        metric.reset()


def test_cropping_regions_waits_once() -> None:
    (image,) = tiny.images((64, 64))
    for count in (1, 3, 12):
        expected = crop_regions(image, squares(count), 16, expand_ratio=1.2)
        with pretend_gpu() as gpu:
            there = image.to("cuda"), squares(count).to("cuda")
            gpu.waits.clear()
            crops = crop_regions(*there, 16, expand_ratio=1.2)
            assert gpu.waits.total() == 1
            assert all(torch.equal(one.cpu(), other) for one, other in zip(crops, expected, strict=True))


def test_labels_wait_once_per_band() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, probs = torch.rand(5, 4, generator=generator), torch.rand(5, 16, 16, generator=generator)
    for values, bands in ((16 * 16 * 4, 3), (16 * 4 * 4, 10)):
        expected, waits = semantic_labels(scores, probs, (40, 40), values), []
        with pretend_gpu() as gpu:
            there = scores.to("cuda"), probs.to("cuda")
            gpu.waits.clear()
            assert torch.equal(semantic_labels(*there, (40, 40), values).cpu(), expected)
            waits.append(gpu.waits["nonzero"])
            assert gpu.waits.total() <= bands + 6
        assert waits[0] <= bands


def test_segments_need_few_waits() -> None:
    """Twenty classes of one pixel each, all of which vanish at network resolution."""
    truth = torch.full((40, 40), 255)
    truth[1::2, 3] = torch.arange(20)
    names = torch.arange(20).flip(0)
    expected = segment_masks(truth, (10, 10), 255)
    named = relabel_segments(truth, expected[0], names)
    proposals, recall = squares(6, 10), MeanBestIoU()
    recall.update(proposals, truth)
    assert expected[1].flatten(1).sum(dim=1).tolist() == [1] * 20
    with pretend_gpu() as gpu:
        there, on_gpu = truth.to("cuda"), proposals.to("cuda")
        recall_there, new_names = MeanBestIoU().to("cuda"), names.to("cuda")
        gpu.waits.clear()
        segments = segment_masks(there, (10, 10), 255)
        assert torch.equal(relabel_segments(there, segments[0], new_names).cpu(), named)
        recall_there.update(on_gpu, there)
        assert gpu.waits.total() <= 6  # one of them is caused by this test
        assert all(torch.equal(one.cpu(), other) for one, other in zip(segments, expected, strict=True))
        assert int(recall_there.total) == int(recall.total)


@pytest.mark.parametrize("filters", [PairFilters(), PairFilters(min_area=0.01, max_overlap=0.9)])
def test_mining_waits_a_fixed_number_of_times_per_image(tmp_path: Path, filters: PairFilters) -> None:
    task = MiningTask(tiny.clip(tmp_path), filters=filters)
    (image,) = tiny.images((64, 64))

    def batch(count: int, device: str) -> CaptionBatch:
        nouns = [f"word {number}" for number in range(count)]
        masks, pixels = squares(count).to(device), image.to(device)
        return CaptionBatch([pixels], [(64, 64)], ["a.jpg"], [1], [nouns], [list(range(count))], [masks])

    waits = []
    with torch.no_grad():
        expected = {count: task.predict_step(batch(count, "cpu"), 0) for count in (3, 12)}
        with pretend_gpu() as gpu:
            task.to("cuda")
            for count in (3, 12):
                there = batch(count, "cuda")
                gpu.waits.clear()
                same_pairs(task.predict_step(there, 0), expected[count])
                waits.append(gpu.waits.total())
    assert waits[0] == waits[1] < 20
