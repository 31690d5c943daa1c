"""Classify regions by the text features of a vocabulary's phrases."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ovseg.models.ensemble import RegionLogits
from ovseg.models.proposals.queries import LOGIT_SCALE
from ovseg.ops import best_synonyms
from ovseg.structures import RegionFeatures


class PhraseFeatures(NamedTuple):
    """Text features of all phrases of a vocabulary."""

    features: Tensor  # (S, D), L2-normalised
    class_of_phrase: Tensor  # (S,) int64
    classes: int  # K

    def classify(self, regions: RegionFeatures) -> RegionLogits:
        """Return the logits of N regions for the K classes; a class has the logit of its best synonym."""
        visible = regions.valid.nonzero()[:, 0]
        logits = self.features.new_zeros((len(regions.valid), len(self.features)), dtype=torch.float32)
        with torch.autocast(logits.device.type, enabled=False):  # half precision is too coarse for logits up to 100
            logits[visible] = LOGIT_SCALE * regions.features[visible].float() @ self.features.float().T
        return RegionLogits(best_synonyms(logits, self.class_of_phrase, self.classes), regions.valid)
