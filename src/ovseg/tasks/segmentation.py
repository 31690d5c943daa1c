"""Stage 4: score a segmenter on a benchmark, or segment images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.metrics import MaskAccuracy, MeanBestIoU, MeanIoU
from ovseg.models import CLIPAdapter, OpenVocabSegmenter, RegionEncoder
from ovseg.models.views import ViewAnswer, Views, mean_labels
from ovseg.ops import Classifier
from ovseg.structures import EvalBatch, InputError, Vocabulary
from ovseg.tasks.given_masks import brings_masks, set_proposer, take_masks
from ovseg.tasks.segments import merge_background, name_segments, oracle_scores, relabel_segments, segment_masks

Oracle = Literal["masks", "classes"]


class Segmentation(NamedTuple):
    """The predicted labels of one image."""

    name: str  # the image file
    labels: Tensor  # (H, W) int64


class Answer(NamedTuple):
    """The predictions that a test scores for one image, in the classes of its labels."""

    labels: Tensor  # (H, W) int64
    segments: Tensor  # (S,) true classes of the ground-truth segments
    names: Tensor  # (S,) classes that CLIP predicts for them; empty without `name_segments`
    proposals: Tensor | None  # (Q, h, w) bool, of all views; None with oracle masks


class SegmentationTask(L.LightningModule):
    """Score a segmenter on a benchmark, or segment images with it. The datamodule provides the vocabulary.

    Args:
        segmenter: a folder that `ovseg bundle` wrote, or `toy`.
        ensemble_weight: exponent of CLIP's scores, in [0, 1]; by default the segmenter's setting.
        mask_threshold: probability above which a pixel belongs to a proposal's region; by default the segmenter's
            setting.
        classifier: `ensemble`, or one branch alone: `clip` or `proposals`; by default the segmenter's setting.
        oracle: take part of the prediction from ground truth, to locate the bottleneck. `masks`: CLIP alone classifies
            the ground-truth segments; `classes`: each proposal gets the class of the segment it overlaps best.
        region_encoder: class of the region encoder, constructed with the segmenter's CLIP; by default the saved one.
        views: mirrored images and windows to average; by default only the whole image.
        name_segments: let CLIP classify the ground-truth segments too, for the mask accuracy of a test.

    Raises:
        InputError: a number is out of range, or options contradict each other.
    """

    def __init__(
        self,
        segmenter: str,
        ensemble_weight: float | None = None,
        mask_threshold: float | None = None,
        classifier: Classifier | None = None,
        oracle: Oracle | None = None,
        region_encoder: Callable[[CLIPAdapter], RegionEncoder] | None = None,
        views: Views | None = None,
        name_segments: bool = True,
    ) -> None:
        super().__init__()
        if oracle == "masks" and not name_segments:
            raise InputError("oracle masks needs the classes that CLIP predicts for segments; remove name_segments")
        if oracle and (classifier or "clip") != "clip":
            reason = "lets CLIP alone classify the masks" if oracle == "masks" else "uses no classifier"
            raise InputError(f"oracle {oracle} {reason}; remove classifier {classifier}")
        self.segmenter = OpenVocabSegmenter.from_pretrained(segmenter, region_encoder)
        settings = {"ensemble_weight": ensemble_weight, "mask_threshold": mask_threshold, "classifier": classifier}
        for name, value in settings.items():
            if value is not None:
                setattr(self.segmenter, name, value)
        for name in ("ensemble_weight", "mask_threshold"):
            if not 0 <= (value := getattr(self.segmenter, name)) <= 1:
                raise InputError(f"{name} is {value}; give a number from 0 to 1")
        # a tuple hides the proposer from the module, where it may be replaced
        self._initial = (self.segmenter.proposer, self.segmenter.classifier)
        self.requested_classifier = classifier
        self.oracle, self.name_segments = oracle, name_segments
        self.segmenter.views = views or Views()

    def setup(self, stage: str) -> None:
        if self.oracle and stage == "predict":
            raise InputError(f"oracle {self.oracle} needs labels, which only `ovseg test` has; remove it")
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.oracle == "masks" and brings_masks(data):
            raise InputError("oracle masks uses the ground-truth segments as masks; remove --data.masks")
        network, classifier = self._initial
        if brings_masks(data) or self.segmenter.proposer is not network:
            set_proposer(self.segmenter, data, network, self.requested_classifier if brings_masks(data) else classifier)
        vocabulary: Vocabulary = data.vocabulary
        self.vocabulary = vocabulary
        names = vocabulary.scored_names
        self.miou = MeanIoU(names, vocabulary.ignore_index, vocabulary.scored_seen)
        self.mask_accuracy = MaskAccuracy(len(names), vocabulary.scored_seen)
        self.recall = MeanBestIoU()
        data.configure(resize=self.segmenter.resize)

    def on_test_start(self) -> None:
        self.segmenter.set_vocabulary(self.vocabulary)

    def on_predict_start(self) -> None:
        self.segmenter.set_vocabulary(self.vocabulary)

    def test_step(self, batch: EvalBatch, batch_index: int) -> dict[str, list[Segmentation]]:
        """Update the metrics, and return the predicted labels for callbacks."""
        take_masks(self.segmenter, batch)
        segmentations = []
        for name, image, labels in zip(batch.names, batch.images, batch.labels, strict=True):
            answer = self.answer(image, labels)
            self.miou.update(answer.labels, labels)
            if self.name_segments:
                self.mask_accuracy.update(answer.names, answer.segments)
            if answer.proposals is not None:
                self.recall.update(answer.proposals, labels, self.vocabulary.ignore_index)
            segmentations.append(Segmentation(name, answer.labels))
        return {"answers": segmentations}

    def on_test_epoch_end(self) -> None:
        result = {**self.miou.compute(), **(self.mask_accuracy.compute() if self.name_segments else {})}
        if self.oracle != "masks":
            result["proposal_recall"] = self.recall.compute()
        # the values are equal in all processes; without `sync_dist`, Lightning would warn
        self.log_dict({f"test/{name}": value.float() for name, value in result.items()}, sync_dist=True)

    def predict_step(self, batch: EvalBatch, batch_index: int) -> list[Segmentation]:
        if not batch.images:
            return []
        take_masks(self.segmenter, batch)
        predictions = self.segmenter.labels(batch.images, batch.sizes)
        return [Segmentation(name, labels.cpu()) for name, labels in zip(batch.names, predictions, strict=True)]

    def answer(self, image: Tensor, labels: Tensor) -> Answer:
        """Predict the labels, segment classes and proposals of an image (3, h, w) with ground truth (H, W)."""
        if self.name_segments:
            segments, names = name_segments(image, labels, self.vocabulary, self.segmenter.classify_regions)
        else:
            segments, _ = segment_masks(labels, (image.shape[1], image.shape[2]), self.vocabulary.ignore_index)
            names = segments.new_zeros(0)
        if self.oracle == "masks":
            return Answer(relabel_segments(labels, segments, names), segments, names, None)
        true_classes = self.oracle == "classes"
        views = self._oracle_views(image, labels) if true_classes else self.segmenter.answers([image])[0]
        masks = torch.cat([self._masks(view, image) for view in views])
        if true_classes and not len(segments):
            return Answer(torch.zeros_like(labels), segments, names, masks)
        best = mean_labels(views, (image.shape[1], image.shape[2]), (labels.shape[0], labels.shape[1]))
        predicted = segments[best] if true_classes else merge_background(best, self.vocabulary)
        return Answer(predicted, segments, names, masks)

    def _oracle_views(self, image: Tensor, labels: Tensor) -> list[ViewAnswer]:
        """Return the proposals of each view of an image, with scores (Q, S) from the S ground-truth segments."""
        views = []
        for view in self.segmenter.views.of(image):
            probs = self.segmenter.propose([view.image])[0].mask_probs
            unscored = view.answer(probs.new_empty(len(probs), 0), probs)
            scores = oracle_scores(self._masks(unscored, image), labels, self.vocabulary.ignore_index)
            views.append(unscored._replace(scores=scores))
        return views

    def _masks(self, view: ViewAnswer, image: Tensor) -> Tensor:
        """Return the binary masks of a view, padded to the whole image, (Q, h, w)."""
        (top, left), (height, width) = view.corner, view.mask_probs.shape[1:]
        margins = (left, image.shape[2] - left - width, top, image.shape[1] - top - height)
        return F.pad(view.mask_probs > self.segmenter.mask_threshold, margins)
