"""Combine the class scores of both branches (paper eq. 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ovseg.models.regions.base import RegionEncoder
from ovseg.ops import Classifier, clip_scores, ensemble_scores, proposal_scores
from ovseg.structures import ImageProposals, InputError


class RegionLogits(NamedTuple):
    """CLIP's class logits for masked regions (branch B)."""

    logits: Tensor  # (Q, K), zero where invalid
    valid: Tensor  # (Q,) bool, whether CLIP saw the region: its mask has a pixel, and the encoder selects it


def uses_clip(classifier: Classifier, weight: float) -> bool:
    """Return whether CLIP contributes to the scores."""
    return classifier == "clip" or (classifier == "ensemble" and weight > 0)


def visible_masks(proposals: ImageProposals, threshold: float, encoder: RegionEncoder) -> Tensor:
    """Return the masks that CLIP classifies, (Q, h, w) bool; those that the encoder does not select are empty.

    Args:
        proposals: Q proposals.
        threshold: probability above which a pixel belongs to a proposal's region.
        encoder: selects proposals by their objectness, or by the probability that they are an object.
    """
    if proposals.class_logits is not None:
        objectness = 1 - proposals.class_logits.softmax(dim=1)[:, -1]
    elif proposals.objectness is not None:
        objectness = proposals.objectness
    else:
        objectness = proposals.mask_probs.new_ones(len(proposals.mask_probs))
    masks = proposals.mask_probs > threshold
    return masks.logical_and_(encoder.selects(objectness)[:, None, None])  # in place, since masks are large


def class_scores(
    proposals: ImageProposals, regions: RegionLogits | None, classifier: Classifier, weight: float
) -> Tensor:
    """Return the class scores (Q, K) of proposals.

    For proposals without class logits, the ensemble combines CLIP with their objectness.

    Args:
        proposals: Q proposals.
        regions: CLIP's logits for the proposals' masks; required if `uses_clip`.
        classifier: the branches to use.
        weight: exponent of CLIP's scores in the ensemble.

    Raises:
        InputError: CLIP is not used, but the proposals have no class logits.
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
