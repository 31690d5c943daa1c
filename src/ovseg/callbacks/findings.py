"""What a test found, as plain numbers, and as a table to print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

METRICS = {  # name → title, and what it is
    "miou_union": ("mIoU (union)", "mean IoU of the classes in labels or predictions"),
    "miou_target": ("mIoU (target)", "mean IoU of the classes in labels"),
    "fwiou": ("fwIoU", "IoU weighted by the pixels of each class"),
    "macc": ("mAcc", "mean over the classes in labels of the share of their pixels that is right"),
    "pacc": ("pAcc", "share of pixels that is right"),
    "mask_accuracy": ("mask accuracy", "share of ground-truth regions that CLIP alone names right"),
    "proposal_recall": ("proposal recall", "mean over ground-truth segments of the best proposal's IoU"),
}
GROUPS = ("seen", "unseen", "harmonic")  # classes that training had, that it had not, harmonic mean of both


class ImageScore(NamedTuple):
    """How well one image was segmented."""

    name: str
    iou: float  # mean over the classes in its labels or its answer; NaN where it has no labels


class ClassRow(NamedTuple):
    """What became of one class; fractions are NaN where there is nothing to count."""

    name: str
    seen: bool | None
    iou: float
    accuracy: float
    mask_accuracy: float
    regions: int
    pixels: int
    predicted: int


class Confusion(NamedTuple):
    """Pixels of one class that were taken for another."""

    label: str
    predicted: str
    pixels: int
    share: float  # of the pixels with this label


class Findings(NamedTuple):
    """Everything that a report says in words and numbers."""

    data: str
    metrics: dict[str, float]  # fractions
    images: int
    classes_in_labels: int
    classes_in_labels_or_predictions: int
    classes: list[ClassRow]
    confusions: list[Confusion]
    chosen: dict[str, list[ImageScore]]  # best, median, worst
    images_per_second: float  # from the first image to the last, reading and counting included
    peak_memory_mib: float  # of one process: of its GPU, or of the whole process where there is none
    device: str
    processes: int
    settings: dict[str, Any]
    command: str
    versions: dict[str, str]

    @property
    def title(self) -> str:
        """The data, and what an oracle said of it."""
        oracle = self.settings["oracle"]
        return f"{self.data}, oracle {oracle}" if oracle else self.data


def image_iou(found: Tensor, labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Mean IoU of one image over the classes in its labels or its answer, where it is labelled; NaN without labels.

    A number on the images' device, for which the host does not wait.
    """
    counted = labels.flatten() != ignore_index
    found, labels = found.flatten().where(counted, 0), labels.flatten().where(counted, 0)
    hit, in_found, in_labels = (
        torch.zeros(classes, dtype=torch.int64, device=labels.device).index_add_(0, places, (counted & chosen).long())
        for places, chosen in ((labels, found == labels), (found, counted), (labels, counted))
    )
    union = in_found + in_labels - hit
    return (hit.double() / union.clamp(min=1)).sum() / (union > 0).sum()


def choose(scores: Sequence[ImageScore], count: int = 3) -> dict[str, list[ImageScore]]:
    """The images with the best, median and worst IoU, so many of each or a third of all; best and worst come first."""
    ranked = sorted((score for score in scores if not math.isnan(score.iou)), key=lambda score: (score.iou, score.name))
    count = min(count, max(len(ranked) // 3, 1))
    middle = (len(ranked) - count) // 2
    chosen = {"best": ranked[::-1][:count], "median": ranked[middle : middle + count], "worst": ranked[:count]}
    return chosen if ranked else {}


def confusions(counts: Tensor, names: Sequence[str], limit: int = 20) -> list[Confusion]:
    """The most frequent confusions of a matrix (K, K) of pixels, true by predicted class."""
    pairs = counts.nonzero()  # (N, 2), few where there are many classes
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    pixels, places = counts[pairs[:, 0], pairs[:, 1]].topk(min(limit, len(pairs)))
    totals = counts.sum(dim=1)
    return [
        Confusion(names[label], names[predicted], amount, amount / int(totals[label]))
        for amount, (label, predicted) in zip(pixels.tolist(), pairs[places].tolist(), strict=True)
    ]


def table(findings: Findings) -> str:
    """The findings for a terminal, in per cent."""
    metrics = findings.metrics
    groups = [group for group in GROUPS if any(name.endswith(f"_{group}") for name in metrics)]
    rows = [[title, *_cells(metrics, name, groups)] for name, (title, _) in METRICS.items() if name in metrics]
    lines = [
        f"{name:<16}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in [["in %", "all", *groups], *rows]
    ]
    return "\n".join(
        [
            f"{findings.title}: {findings.images:,} images; of {len(findings.classes)} classes "
            f"{findings.classes_in_labels} in labels, {findings.classes_in_labels_or_predictions} in labels or "
            "predictions",
            *(line.rstrip() for line in lines),
            f"{findings.images_per_second:.2f} images/s, peak memory {findings.peak_memory_mib:,.0f} MiB a process, "
            f"{findings.processes} × {findings.device}, {findings.settings['precision']}",
        ]
    )


def _cells(metrics: Mapping[str, float], name: str, groups: Sequence[str]) -> list[str]:
    """A metric over all classes and over each group, as text."""
    return [per_cent(metrics.get(key)) for key in (name, *(f"{name}_{group}" for group in groups))]


def per_cent(fraction: float | None) -> str:
    """With one decimal; a dash where there was nothing to count, and nothing where it is not defined."""
    if fraction is None:
        return ""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f}"
