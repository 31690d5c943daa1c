"""Stage 4: score a segmenter on a benchmark, or segment any images."""

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
from ovseg.tasks.segments import counted, name_segments, named_segments, oracle_scores, segment_masks

Oracle = Literal["masks", "classes"]


class Segmentation(NamedTuple):
    """The answer for one image."""

    name: str  # of the image file
    labels: Tensor  # (H, W) int64


class Answer(NamedTuple):
    """What a test asks of one image, in the classes that its labels have."""

    labels: Tensor  # (H, W) int64
    segments: Tensor  # (S,) the classes of the ground-truth segments
    names: Tensor  # (S,) what CLIP takes them for; none where it is not asked
    proposals: Tensor | None  # (Q, h, w) bool, of all views; None where the masks are the oracle's


class SegmentationTask(L.LightningModule):
    """Tests a segmenter, or predicts with it; the vocabulary is the datamodule's.

    Args:
        segmenter: a folder that `ovseg bundle` wrote, or `toy`.
        ensemble_weight: exponent of CLIP in [0, 1]; the segmenter's own where not given, like the next two.
        mask_threshold: probability above which a pixel belongs to a proposal's region.
        classifier: `ensemble`, or one branch alone: `clip`, `proposals`.
        oracle: what the test takes from ground truth, to see where the bottleneck is: `masks`, which CLIP alone then
            names, or `classes`, of which each proposal gets that of the segment it overlaps best.
        region_encoder: makes from CLIP what encodes the regions; the segmenter's own where not given.
        views: mirrored images and windows to be averaged; the whole image alone where not given.
        name_segments: whether CLIP names the true segments, too, for the mask accuracy of a test.

    Raises:
        InputError: a number means nothing, or options contradict each other.
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
            raise InputError("with oracle masks the answer is the names of the true segments; leave name_segments out")
        if oracle and (classifier or "clip") != "clip":
            told = "CLIP alone names the masks" if oracle == "masks" else "no classifier is asked"
            raise InputError(f"with oracle {oracle} {told}; leave classifier {classifier} out")
        self.segmenter = OpenVocabSegmenter.from_pretrained(segmenter, region_encoder)
        settings = {"ensemble_weight": ensemble_weight, "mask_threshold": mask_threshold, "classifier": classifier}
        for name, value in settings.items():
            if value is not None:
                setattr(self.segmenter, name, value)
        for name in ("ensemble_weight", "mask_threshold"):
            if not 0 <= (value := getattr(self.segmenter, name)) <= 1:
                raise InputError(f"{name} is {value}; give a number from 0 to 1")
        self._own = (self.segmenter.proposer, self.segmenter.classifier)  # a tuple, so that it may be replaced
        self.asked_classifier = classifier
        self.oracle, self.name_segments = oracle, name_segments
        self.segmenter.views = views or Views()

    def setup(self, stage: str) -> None:
        if self.oracle and stage == "predict":
            raise InputError(f"oracle {self.oracle} needs labels, which `ovseg test` has; leave it out")
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.oracle == "masks" and brings_masks(data):
            raise InputError("with oracle masks the regions are the true segments; leave --data.masks out")
        network, classifier = self._own
        if brings_masks(data) or self.segmenter.proposer is not network:
            set_proposer(self.segmenter, data, network, self.asked_classifier if brings_masks(data) else classifier)
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
        """Counts, and gives the answers to callbacks."""
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
        # already the same in every process; `sync_dist` says so to Lightning
        self.log_dict({f"test/{name}": value.float() for name, value in result.items()}, sync_dist=True)

    def predict_step(self, batch: EvalBatch, batch_index: int) -> list[Segmentation]:
        if not batch.images:
            return []
        take_masks(self.segmenter, batch)
        labels = self.segmenter.labels(batch.images, batch.sizes)
        return [Segmentation(name, found.cpu()) for name, found in zip(batch.names, labels, strict=True)]

    def answer(self, image: Tensor, labels: Tensor) -> Answer:
        """The answer to an image (3, h, w) whose labels are (H, W)."""
        if self.name_segments:
            segments, names = name_segments(image, labels, self.vocabulary, self.segmenter.classify_regions)
        else:
            segments, _ = segment_masks(labels, (image.shape[1], image.shape[2]), self.vocabulary.ignore_index)
            names = segments.new_zeros(0)
        if self.oracle == "masks":
            return Answer(named_segments(labels, segments, names), segments, names, None)
        oracle = self.oracle == "classes"
        views = self._oracle_views(image, labels) if oracle else self.segmenter.answers([image])[0]
        masks = torch.cat([self._masks(view, image) for view in views])
        if oracle and not len(segments):
            return Answer(torch.zeros_like(labels), segments, names, masks)
        found = mean_labels(views, (image.shape[1], image.shape[2]), (labels.shape[0], labels.shape[1]))
        return Answer(segments[found] if oracle else counted(found, self.vocabulary), segments, names, masks)

    def _oracle_views(self, image: Tensor, labels: Tensor) -> list[ViewAnswer]:
        """The views of an image, scored by an oracle that knows classes: (Q, S), S segments."""
        views = []
        for view in self.segmenter.views.of(image):
            probs = self.segmenter.propose([view.image])[0].mask_probs
            unscored = view.answer(probs.new_empty(len(probs), 0), probs)
            scores = oracle_scores(self._masks(unscored, image), labels, self.vocabulary.ignore_index)
            views.append(unscored._replace(scores=scores))
        return views

    def _masks(self, view: ViewAnswer, image: Tensor) -> Tensor:
        """The binary masks of a view, (Q, h, w) of the whole image."""
        (top, left), (height, width) = view.corner, view.mask_probs.shape[1:]
        around = (left, image.shape[2] - left - width, top, image.shape[1] - top - height)
        return F.pad(view.mask_probs > self.segmenter.mask_threshold, around)
