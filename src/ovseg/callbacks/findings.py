"""The results of a test as plain numbers, and as a table to print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

METRICS = {  # name → title and definition
    "miou_union": ("mIoU (union)", "mean IoU over the classes in labels or predictions"),
    "miou_target": ("mIoU (target)", "mean IoU over the classes in labels"),
    "fwiou": ("fwIoU", "IoU weighted by the labelled pixels of each class"),
    "macc": ("mAcc", "mean pixel accuracy over the classes in labels"),
    "pacc": ("pAcc", "share of correct pixels"),
    "mask_accuracy": ("mask accuracy", "share of ground-truth regions that CLIP alone classifies correctly"),
    "proposal_recall": ("proposal recall", "mean over ground-truth segments of the best proposal's IoU"),
}
GROUPS = ("seen", "unseen", "harmonic")  # classes in the training data, classes not in it, harmonic mean of both


class ImageScore(NamedTuple):
    """The score of one image."""

    name: str
    iou: float  # mean over the classes in its labels or prediction; NaN for an unlabelled image


class ClassRow(NamedTuple):
    """The results of one class; fractions are NaN if nothing was counted."""

    name: str
    seen: bool | None
    iou: float
    accuracy: float
    mask_accuracy: float
    regions: int
    pixels: int
    predicted: int


class Confusion(NamedTuple):
    """Pixels of one class that were predicted as another."""

    label: str
    predicted: str
    pixels: int
    share: float  # fraction of the pixels with this label


class Findings(NamedTuple):
    """The content of a report."""

    data: str
    metrics: dict[str, float]  # fractions
    images: int
    classes_in_labels: int
    classes_in_labels_or_predictions: int
    classes: list[ClassRow]
    confusions: list[Confusion]
    chosen: dict[str, list[ImageScore]]  # best, median, worst
    images_per_second: float  # from the first image to the last, including reading and scoring
    peak_memory_mib: float  # of one process: GPU memory, or main memory without a GPU
    device: str
    processes: int
    settings: dict[str, Any]
    command: str
    versions: dict[str, str]

    @property
    def title(self) -> str:
        """The name of the data, and the oracle if there is one."""
        oracle = self.settings["oracle"]
        return f"{self.data}, oracle {oracle}" if oracle else self.data


def image_iou(preds: Tensor, labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Return the mean IoU of one image over the classes in its labels or prediction, NaN without labels.

    Args:
        preds: (H, W) class indices.
        labels: (H, W) class indices or `ignore_index`.

    Returns:
        A scalar on the labels' device; the host does not wait for it.
    """
    labelled = labels.flatten() != ignore_index
    preds, labels = preds.flatten().where(labelled, 0), labels.flatten().where(labelled, 0)
    correct, in_preds, in_labels = (
        torch.zeros(classes, dtype=torch.int64, device=labels.device).index_add_(0, indices, (labelled & mask).long())
        for indices, mask in ((labels, preds == labels), (preds, labelled), (labels, labelled))
    )
    union = in_preds + in_labels - correct
    return (correct.double() / union.clamp(min=1)).sum() / (union > 0).sum()


def choose(scores: Sequence[ImageScore], count: int = 3) -> dict[str, list[ImageScore]]:
    """Choose images with the best, median and worst IoU: `count` of each, at most a third of all.

    The best group starts with the best image, and the worst group with the worst.
    """
    ranked = sorted((score for score in scores if not math.isnan(score.iou)), key=lambda score: (score.iou, score.name))
    count = min(count, max(len(ranked) // 3, 1))
    middle = (len(ranked) - count) // 2
    groups = {"best": ranked[::-1][:count], "median": ranked[middle : middle + count], "worst": ranked[:count]}
    return groups if ranked else {}


def confusions(counts: Tensor, names: Sequence[str], limit: int = 20) -> list[Confusion]:
    """Return the most frequent confusions.

    Args:
        counts: (K, K) pixels of true by predicted class.
        names: K class names.
        limit: maximum number of confusions.
    """
    pairs = counts.nonzero()  # (N, 2); sparse if there are many classes
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    pixels, order = counts[pairs[:, 0], pairs[:, 1]].topk(min(limit, len(pairs)))
    totals = counts.sum(dim=1)
    return [
        Confusion(names[label], names[predicted], amount, amount / int(totals[label]))
        for amount, (label, predicted) in zip(pixels.tolist(), pairs[order].tolist(), strict=True)
    ]


def table(findings: Findings) -> str:
    """Return the metrics in per cent, as a table for a terminal."""
    metrics = findings.metrics
    groups = [group for group in GROUPS if any(name.endswith(f"_{group}") for name in metrics)]
    rows = [[title, *_cells(metrics, name, groups)] for name, (title, _) in METRICS.items() if name in metrics]
    lines = [
        f"{name:<16}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in [["in %", "all", *groups], *rows]
    ]
    return "\n".join(
        [
            f"{findings.title}: {findings.images:,} images; {len(findings.classes)} classes, "
            f"{findings.classes_in_labels} in labels, {findings.classes_in_labels_or_predictions} in labels or "
            "predictions",
            *(line.rstrip() for line in lines),
            f"{findings.images_per_second:.2f} images/s, peak memory {findings.peak_memory_mib:,.0f} MiB per process, "
            f"{findings.processes} × {findings.device}, {findings.settings['precision']}",
        ]
    )


def _cells(metrics: Mapping[str, float], name: str, groups: Sequence[str]) -> list[str]:
    """Format a metric over all classes and over each group."""
    return [per_cent(metrics.get(key)) for key in (name, *(f"{name}_{group}" for group in groups))]


def per_cent(fraction: float | None) -> str:
    """Format a fraction in per cent with one decimal; NaN becomes a dash, and None an empty string."""
    if fraction is None:
        return ""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f}"
