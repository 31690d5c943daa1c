"""Ground-truth segments: classify them with CLIP, and use them as oracles for masks or classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.metrics import segment_ious
from ovseg.models.ensemble import RegionLogits
from ovseg.structures import Vocabulary


def segment_masks(labels: Tensor, size: tuple[int, int], ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the segments of an image at network resolution, sampled by nearest neighbour.

    A segment too small for this resolution keeps one pixel.

    Args:
        labels: (H, W) class indices or `ignore_index`.
        size: (h, w) of the masks.

    Returns:
        The classes of the segments, (S,) in ascending order, and their masks, (S, h, w) bool.
    """
    classes = torch.unique(labels[labels != ignore_index])
    (height, width), (rows, columns) = labels.shape, size
    down = ((torch.arange(rows, device=labels.device) + 0.5) * (height / rows)).long()
    across = ((torch.arange(columns, device=labels.device) + 0.5) * (width / columns)).long()
    masks = labels[down][:, across] == classes[:, None, None]
    lost = (~masks.flatten(1).any(dim=1)).nonzero()[:, 0]
    if len(lost):
        first = torch.stack(
            [(labels == index).flatten().byte().argmax() for index in classes[lost]]
        )  # first pixel of each
        masks[lost, first // width * rows // height, first % width * columns // width] = True
    return classes, masks


def name_segments(
    image: Tensor, labels: Tensor, vocabulary: Vocabulary, classify: Callable[[Tensor, Tensor], RegionLogits]
) -> tuple[Tensor, Tensor]:
    """Return the true and the predicted classes of an image's segments, (S,) each, for `MaskAccuracy`.

    Args:
        image: (3, h, w) in [0, 1], at network resolution.
        labels: (H, W) class indices or the vocabulary's `ignore_index`.
        vocabulary: the classes of the labels and of the logits.
        classify: maps an image and its masks to logits, for example `OpenVocabSegmenter.classify_regions`.
    """
    classes, masks = segment_masks(labels, (image.shape[1], image.shape[2]), vocabulary.ignore_index)
    return classes, merge_background(classify(image, masks).logits.argmax(dim=1), vocabulary)


def merge_background(classes: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Map predicted classes to the scored ones: all background classes become one, see `Vocabulary.background_from`."""
    return classes.clamp(max=len(vocabulary.scored_names) - 1)


def relabel_segments(labels: Tensor, classes: Tensor, predictions: Tensor) -> Tensor:
    """Return a label map with the predicted class of every segment; pixels in no segment get class 0.

    Args:
        labels: (H, W) class indices; pixels of other classes than `classes` are in no segment.
        classes: (S,) true classes of the segments, in ascending order.
        predictions: (S,) predicted classes of the segments.

    Returns:
        (H, W) int64.
    """
    if not len(classes):
        return torch.zeros_like(labels)
    segments = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    return torch.where(classes[segments] == labels, predictions[segments], 0)


def oracle_scores(proposals: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Score each proposal 1 for the segment of highest IoU and 0 for all others; 0 for all if it overlaps none.

    Args:
        proposals: (Q, h, w) bool.
        labels: (H, W) class indices or `ignore_index`.

    Returns:
        (Q, S) float zeros and ones, segments in the order of their classes.
    """
    segments, ious = segment_ious(proposals, labels, ignore_index)
    if not len(segments):
        return ious.T.float()
    return F.one_hot(ious.argmax(dim=0), len(segments)).float() * (ious.T > 0)
