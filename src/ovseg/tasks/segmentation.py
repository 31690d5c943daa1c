"""Stage 4: score a segmenter on a benchmark, or segment any images."""

from __future__ import annotations

from typing import NamedTuple

import lightning as L
from torch import Tensor

from ovseg.metrics import MeanIoU
from ovseg.models import OpenVocabSegmenter
from ovseg.ops import Classifier
from ovseg.structures import EvalBatch, InputError, Vocabulary


class Segmentation(NamedTuple):
    """The answer for one image."""

    name: str  # of the image file
    labels: Tensor  # (H, W) int64


class SegmentationTask(L.LightningModule):
    """Tests a segmenter, or predicts with it; the vocabulary is the datamodule's.

    Args:
        segmenter: a folder that `ovseg bundle` wrote, or `toy`.
        ensemble_weight: exponent of CLIP in [0, 1]; the segmenter's own where not given, like the next two.
        mask_threshold: probability above which a pixel belongs to a proposal's region.
        classifier: `ensemble`, or one branch alone: `clip`, `proposals`.
    """

    def __init__(
        self,
        segmenter: str,
        ensemble_weight: float | None = None,
        mask_threshold: float | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        super().__init__()
        self.segmenter = OpenVocabSegmenter.from_pretrained(segmenter)
        settings = {"ensemble_weight": ensemble_weight, "mask_threshold": mask_threshold, "classifier": classifier}
        for name, value in settings.items():
            if value is not None:
                setattr(self.segmenter, name, value)
        for name in ("ensemble_weight", "mask_threshold"):
            if not 0 <= (value := getattr(self.segmenter, name)) <= 1:
                raise InputError(f"{name} is {value}; give a number from 0 to 1")

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        vocabulary: Vocabulary = data.vocabulary
        self.vocabulary = vocabulary
        self.miou = MeanIoU(vocabulary.scored_names, vocabulary.ignore_index, vocabulary.seen)
        if data.dataset.resize is None:  # images come at the resolution that the segmenter was made for
            data.dataset.resize = self.segmenter.resize

    def on_test_start(self) -> None:
        self.segmenter.set_vocabulary(self.vocabulary)

    def on_predict_start(self) -> None:
        self.segmenter.set_vocabulary(self.vocabulary)

    def test_step(self, batch: EvalBatch, batch_index: int) -> None:
        for preds, labels in zip(self.segmenter.labels(batch.images, batch.sizes), batch.labels, strict=True):
            self.miou.update(preds.clamp(max=len(self.vocabulary.scored_names) - 1), labels)

    def on_test_epoch_end(self) -> None:
        result = self.miou.compute()  # already the same in every process; `sync_dist` says so to Lightning
        self.log_dict({f"test/{name}": value.float() for name, value in result.items()}, sync_dist=True)
        self.miou.reset()

    def predict_step(self, batch: EvalBatch, batch_index: int) -> list[Segmentation]:
        labels = self.segmenter.labels(batch.images, batch.sizes)
        return [Segmentation(name, found.cpu()) for name, found in zip(batch.names, labels, strict=True)]
