"""Stage 4, many times: score a segmenter at every setting of a grid, in one pass over a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from ovseg.metrics import MeanIoU
from ovseg.models import CLIPAdapter, OpenVocabSegmenter, RegionEncoder
from ovseg.models.ensemble import RegionLogits, class_scores, uses_clip
from ovseg.models.views import Views, mean_labels
from ovseg.structures import EvalBatch, InputError, Vocabulary
from ovseg.tasks.given_masks import brings_masks, set_proposer, take_masks
from ovseg.tasks.segments import counted


class Setting(NamedTuple):
    """A point of the grid."""

    mask_threshold: float
    ensemble_weight: float


class SweepTask(L.LightningModule):
    """Tests the ensemble of a segmenter at every pair of mask threshold and weight; the vocabulary is the datamodule's.

    The proposals of an image are made once and CLIP sees their regions once a threshold, so that weights cost next to
    nothing. The counts are those of as many runs of a `SegmentationTask`.

    Args:
        segmenter: a folder that `ovseg bundle` wrote, or `toy`.
        ensemble_weights: exponents of CLIP in [0, 1].
        mask_thresholds: probabilities above which a pixel belongs to a proposal's region.
        region_encoder: makes from CLIP what encodes the regions; the segmenter's own where not given.
        views: test-time options; the whole image alone where not given.
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
                raise InputError(f"{name} are {values}; give one or more different numbers from 0 to 1")
        self.segmenter = OpenVocabSegmenter.from_pretrained(segmenter, region_encoder)
        self._network = (self.segmenter.proposer,)  # a tuple, so that it may be replaced
        self.segmenter.views = views or Views()
        self.thresholds, self.weights = sorted(mask_thresholds), sorted(ensemble_weights)
        self.settings = [Setting(*pair) for pair in product(self.thresholds, self.weights)]
        self.results: dict[Setting, dict[str, float]] = {}  # what `MeanIoU` computes, after a test

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if brings_masks(data) and 0 in self.weights:
            raise InputError("masks of --data.masks have no classes but CLIP's; leave weight 0 out of ensemble_weights")
        set_proposer(self.segmenter, data, *self._network, "ensemble")  # refuses proposals that cannot take part in one
        vocabulary: Vocabulary = data.vocabulary
        self.vocabulary = vocabulary
        options = (vocabulary.scored_names, vocabulary.ignore_index, vocabulary.scored_seen)
        self.mious = [MeanIoU(*options) for _ in self.settings]
        self._modules_of_metrics = nn.ModuleList(self.mious)  # for Lightning to move and synchronise
        data.configure(resize=self.segmenter.resize)

    def on_test_start(self) -> None:
        self.segmenter.set_vocabulary(self.vocabulary)

    def test_step(self, batch: EvalBatch, batch_index: int) -> None:
        take_masks(self.segmenter, batch)
        for image, labels in zip(batch.images, batch.labels, strict=True):
            size = (labels.shape[0], labels.shape[1])
            answers = labels_of_grid(self.segmenter, image, size, self.thresholds, self.weights)
            for miou, found in zip(self.mious, answers, strict=True):
                miou.update(counted(found, self.vocabulary), labels)

    def on_test_epoch_end(self) -> None:
        computed = [miou.compute() for miou in self.mious]  # the same in every process
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
    """What `segmenter.labels` would answer as an ensemble, (H, W) int64 for each threshold and, within it, each weight.

    Args:
        image: (3, h, w) in [0, 1], at network resolution.
        size: (H, W).
        thresholds: of masks; CLIP sees the regions once at each.
        weights: exponents of CLIP.
    """
    views = segmenter.views.of(image)
    proposals = [segmenter.propose([view.image])[0] for view in views]
    for threshold in thresholds:
        regions: list[RegionLogits | None] = [None] * len(views)
        if any(uses_clip("ensemble", weight) for weight in weights):
            regions = [
                segmenter.classify_regions(view.image, of_view.mask_probs > threshold)
                for view, of_view in zip(views, proposals, strict=True)
            ]
        for weight in weights:
            answers = [
                view.answer(class_scores(of_view, region, "ensemble", weight), of_view.mask_probs)
                for view, of_view, region in zip(views, proposals, regions, strict=True)
            ]
            yield mean_labels(answers, (image.shape[1], image.shape[2]), size)
