"""Masks that the datamodule brings, in place of a segmenter's own proposals."""

from __future__ import annotations

from typing import Any

from ovseg.models import GivenMasks, OpenVocabSegmenter, Proposer
from ovseg.models.views import Views
from ovseg.ops import Classifier
from ovseg.structures import EvalBatch, InputError


def brings_masks(data: Any) -> bool:
    """Whether a datamodule brings masks with its images (`--data.masks`)."""
    return getattr(data, "masks", None) is not None


def set_proposer(segmenter: OpenVocabSegmenter, data: Any, network: Proposer, classifier: Classifier | None) -> None:
    """Let a segmenter take its proposals from the data where these bring masks, and else from its network.

    Args:
        network: the segmenter's own proposer.
        classifier: for the proposals; the best that they allow where not given.

    Raises:
        InputError: the proposals do not allow the classifier, or the masks do not allow the segmenter's views.
    """
    if brings_masks(data) and segmenter.views != Views():
        raise InputError("views are for masks that a network proposes in each; leave out model.views or --data.masks")
    segmenter.proposer = GivenMasks() if brings_masks(data) else network
    segmenter.classifier = classifier


def take_masks(segmenter: OpenVocabSegmenter, batch: EvalBatch) -> None:
    """Hand the masks of a batch to a segmenter that takes its proposals from the data."""
    if isinstance(segmenter.proposer, GivenMasks):
        assert batch.masks is not None  # by `brings_masks`
        segmenter.proposer.take(batch.masks, batch.mask_scores)
