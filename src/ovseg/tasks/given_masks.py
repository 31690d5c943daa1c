"""Replace a segmenter's proposals by the masks of the datamodule."""

from __future__ import annotations

from typing import Any

from ovseg.models import GivenMasks, OpenVocabSegmenter, Proposer
from ovseg.models.views import Views
from ovseg.ops import Classifier
from ovseg.structures import EvalBatch, InputError


def brings_masks(data: Any) -> bool:
    """Return whether a datamodule provides masks with its images (`--data.masks`)."""
    return getattr(data, "masks", None) is not None


def set_proposer(segmenter: OpenVocabSegmenter, data: Any, network: Proposer, classifier: Classifier | None) -> None:
    """Make a segmenter use the masks of the datamodule as proposals if it provides any, else those of a network.

    Args:
        segmenter: its `proposer` and `classifier` are set.
        data: the datamodule.
        network: the proposer to use without masks.
        classifier: the classifier to set; by default the best one that the proposals support.

    Raises:
        InputError: the proposals do not support the classifier, or the segmenter has views and the data has masks.
    """
    if brings_masks(data) and segmenter.views != Views():
        raise InputError("model.views needs masks proposed by a network; remove model.views or --data.masks")
    segmenter.proposer = GivenMasks() if brings_masks(data) else network
    segmenter.classifier = classifier


def take_masks(segmenter: OpenVocabSegmenter, batch: EvalBatch) -> None:
    """Pass the masks of a batch to a segmenter that uses the data's masks as proposals."""
    if isinstance(segmenter.proposer, GivenMasks):
        assert batch.masks is not None  # guaranteed by `brings_masks`
        segmenter.proposer.take(batch.masks, batch.mask_scores)
