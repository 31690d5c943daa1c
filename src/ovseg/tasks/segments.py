"""The segments of ground truth: regions to be named, and what an oracle knows of masks and classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.metrics import segment_ious


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
