"""Test-time augmentation: average the scores of mirrored images and sliding windows."""

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
    """A window of an image, possibly mirrored, as input of the network."""

    image: Tensor  # (3, h, w) at network resolution
    corner: tuple[int, int]  # y, x of the window's top left pixel in the image
    mirrored: bool

    def answer(self, scores: Tensor, mask_probs: Tensor) -> ViewAnswer:
        """Place the proposals of this view, scores (Q, K) and masks (Q, h, w), into the image."""
        return ViewAnswer(scores, mask_probs.flip(2) if self.mirrored else mask_probs, self.corner)


class ViewAnswer(NamedTuple):
    """The scored proposals of one view, in the coordinates of the image."""

    scores: Tensor  # (Q, K)
    mask_probs: Tensor  # (Q, h, w) in [0, 1]
    corner: tuple[int, int]  # y, x of the view's top left pixel in the image


@dataclass(frozen=True)
class Views:
    """Which views of an image to average; by default only the whole image, as in the paper.

    Args:
        mirror: add the mirrored view of each window.
        window: side length of square windows, in pixels at network resolution; by default one window per image.
        stride: pixels between windows; two thirds of `window` by default.

    Raises:
        InputError: a value is out of range, or `stride` is set without `window`.
    """

    mirror: bool = False
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.window is None and self.stride is not None:
            raise InputError("views.stride is the step between windows; set views.window as well")
        if self.window is not None and self.window < 32:
            raise InputError(f"views.window is {self.window}; set at least 32 pixels")
        if self.window is not None and self.stride is not None and not 0 < self.stride <= self.window:
            raise InputError(f"views.stride is {self.stride}; set 1 to {self.window} pixels, the size of a window")

    def of(self, image: Tensor) -> list[View]:
        """Return the views of an image (3, h, w), the mirrored ones last."""
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
        """Return where windows start along one side; the last one is aligned with the end of the image."""
        if self.window is None or self.window >= side:
            return [0]
        last, stride = side - self.window, self.stride or 2 * self.window // 3
        return [min(index * stride, last) for index in range(ceil(last / stride) + 1)]


def mean_scores(answers: Sequence[ViewAnswer], size: tuple[int, int]) -> Tensor:
    """Average the scores of every class at every pixel.

    Args:
        answers: the answers of all views of an image.
        size: (h, w) of the image at network resolution.

    Returns:
        (K, h, w).
    """
    if len(answers) == 1:
        return semantic_scores(answers[0].scores, answers[0].mask_probs)
    return _band(answers, size)(0, size[0]).permute(2, 0, 1)


def mean_labels(answers: Sequence[ViewAnswer], image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return the argmax over classes of `mean_scores` resized bilinearly to `size`, without holding them in memory.

    Args:
        answers: the answers of all views of an image.
        image_size: (h, w) of the image at network resolution.
        size: (H, W) of the result.

    Returns:
        (H, W) int64.
    """
    if len(answers) == 1:
        return semantic_labels(answers[0].scores, answers[0].mask_probs, size)
    scores = answers[0].scores
    shape = (*image_size, scores.shape[1])
    return labels_in_bands(_band(answers, image_size), shape, size, band_values(scores.device))


def _band(answers: Sequence[ViewAnswer], size: tuple[int, int]) -> Callable[[int, int], Tensor]:
    """Return a function of first and last row (exclusive) that averages all views at each pixel, (rows, w, K)."""
    like, classes = answers[0].mask_probs, answers[0].scores.shape[1]
    count = like.new_zeros((*size, 1))
    for answer in answers:
        count[_extent(answer)] += 1

    def band(first: int, last: int) -> Tensor:
        total = like.new_zeros((last - first, size[1], classes))
        for answer in answers:
            rows, columns = _extent(answer)
            start, end = max(first, rows.start), min(last, rows.stop)
            if start < end:
                part = answer.mask_probs[:, start - rows.start : end - rows.start]
                total[start - first : end - first, columns] += semantic_rows(answer.scores, part)
        return total.div_(count[first:last])

    return band


def _extent(answer: ViewAnswer) -> tuple[slice, slice]:
    """Return the rows and columns of the image that an answer covers."""
    (top, left), (height, width) = answer.corner, answer.mask_probs.shape[1:]
    return slice(top, top + height), slice(left, left + width)
