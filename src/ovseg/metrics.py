"""Segmentation metrics, each defined where it stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ovseg.structures import IGNORE_INDEX


class MeanIoU(Metric):
    """The field's mIoU and its companions, all from one confusion matrix over the whole data set.

    Two definitions of the mean are in use, and they differ where classes are absent:
    `miou_union` divides by the number of classes in ground truth *or* prediction (a class predicted but absent
    counts 0), `miou_target` by the number of classes in the ground truth. Counts are int64 and summed over
    processes, so the result is exact under DDP.

    Args:
        class_names: K names.
        ignore_index: label of pixels that count nowhere.
        seen: per class whether training had it; adds the means over seen and unseen classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor
    outside: Tensor  # pixels that no class could count

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
            ValueError: shapes differ, or a label that is counted lies outside 0 … K − 1; on a GPU, for which nothing
                here waits, when the result is asked for.
        """
        if preds.shape != target.shape:
            raise ValueError(f"predictions {tuple(preds.shape)} and labels {tuple(target.shape)} differ in shape")
        k = len(self.class_names)
        preds, target = preds.flatten().long(), target.flatten().long()  # 65535 would be 255 among bytes
        keep = target != self.ignore_index
        counts = keep & (preds >= 0) & (preds < k) & (target >= 0) & (target < k)
        outside = keep.sum() - counts.sum()
        if outside.device.type == "cpu" and outside:
            raise self._refusal(outside)
        self.outside += outside
        # what does not count adds nothing to the first cell; to leave it out, the host would have to know its number
        self.confusion.view(-1).index_add_(0, (target * k + preds).where(counts, 0), counts.long())

    def _refusal(self, outside: Tensor) -> ValueError:
        return ValueError(f"{int(outside)} labels or predictions lie outside the {len(self.class_names)} classes")

    def per_class(self) -> dict[str, Tensor]:
        """Per class, each (K,): `iou` and `accuracy` (NaN where it is not in the ground truth), `pixels`, `predicted`.

        Under DDP every process has to ask, as for `compute`, and gets what all of them counted.
        """
        with self.sync_context():
            hit, in_target, in_pred = self._counts()
        nan = torch.full_like(hit, float("nan"))
        return {
            "iou": torch.where(in_target > 0, hit / (in_target + in_pred - hit), nan),
            "accuracy": torch.where(in_target > 0, hit / in_target, nan),
            "pixels": in_target.long(),
            "predicted": in_pred.long(),
        }

    def counts(self) -> Tensor:
        """(K, K) pixels of true by predicted class; under DDP every process has to ask, as for `per_class`."""
        with self.sync_context():
            return self.confusion.clone()

    def compute(self) -> dict[str, Tensor]:
        """Fractions: `miou_union`, `miou_target`, `fwiou`, `macc`, `pacc`; NaN where nothing was counted.

        `fwiou` weighs each class's IoU by its share of ground-truth pixels, `macc` is the mean accuracy of the classes
        in the ground truth, `pacc` the share of pixels that are right. With `seen` given, both mIoU also as
        `…_seen`, `…_unseen` and `…_harmonic` (the harmonic mean of the two).
        """
        hit, in_target, in_pred = self._counts()
        union = in_target + in_pred - hit
        present, either = in_target > 0, union > 0
        iou = torch.where(either, hit / union.clamp(min=1), torch.zeros_like(hit))
        result = {
            "miou_union": iou[either].mean(),
            "miou_target": iou[present].mean(),
            "fwiou": (iou * in_target).sum() / in_target.sum(),
            "macc": (hit / in_target)[present].mean(),
            "pacc": hit.sum() / in_target.sum(),
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
        """Pixels right, in the ground truth, and predicted, each (K,) double."""
        if self.outside:
            raise self._refusal(self.outside)
        counts = self.confusion.diagonal(), self.confusion.sum(dim=1), self.confusion.sum(dim=0)
        hit, in_target, in_pred = (count.double() for count in counts)  # not all of it, which is large
        return hit, in_target, in_pred


class MaskAccuracy(Metric):
    """Share of ground-truth regions that are named right: what mask adaptation improves, whatever the proposals do.

    A region is the whole area of one class in one image, and each counts once.

    Args:
        seen: per class whether training had it; adds the shares of seen and unseen classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    regions: Tensor

    def __init__(self, classes: int, seen: Sequence[bool] | None = None) -> None:
        super().__init__()
        self.seen = None if seen is None else torch.tensor([bool(flag) for flag in seen])
        for state in ("right", "regions"):
            self.add_state(state, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count regions: their predicted and their true classes, (S,) each."""
        self.regions.index_add_(0, target, torch.ones_like(target))  # unlike bincount, without a wait for a GPU
        self.right.index_add_(0, target, (preds == target).long())

    def per_class(self) -> dict[str, Tensor]:
        """Per class `regions` and `mask_accuracy` (NaN without any), each (K,); every process has to ask under DDP."""
        with self.sync_context():
            return {"regions": self.regions.clone(), "mask_accuracy": self.right.double() / self.regions}

    def compute(self) -> dict[str, Tensor]:
        """Fractions: `mask_accuracy`, with `seen` given also `…_seen` and `…_unseen`; NaN where there is no region."""
        right, regions = self.right.double(), self.regions.double()
        result = {"mask_accuracy": right.sum() / regions.sum()}
        if self.seen is not None:
            seen = self.seen.to(right.device)
            result["mask_accuracy_seen"] = right[seen].sum() / regions[seen].sum()
            result["mask_accuracy_unseen"] = right[~seen].sum() / regions[~seen].sum()
        return result


class MeanBestIoU(Metric):
    """Recall of class-agnostic proposals: the mean over ground-truth segments of the best IoU any proposal has with it.

    A segment is the whole area of one class in one image, as in the training of the proposals.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    segments: Tensor

    def __init__(self) -> None:
        super().__init__()
        # in units of 2^-32, so that the sum is the same in whatever order the processes add it up
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("segments", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, proposals: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX) -> None:
        """Count the segments of one image; the arguments are those of `segment_ious`."""
        classes, ious = segment_ious(proposals, labels, ignore_index)
        if len(proposals):
            self.total += (ious.amax(dim=1) * 2**32).round().long().sum()
        self.segments += len(classes)

    def compute(self) -> Tensor:
        """Fraction in [0, 1]; NaN without segments."""
        return self.total.double() / 2**32 / self.segments


def segment_ious(
    proposals: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, pixels: int = 2**16
) -> tuple[Tensor, Tensor]:
    """IoU of every proposal with every segment of an image, at the resolution of the labels.

    Args:
        proposals: (Q, h, w) bool, read by nearest neighbour where the labels are of another size.
        labels: (H, W) class indices or `ignore_index`; ignored pixels count in no mask.
        pixels: how many are compared at once, so that the proposals are never in memory at the size of the labels.

    Returns:
        The classes of the segments, (S,) in ascending order, and (S, Q) float64.
    """
    (height, width), (rows, columns) = labels.shape, proposals.shape[1:]
    across = ((torch.arange(width, device=labels.device) + 0.5) * (columns / width)).long()
    down = ((torch.arange(height, device=labels.device) + 0.5) * (rows / height)).long()
    classes = torch.unique(labels[labels != ignore_index])
    overlap = torch.zeros((len(classes), len(proposals)), dtype=torch.float64, device=labels.device)
    areas = torch.zeros(len(proposals), dtype=torch.float64, device=labels.device)
    for start in range(0, height, step := max(pixels // width, 1)):
        band = labels[start : start + step].flatten()
        # in double, which autocast leaves alone; ignored pixels are in no segment
        masks = (proposals[:, down[start : start + step]][:, :, across].flatten(1) & (band != ignore_index)).double()
        segments = (band == classes[:, None]).double()
        overlap += segments @ masks.T
        areas += masks.sum(dim=1)
    sizes = (labels.flatten() == classes[:, None]).sum(dim=1)
    return classes, overlap / (sizes[:, None] + areas - overlap)
