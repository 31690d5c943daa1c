"""Masks that the data bring, in place of a network's proposals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.models.proposals.base import Proposer
from ovseg.structures import ImageProposals, InputError, Vocabulary


class GivenMasks(Proposer):
    """Proposes the masks that come with each image of a batch (`--data.masks`).

    Call `take` with the masks of a batch before its images are proposed for. The proposals have no class logits; their
    objectness is the masks' score.
    """

    def __init__(self) -> None:
        super().__init__()
        self._masks: list[Tensor] = []
        self._scores: list[Tensor] = []

    def take(self, masks: Sequence[Tensor], scores: Sequence[Tensor] | None = None) -> None:
        """Take the masks of the images that `propose` is called with next.

        Args:
            masks: (M, H, W) bool each, at any resolution.
            scores: (M,) in [0, 1] each; 1 where not given.
        """
        self._masks = list(masks)
        self._scores = [torch.ones(len(of_image), device=of_image.device) for of_image in masks]
        if scores is not None:
            self._scores = list(scores)

    def propose(self, images: Tensor | Sequence[Tensor], vocabulary: Vocabulary | None = None) -> list[ImageProposals]:
        """The masks taken, resized to each image; see `Proposer.propose`.

        Raises:
            InputError: the masks are those of another number of images.
        """
        if len(images) != len(self._masks):
            raise InputError(
                f"GivenMasks has the masks of {len(self._masks)} images, not of {len(images)}; give --data.masks, or "
                "call take() with the masks of these images"
            )
        return [
            ImageProposals(_resize(masks, (image.shape[1], image.shape[2])), None, scores.to(image.device))
            for image, masks, scores in zip(images, self._masks, self._scores, strict=True)
        ]


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Coverage (M, h, w) in [0, 1] of masks (M, H, W) bool."""
    if not len(masks):
        return torch.zeros((0, *size), device=masks.device)
    return F.interpolate(masks[None].float(), size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)
