"""The class scores of proposals, from both branches (paper eq. 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ovseg.ops import Classifier, clip_scores, ensemble_scores, proposal_scores
from ovseg.structures import ImageProposals, InputError


class RegionLogits(NamedTuple):
    """Branch B: CLIP's logits of the regions of binary masks."""

    logits: Tensor  # (Q, K), zero where invalid
    valid: Tensor  # (Q,) bool, whether a mask has any pixel


def uses_clip(classifier: Classifier, weight: float) -> bool:
    """Whether CLIP contributes to the scores."""
    return classifier == "clip" or (classifier == "ensemble" and weight > 0)


def class_scores(
    proposals: ImageProposals, regions: RegionLogits | None, classifier: Classifier, weight: float
) -> Tensor:
    """Class scores (Q, K) of proposals.

    Without class logits, an ensemble combines CLIP with the proposals' objectness.

    Args:
        regions: of the proposals' masks; needed where `uses_clip`.
        weight: exponent of CLIP in the ensemble.

    Raises:
        InputError: proposals without class logits are to be scored without CLIP.
    """
    if not uses_clip(classifier, weight):
        if proposals.class_logits is None:
            raise InputError(
                "these proposals have no class logits, so CLIP has to classify them; use classifier 'clip'"
            )
        return proposal_scores(proposals.class_logits)
    assert regions is not None
    if classifier == "clip":
        return clip_scores(*regions, proposals.objectness)
    if proposals.class_logits is None:
        objectness = torch.ones_like(regions.logits[:, 0]) if proposals.objectness is None else proposals.objectness
        return clip_scores(*regions) ** weight * objectness[:, None] ** (1 - weight)
    return ensemble_scores(proposals.class_logits, *regions, weight)
