"""Stage 4 for many settings: score a segmenter on a grid of them, in one pass over a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from ovseg.metrics import MeanIoU
from ovseg.models import CLIPAdapter, OpenVocabSegmenter, RegionEncoder
from ovseg.models.ensemble import RegionLogits, class_scores, uses_clip, visible_masks
from ovseg.models.views import Views, mean_labels
from ovseg.structures import EvalBatch, InputError, Vocabulary
from ovseg.tasks.given_masks import brings_masks, set_proposer, take_masks
from ovseg.tasks.segments import merge_background


class Setting(NamedTuple):
    """A point of the grid."""

    mask_threshold: float
    ensemble_weight: float


class SweepTask(L.LightningModule):
    """Score a segmenter's ensemble at every combination of mask threshold and ensemble weight.

    Proposals are computed once per image and CLIP runs once per threshold, so further weights cost almost nothing. The
    results equal those of a `SegmentationTask` run for each setting. The datamodule provides the vocabulary.

    Args:
        segmenter: a folder that `ovseg bundle` wrote, or `toy`.
        ensemble_weights: exponents of CLIP's scores, in [0, 1].
        mask_thresholds: probabilities above which a pixel belongs to a proposal's region.
        region_encoder: class of the region encoder, constructed with the segmenter's CLIP; by default the saved one.
        views: mirrored images and windows to average; by default only the whole image.

    Raises:
        InputError: a list is empty, or a number is repeated or out of range.
    """

    def __init__(
        self,
        segmenter: str,
        ensemble_weights: list[float],
        mask_thresholds: list[float],
        region_encoder: Callable[[CLIPAdapter], RegionEncoder] | None = None,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        for name, values in (("ensemble_weights", ensemble_weights), ("mask_thresholds", mask_thresholds)):
            if not values or len(set(values)) < len(values) or not all(0 <= value <= 1 for value in values):
                raise InputError(f"{name} are {values}; give one or more distinct numbers from 0 to 1")
        self.segmenter = OpenVocabSegmenter.from_pretrained(segmenter, region_encoder)
        self._network = (self.segmenter.proposer,)  # a tuple hides it from the module, where it may be replaced
        self.segmenter.views = views or Views()
        self.thresholds, self.weights = sorted(mask_thresholds), sorted(ensemble_weights)
        self.settings = [Setting(*pair) for pair in product(self.thresholds, self.weights)]
        self.results: dict[Setting, dict[str, float]] = {}  # the values of `MeanIoU`, after a test

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if brings_masks(data) and 0 in self.weights:
            raise InputError("only CLIP can classify the masks of --data.masks; remove weight 0 from ensemble_weights")
        set_proposer(self.segmenter, data, *self._network, "ensemble")  # refuses proposals that do not support it
        vocabulary: Vocabulary = data.vocabulary
        self.vocabulary = vocabulary
        metric_args = (vocabulary.scored_names, vocabulary.ignore_index, vocabulary.scored_seen)
        self.mious = [MeanIoU(*metric_args) for _ in self.settings]
        self._registered_mious = nn.ModuleList(self.mious)  # so that Lightning moves and synchronises them
        data.configure(resize=self.segmenter.resize)

    def on_test_start(self) -> None:
        self.segmenter.set_vocabulary(self.vocabulary)

    def test_step(self, batch: EvalBatch, batch_index: int) -> None:
        take_masks(self.segmenter, batch)
        for image, labels in zip(batch.images, batch.labels, strict=True):
            size = (labels.shape[0], labels.shape[1])
            predictions = labels_of_grid(self.segmenter, image, size, self.thresholds, self.weights)
            for miou, predicted in zip(self.mious, predictions, strict=True):
                miou.update(merge_background(predicted, self.vocabulary), labels)

    def on_test_epoch_end(self) -> None:
        computed = [miou.compute() for miou in self.mious]  # equal in all processes
        self.results = {
            setting: {name: float(value) for name, value in result.items()}
            for setting, result in zip(self.settings, computed, strict=True)
        }


@torch.no_grad()
def labels_of_grid(
    segmenter: OpenVocabSegmenter,
    image: Tensor,
    size: tuple[int, int],
    thresholds: Sequence[float],
    weights: Sequence[float],
) -> Iterator[Tensor]:
    """Yield the labels that `segmenter.labels` returns as an ensemble: for each threshold, one (H, W) map per weight.

    Args:
        segmenter: with a vocabulary.
        image: (3, h, w) in [0, 1], at network resolution.
        size: (H, W) of the labels.
        thresholds: mask thresholds; CLIP runs once for each.
        weights: exponents of CLIP's scores.

    Yields:
        (H, W) int64.
    """
    views = segmenter.views.of(image)
    proposals = [segmenter.propose([view.image])[0] for view in views]
    for threshold in thresholds:
        region_logits: list[RegionLogits | None] = [None] * len(views)
        if any(uses_clip("ensemble", weight) for weight in weights):
            region_logits = [
                segmenter.classify_regions(
                    view.image, visible_masks(view_proposals, threshold, segmenter.region_encoder)
                )
                for view, view_proposals in zip(views, proposals, strict=True)
            ]
        for weight in weights:
            answers = [
                view.answer(class_scores(view_proposals, logits, "ensemble", weight), view_proposals.mask_probs)
                for view, view_proposals, logits in zip(views, proposals, region_logits, strict=True)
            ]
            yield mean_labels(answers, (image.shape[1], image.shape[2]), size)
