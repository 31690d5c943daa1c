"""The segments of ground truth: regions to be named, and what an oracle knows of masks and classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.metrics import segment_ious
from ovseg.models.ensemble import RegionLogits
from ovseg.structures import Vocabulary


def segment_masks(labels: Tensor, size: tuple[int, int], ignore_index: int) -> tuple[Tensor, Tensor]:
    """The segments of an image at network resolution, by nearest neighbour; one too small for it keeps one pixel.

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
        first = torch.stack([(labels == index).flatten().byte().argmax() for index in classes[lost]])  # pixel of each
        masks[lost, first // width * rows // height, first % width * columns // width] = True
    return classes, masks


def name_segments(
    image: Tensor, labels: Tensor, vocabulary: Vocabulary, classify: Callable[[Tensor, Tensor], RegionLogits]
) -> tuple[Tensor, Tensor]:
    """The classes of an image's segments and what CLIP takes them for, (S,) each, as `MaskAccuracy` counts them.

    Args:
        image: (3, h, w) in [0, 1], at network resolution.
        labels: (H, W) class indices or the vocabulary's `ignore_index`.
        classify: such as `OpenVocabSegmenter.classify_regions`: image and masks to logits.
    """
    classes, masks = segment_masks(labels, (image.shape[1], image.shape[2]), vocabulary.ignore_index)
    return classes, counted(classify(image, masks).logits.argmax(dim=1), vocabulary)


def counted(classes: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The classes of a vocabulary as those of its labels: all of the background are one."""
    return classes.clamp(max=len(vocabulary.scored_names) - 1)


def named_segments(labels: Tensor, classes: Tensor, names: Tensor) -> Tensor:
    """A label map in which every segment bears the name it was given; ignored pixels bear that of class 0.

    Args:
        labels: (H, W) class indices, others are ignored.
        classes: (S,) of the segments, in ascending order.
        names: (S,) the predicted classes.
    """
    if not len(classes):
        return torch.zeros_like(labels)
    places = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    return torch.where(classes[places] == labels, names[places], 0)


def oracle_scores(proposals: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Each proposal takes the class of the segment that it overlaps best (IoU); none where it touches no segment.

    Args:
        proposals: (Q, h, w) bool.
        labels: (H, W) class indices or `ignore_index`.

    Returns:
        (Q, S) of 0 and 1, segments in the order of their classes.
    """
    segments, ious = segment_ious(proposals, labels, ignore_index)
    if not len(segments):
        return ious.T.float()
    return F.one_hot(ious.argmax(dim=0), len(segments)).float() * (ious.T > 0)
