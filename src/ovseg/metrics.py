"""Segmentation metrics, each defined in its docstring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ovseg.structures import IGNORE_INDEX


class MeanIoU(Metric):
    """mIoU under both common definitions and related metrics, from one confusion matrix over the whole data set.

    The two definitions differ when classes are absent. `miou_union` averages over the classes in ground truth *or*
    prediction, so a class that is predicted but absent counts as 0; `miou_target` averages over the classes in the
    ground truth. Counts are int64 and summed over processes, so the result is exact under DDP.

    Args:
        class_names: K names.
        ignore_index: label of pixels that are not counted.
        seen: per class, whether it is in the training data; adds the means over seen and unseen classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor
    outside: Tensor  # number of pixels whose label or prediction is out of range

    def __init__(
        self, class_names: Sequence[str], ignore_index: int = IGNORE_INDEX, seen: Sequence[bool] | None = None
    ) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.ignore_index = ignore_index
        self.seen = None if seen is None else torch.tensor([bool(flag) for flag in seen])
        k = len(self.class_names)
        self.add_state("confusion", torch.zeros((k, k), dtype=torch.int64), dist_reduce_fx="sum")  # [target, pred]
        self.add_state("outside", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count pixels.

        Args:
            preds: class indices, any shape.
            target: class indices or `ignore_index`, the shape of `preds`.

        Raises:
            ValueError: the shapes differ, or a counted label or prediction is outside 0 … K − 1. On a GPU the latter
                is raised when the result is computed, to avoid waiting for the device here.
        """
        if preds.shape != target.shape:
            raise ValueError(f"predictions {tuple(preds.shape)} and labels {tuple(target.shape)} differ in shape")
        k = len(self.class_names)
        preds, target = (
            preds.flatten().long(),
            target.flatten().long(),
        )  # as bytes, an ignore_index of 65535 would be 255
        labelled = target != self.ignore_index
        valid = labelled & (preds >= 0) & (preds < k) & (target >= 0) & (target < k)
        outside = labelled.sum() - valid.sum()
        if outside.device.type == "cpu" and outside:
            raise self._range_error(outside)
        self.outside += outside
        # invalid pixels add 0 to the first cell; removing them would make the host wait for their number
        self.confusion.view(-1).index_add_(0, (target * k + preds).where(valid, 0), valid.long())

    def _range_error(self, outside: Tensor) -> ValueError:
        return ValueError(f"{int(outside)} labels or predictions are outside the {len(self.class_names)} classes")

    def per_class(self) -> dict[str, Tensor]:
        """Return `iou`, `accuracy`, `pixels` and `predicted` per class, each (K,).

        `iou` and `accuracy` are fractions, NaN for classes that are not in the ground truth; `pixels` and `predicted`
        count pixels. Under DDP every process must call this, and gets the values over all processes.
        """
        with self.sync_context():
            correct, in_target, in_pred = self._counts()
        nan = torch.full_like(correct, float("nan"))
        return {
            "iou": torch.where(in_target > 0, correct / (in_target + in_pred - correct), nan),
            "accuracy": torch.where(in_target > 0, correct / in_target, nan),
            "pixels": in_target.long(),
            "predicted": in_pred.long(),
        }

    def counts(self) -> Tensor:
        """Return the (K, K) pixel counts of true by predicted class; under DDP every process must call this."""
        with self.sync_context():
            return self.confusion.clone()

    def compute(self) -> dict[str, Tensor]:
        """Return `miou_union`, `miou_target`, `fwiou`, `macc` and `pacc` as fractions, NaN if nothing was counted.

        `fwiou` weights each class's IoU by its share of ground-truth pixels, `macc` is the mean accuracy of the classes
        in the ground truth, and `pacc` is the share of correct pixels. With `seen`, both mIoUs are also reported as
        `…_seen`, `…_unseen` and `…_harmonic` (the harmonic mean of the two).
        """
        correct, in_target, in_pred = self._counts()
        union = in_target + in_pred - correct
        present, either = in_target > 0, union > 0
        iou = torch.where(either, correct / union.clamp(min=1), torch.zeros_like(correct))
        result = {
            "miou_union": iou[either].mean(),
            "miou_target": iou[present].mean(),
            "fwiou": (iou * in_target).sum() / in_target.sum(),
            "macc": (correct / in_target)[present].mean(),
            "pacc": correct.sum() / in_target.sum(),
        }
        if self.seen is not None:
            seen = self.seen.to(iou.device)
            for name, counted in (("miou_union", either), ("miou_target", present)):
                both = iou[counted & seen].mean(), iou[counted & ~seen].mean()
                result[f"{name}_seen"], result[f"{name}_unseen"] = both
                total = both[0] + both[1]
                result[f"{name}_harmonic"] = torch.where(total > 0, 2 * both[0] * both[1] / total, total)
        return result

    def _counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pixels that are correct, in the ground truth and predicted per class, each (K,) double."""
        if self.outside:
            raise self._range_error(self.outside)
        counts = self.confusion.diagonal(), self.confusion.sum(dim=1), self.confusion.sum(dim=0)
        correct, in_target, in_pred = (count.double() for count in counts)  # converting the whole matrix takes memory
        return correct, in_target, in_pred


class MaskAccuracy(Metric):
    """Share of ground-truth regions that CLIP classifies correctly: measures mask adaptation without proposals.

    A region is the whole area of one class in one image, and each region counts once.

    Args:
        classes: number of classes.
        seen: per class, whether it is in the training data; adds the shares of seen and unseen classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    regions: Tensor

    def __init__(self, classes: int, seen: Sequence[bool] | None = None) -> None:
        super().__init__()
        self.seen = None if seen is None else torch.tensor([bool(flag) for flag in seen])
        for state in ("correct", "regions"):
            self.add_state(state, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count regions.

        Args:
            preds: (S,) predicted class indices.
            target: (S,) true class indices.
        """
        self.regions.index_add_(0, target, torch.ones_like(target))  # unlike bincount, it does not wait for a GPU
        self.correct.index_add_(0, target, (preds == target).long())

    def per_class(self) -> dict[str, Tensor]:
        """Return `regions` and `mask_accuracy` (NaN without regions) per class, each (K,).

        Under DDP every process must call this.
        """
        with self.sync_context():
            return {"regions": self.regions.clone(), "mask_accuracy": self.correct.double() / self.regions}

    def compute(self) -> dict[str, Tensor]:
        """Return the fraction `mask_accuracy`, with `seen` also `…_seen` and `…_unseen`; NaN without regions."""
        correct, regions = self.correct.double(), self.regions.double()
        result = {"mask_accuracy": correct.sum() / regions.sum()}
        if self.seen is not None:
            seen = self.seen.to(correct.device)
            result["mask_accuracy_seen"] = correct[seen].sum() / regions[seen].sum()
            result["mask_accuracy_unseen"] = correct[~seen].sum() / regions[~seen].sum()
        return result


class MeanBestIoU(Metric):
    """Recall of class-agnostic proposals: the mean over ground-truth segments of the IoU of the best proposal.

    A segment is the whole area of one class in one image, as in proposal training.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    segments: Tensor

    def __init__(self) -> None:
        super().__init__()
        # integers in units of 2^-32, so that the sum does not depend on the order of the processes
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("segments", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, proposals: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX) -> None:
        """Count the segments of one image; see `segment_ious` for the arguments."""
        classes, ious = segment_ious(proposals, labels, ignore_index)
        if len(proposals):
            self.total += (ious.amax(dim=1) * 2**32).round().long().sum()
        self.segments += len(classes)

    def compute(self) -> Tensor:
        """Return the recall as a fraction, NaN without segments."""
        return self.total.double() / 2**32 / self.segments


def segment_ious(
    proposals: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, pixels: int = 2**16
) -> tuple[Tensor, Tensor]:
    """Compute the IoU of every proposal with every segment of an image, at the resolution of the labels.

    Args:
        proposals: (Q, h, w) bool, sampled by nearest neighbour if the labels have another size.
        labels: (H, W) class indices or `ignore_index`; ignored pixels count in no mask.
        pixels: number of pixels compared at once, which bounds the memory for resized proposals.

    Returns:
        The classes of the segments, (S,) in ascending order, and the IoUs, (S, Q) float64.
    """
    (height, width), (rows, columns) = labels.shape, proposals.shape[1:]
    across = ((torch.arange(width, device=labels.device) + 0.5) * (columns / width)).long()
    down = ((torch.arange(height, device=labels.device) + 0.5) * (rows / height)).long()
    classes = torch.unique(labels[labels != ignore_index])
    overlap = torch.zeros((len(classes), len(proposals)), dtype=torch.float64, device=labels.device)
    areas = torch.zeros(len(proposals), dtype=torch.float64, device=labels.device)
    for start in range(0, height, step := max(pixels // width, 1)):
        band = labels[start : start + step].flatten()
        # in double precision, which autocast does not change; ignored pixels are in no segment
        masks = (proposals[:, down[start : start + step]][:, :, across].flatten(1) & (band != ignore_index)).double()
        segments = (band == classes[:, None]).double()
        overlap += segments @ masks.T
        areas += masks.sum(dim=1)
    sizes = (labels.flatten() == classes[:, None]).sum(dim=1)
    return classes, overlap / (sizes[:, None] + areas - overlap)
