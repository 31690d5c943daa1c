"""Test-time options: mirrored images and sliding windows, each answered for itself and averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from torch import Tensor

from ovseg.images import check_tensor
from ovseg.ops import band_values, labels_in_bands, semantic_labels, semantic_rows, semantic_scores
from ovseg.structures import InputError


class View(NamedTuple):
    """What the network gets to see of an image."""

    image: Tensor  # (3, h, w), a part of the image at network resolution
    corner: tuple[int, int]  # of the part in the image: y, x
    mirrored: bool

    def answer(self, scores: Tensor, mask_probs: Tensor) -> ViewAnswer:
        """What its proposals say, (Q, K) and (Q, h, w), as it lies in the image."""
        return ViewAnswer(scores, mask_probs.flip(2) if self.mirrored else mask_probs, self.corner)


class ViewAnswer(NamedTuple):
    """What the proposals of one view say, where it lies in the image."""

    scores: Tensor  # (Q, K)
    mask_probs: Tensor  # (Q, h, w) in [0, 1]
    corner: tuple[int, int]


@dataclass(frozen=True)
class Views:
    """Which views of an image are averaged; the whole image alone, as in the paper, unless said otherwise.

    Args:
        mirror: the mirrored image, too.
        window: side in pixels of square windows, at network resolution; an image that is no larger is seen as a whole.
        stride: between windows; two thirds of `window` where not given.
    """

    mirror: bool = False
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.window is None and self.stride is not None:
            raise InputError("views.stride is the step between windows; give views.window, too")
        if self.window is not None and self.window < 32:
            raise InputError(f"views.window is {self.window}; give at least 32 pixels")
        if self.window is not None and self.stride is not None and not 0 < self.stride <= self.window:
            raise InputError(f"views.stride is {self.stride}; give 1 to {self.window} pixels, the side of a window")

    def of(self, image: Tensor) -> list[View]:
        """The views of an image (3, h, w), the mirrored ones last."""
        check_tensor(image)
        height, width = image.shape[1:]
        window = self.window or max(height, width)
        views = [
            View(image[:, top : top + window, left : left + window], (top, left), False)
            for top in self._starts(height)
            for left in self._starts(width)
        ]
        mirrored = [View(view.image.flip(2), view.corner, True) for view in views]
        return views + mirrored if self.mirror else views

    def _starts(self, side: int) -> list[int]:
        """Where windows begin; the last one ends where the image does."""
        if self.window is None or self.window >= side:
            return [0]
        room, stride = side - self.window, self.stride or 2 * self.window // 3
        return [min(index * stride, room) for index in range(ceil(room / stride) + 1)]


def mean_scores(answers: Sequence[ViewAnswer], size: tuple[int, int]) -> Tensor:
    """Scores of every class at every pixel, (K, h, w), at the answers' resolution; `size` is the image's."""
    if len(answers) == 1:
        return semantic_scores(answers[0].scores, answers[0].mask_probs)
    return _band(answers, size)(0, size[0]).permute(2, 0, 1)


def mean_labels(answers: Sequence[ViewAnswer], image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Best class of every pixel, (H, W) at `size`: the argmax of resized `mean_scores`, without its memory."""
    if len(answers) == 1:
        return semantic_labels(answers[0].scores, answers[0].mask_probs, size)
    like = answers[0].scores
    return labels_in_bands(_band(answers, image_size), (*image_size, like.shape[1]), size, band_values(like.device))


def _band(answers: Sequence[ViewAnswer], size: tuple[int, int]) -> Callable[[int, int], Tensor]:
    """First and last row, exclusive → (rows, w, K): the mean of the answers that cover a pixel."""
    like, classes = answers[0].mask_probs, answers[0].scores.shape[1]
    count = like.new_zeros((*size, 1))
    for found in answers:
        count[_place(found)] += 1

    def band(first: int, last: int) -> Tensor:
        total = like.new_zeros((last - first, size[1], classes))
        for found in answers:
            rows, columns = _place(found)
            start, end = max(first, rows.start), min(last, rows.stop)
            if start < end:
                part = found.mask_probs[:, start - rows.start : end - rows.start]
                total[start - first : end - first, columns] += semantic_rows(found.scores, part)
        return total.div_(count[first:last])

    return band


def _place(found: ViewAnswer) -> tuple[slice, slice]:
    """Rows and columns of the image that an answer covers."""
    (top, left), (height, width) = found.corner, found.mask_probs.shape[1:]
    return slice(top, top + height), slice(left, left + width)
