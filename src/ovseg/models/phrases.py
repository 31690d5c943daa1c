"""The phrases of a vocabulary as CLIP's features, and regions named by them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.ensemble import RegionLogits
from ovseg.models.proposals.queries import LOGIT_SCALE
from ovseg.ops import CLIP_MEAN, RGB, crop_regions


class PhraseFeatures(NamedTuple):
    """What stands for the classes of a vocabulary."""

    features: Tensor  # (S, D), L2-normalised
    class_of_phrase: Tensor  # (S,) int64
    classes: int  # K

    def best(self, logits: Tensor) -> Tensor:
        """(Q, S) logits of phrases to (Q, K) of classes: a class has that of its best synonym."""
        if len(self.class_of_phrase) == self.classes:
            return logits
        classes = logits.new_full((len(logits), self.classes), -torch.inf)
        return classes.scatter_reduce(1, self.class_of_phrase.expand_as(logits), logits, "amax")


@torch.no_grad()
def classify_regions(
    clip: CLIPAdapter, image: Tensor, masks: Tensor, phrases: PhraseFeatures, fill: RGB = CLIP_MEAN
) -> RegionLogits:
    """CLIP's logits of masked regions.

    Args:
        image: (3, h, w) in [0, 1].
        masks: (Q, h, w) bool.
        fill: colour outside the mask.
    """
    regions, region_masks, valid = crop_regions(image, masks, clip.image_size, fill)
    visible = valid.nonzero()[:, 0]  # once, and not at each use of a mask
    features = clip.encode_regions(regions[visible], region_masks[visible])
    logits = regions.new_zeros((len(masks), len(phrases.features)))
    with torch.autocast(image.device.type, enabled=False):  # half precision is too coarse for logits up to 100
        logits[visible] = LOGIT_SCALE * features.float() @ phrases.features.float().T
    return RegionLogits(phrases.best(logits), valid)
