"""What both branches say of an image's proposals, and how it is joined."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ovseg.ops import Classifier, clip_scores, ensemble_scores, proposal_scores


class ImageProposals(NamedTuple):
    """Branch A: the proposals for one image at network resolution, before CLIP sees their regions."""

    image: Tensor  # (3, h, w) in [0, 1]
    mask_probs: Tensor  # (Q, h, w) in [0, 1]
    class_logits: Tensor | None  # (Q, K + 1), no-object last
    objectness: Tensor | None  # (Q,) in [0, 1], in place of class logits


class RegionLogits(NamedTuple):
    """Branch B: what CLIP says of the regions of binary masks."""

    logits: Tensor  # (Q, K), zero where invalid
    valid: Tensor  # (Q,) bool, whether a mask has any pixel


def clip_speaks(classifier: Classifier, weight: float) -> bool:
    """Whether CLIP has a say in the scores."""
    return classifier == "clip" or (classifier == "ensemble" and weight > 0)


def join_branches(
    proposals: ImageProposals, regions: RegionLogits | None, classifier: Classifier, weight: float
) -> Tensor:
    """Class scores (Q, K) of proposals.

    Args:
        regions: of the proposals' masks; needed where `clip_speaks`.
        weight: exponent of CLIP in the ensemble.
    """
    if not clip_speaks(classifier, weight):
        assert proposals.class_logits is not None  # the vocabulary is set, and the classifier was checked
        return proposal_scores(proposals.class_logits)
    assert regions is not None
    if classifier == "clip":
        return clip_scores(*regions, proposals.objectness)
    assert proposals.class_logits is not None
    return ensemble_scores(proposals.class_logits, *regions, weight)
