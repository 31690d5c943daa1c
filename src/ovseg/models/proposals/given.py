"""A proposer for masks that come with the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.models.proposals.base import Proposer
from ovseg.ops import band_values
from ovseg.structures import ImageProposals, InputError, Vocabulary


class GivenMasks(Proposer):
    """Propose the masks that come with each image of a batch (`--data.masks`).

    Before each call of `propose`, pass the masks of its images to `take`. The proposals have no class logits; their
    objectness is the score of the mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self._masks: list[Tensor] = []
        self._scores: list[Tensor] = []

    def take(self, masks: Sequence[Tensor], scores: Sequence[Tensor] | None = None) -> None:
        """Store the masks of the images in the next call of `propose`.

        Args:
            masks: (M, H, W) bool for each image, at any resolution.
            scores: (M,) in [0, 1] for each image; all 1 by default.
        """
        self._masks = list(masks)
        self._scores = [torch.ones(len(image_masks), device=image_masks.device) for image_masks in masks]
        if scores is not None:
            self._scores = list(scores)

    def propose(self, images: Tensor | Sequence[Tensor], vocabulary: Vocabulary | None = None) -> list[ImageProposals]:
        """Return the stored masks, resized to each image; see `Proposer.propose`.

        Raises:
            InputError: the numbers of images and of stored masks differ.
        """
        if len(images) != len(self._masks):
            raise InputError(
                f"GivenMasks has the masks of {len(self._masks)} images, not of {len(images)}; set --data.masks, or "
                "pass the masks of these images to take()"
            )
        return [
            ImageProposals(_resize(masks, (image.shape[1], image.shape[2])), None, scores.to(image.device))
            for image, masks, scores in zip(images, self._masks, self._scores, strict=True)
        ]


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks (M, H, W) bool to their coverage of each pixel, (M, h, w) in [0, 1]."""
    coverage = torch.empty((len(masks), *size), device=masks.device)
    if not len(masks):
        return coverage
    at_once = max(band_values(masks.device) // (masks.shape[1] * masks.shape[2]), 1)  # of masks as floats
    for part, target in zip(torch.split(masks, at_once), torch.split(coverage, at_once), strict=True):
        resized = F.interpolate(part[None].float(), size, mode="bilinear", antialias=True, align_corners=False)[0]
        torch.clamp(resized, 0, 1, out=target)
    return coverage
