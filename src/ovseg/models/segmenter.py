"""The whole model: proposals, mask-prompted CLIP, and the ensemble of both (paper §3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from ovseg.checkpoint import toy_weights
from ovseg.images import MIN_SIDE, read_image, resize_short_side, to_tensor
from ovseg.models.clip_adapter import CLIPAdapter
from ovseg.models.official import official_parts
from ovseg.models.proposals import LOGIT_SCALE, MaskProposer
from ovseg.models.text import TextClassifier
from ovseg.ops import (
    CLIP_MEAN,
    Classifier,
    clip_scores,
    crop_regions,
    ensemble_scores,
    mask_probabilities,
    proposal_scores,
    semantic_labels,
    semantic_scores,
)
from ovseg.structures import InputError, Proposals, Vocabulary, names_of

SETTINGS = "segmenter.yaml"
FILLS = {"mean": CLIP_MEAN, "zero": (0.0, 0.0, 0.0)}


class OpenVocabSegmenter(nn.Module):
    """Segments images into the words of a vocabulary that is set at run time.

    Args:
        proposer: branch A.
        clip: branch B, and the text tower of both.
        templates: prompt templates, see `TextClassifier`.
        mask_threshold: probability above which a pixel belongs to a proposal's region.
        ensemble_weight: exponent of CLIP in [0, 1]; 0 is the proposal network alone.
        classifier: `ensemble`, or one branch alone: `clip`, `proposals`; the ensemble where not given, unless the
            proposals come from a checkpoint of Hugging Face's, which only `clip` can classify.
        fill: colour outside the mask of a region, CLIP's `mean` or `zero`.
        resize: (short, long) side in pixels that `segment` resizes to: short, unless the longer side would exceed long.
    """

    def __init__(
        self,
        proposer: MaskProposer,
        clip: CLIPAdapter,
        templates: str | Sequence[str] = "vild",
        mask_threshold: float = 0.5,
        ensemble_weight: float = 0.7,
        classifier: Classifier | None = None,
        fill: Literal["mean", "zero"] = "mean",
        resize: tuple[int, int] = (640, 2560),
    ) -> None:
        super().__init__()
        if not (0 <= mask_threshold <= 1 and 0 <= ensemble_weight <= 1 and min(resize) > 0):
            raise InputError(
                f"mask_threshold {mask_threshold} and ensemble_weight {ensemble_weight} are numbers from 0 to 1, and "
                f"images are resized to at least 1 pixel, not {min(resize)}"
            )
        self.proposer, self.clip = proposer, clip
        self.text = TextClassifier(clip, templates)
        self.mask_threshold, self.ensemble_weight = mask_threshold, ensemble_weight
        self.classifier = classifier
        self.fill, self.resize = fill, tuple(resize)
        self.vocabulary: Vocabulary | None = None
        self.register_buffer("class_of_phrase", None, persistent=False)

    class_of_phrase: Tensor | None  # (S,) index of the class that each phrase stands for

    @property
    def classifier(self) -> Classifier:
        """Which branches speak; one that the proposals cannot serve is refused with an `InputError`."""
        return self._classifier

    @classifier.setter
    def classifier(self, wanted: Classifier | None) -> None:
        self._classifier = self.proposer.checked_classifier(wanted)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> OpenVocabSegmenter:
        """Load a folder that `save_pretrained` or `ovseg bundle` wrote, `toy`, or a checkpoint of the released OVSeg.

        Raises:
            InputError: nothing is there, or it does not fit.
        """
        folder = toy_weights() if str(name_or_path) == "toy" else Path(name_or_path)
        if folder.is_file():
            parts = official_parts(folder)
            return cls(parts.proposer, parts.clip, **parts.settings).eval()
        if not (folder / SETTINGS).is_file():
            raise InputError(
                f"no segmenter in {folder}: it has no {SETTINGS}; make one with `ovseg bundle "
                "--proposals PROPOSALS.ckpt --clip ADAPTER.ckpt --out FOLDER`, or use `toy`"
            )
        settings: dict[str, Any] = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
        segmenter = cls(MaskProposer(str(folder / "proposer")), CLIPAdapter(str(folder / "clip")), **settings)
        return segmenter.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the networks and settings into a folder; the vocabulary is not part of them."""
        folder = Path(folder)
        (folder / SETTINGS).unlink(missing_ok=True)
        self.proposer.save_pretrained(folder / "proposer")
        self.clip.save_pretrained(folder / "clip")
        settings = {
            "templates": list(self.text.templates),
            "mask_threshold": self.mask_threshold,
            "ensemble_weight": self.ensemble_weight,
            "classifier": self.classifier,
            "fill": self.fill,
            "resize": list(self.resize),
        }
        # last, since a folder without it is known to be incomplete
        (folder / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def set_vocabulary(self, vocabulary: Vocabulary | Sequence[str]) -> None:
        """Choose the classes; a class with synonyms scores as its best synonym.

        Raises:
            InputError: no names, an empty or a repeated one.
        """
        vocabulary = names_of(vocabulary)
        phrases = [phrase for synonyms in vocabulary.synonyms for phrase in synonyms]
        owners = [index for index, synonyms in enumerate(vocabulary.synonyms) for _ in synonyms]
        self.proposer.set_text_features(self.text(phrases))
        self.class_of_phrase = torch.tensor(owners, device=self.proposer.image_mean.device)
        self.vocabulary = vocabulary

    @torch.no_grad()
    def forward(
        self, images: Tensor | Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Scores of every class at every pixel.

        Args:
            images: (3, h, w) in [0, 1] each, at network resolution.
            sizes: (H, W) of each answer; bilinear. The images' own where not given.

        Returns:
            (K, H, W) an image.
        """
        return [
            F.interpolate(semantic_scores(scores, probs)[None], size, mode="bilinear", align_corners=False)[0]
            for (scores, probs), size in zip(self.score_proposals(images), _sizes(images, sizes), strict=True)
        ]

    @torch.no_grad()
    def labels(self, images: Tensor | Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """Best class of every pixel, (H, W) int64 an image: the argmax of `forward`, without its memory."""
        return [
            semantic_labels(scores, probs, size)
            for (scores, probs), size in zip(self.score_proposals(images), _sizes(images, sizes), strict=True)
        ]

    def segment(self, image: Any, vocabulary: Vocabulary | Sequence[str] | None = None) -> Tensor:
        """Best class of every pixel of one image.

        Args:
            image: a PIL image, a path, or an (H, W, 3) uint8 array.
            vocabulary: classes to set first.

        Returns:
            (H, W) int64 at the image's own size.
        """
        if vocabulary is not None:
            self.set_vocabulary(vocabulary)
        picture = read_image(image)
        pixels = to_tensor(resize_short_side(picture, *self.resize)).to(self.proposer.image_mean.device)
        return self.labels([pixels], [(picture.height, picture.width)])[0]

    @torch.no_grad()
    def score_proposals(self, images: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per image the class scores (Q, K) of its proposals and their masks (Q, h, w) in [0, 1].

        Raises:
            InputError: no vocabulary is set, or the images are not RGB in [0, 1].
        """
        if self.vocabulary is None:
            raise InputError("the segmenter has no vocabulary yet; call set_vocabulary(['cat', 'sofa', …]) first")
        for image in images:
            _check_image(image)
        answer: Proposals = self.proposer(images)[-1]
        result = []
        for index, image in enumerate(images):
            probs = mask_probabilities(answer.mask_logits[index].float(), (image.shape[1], image.shape[2]))
            result.append((self._scores(image, probs, answer, index), probs))
        return result

    def _scores(self, image: Tensor, probs: Tensor, answer: Proposals, index: int) -> Tensor:
        """(Q, K) from the image (3, h, w), its masks (Q, h, w) and what the proposal network says of it."""
        if self.classifier == "clip":
            objectness = None if answer.objectness is None else answer.objectness[index]
            return clip_scores(*self.classify_regions(image, probs > self.mask_threshold), objectness)
        assert answer.class_logits is not None  # the vocabulary is set
        class_logits = self._best_synonym(answer.class_logits[index].float())
        if self.classifier == "proposals" or self.ensemble_weight == 0:
            return proposal_scores(class_logits)
        clip_logits, valid = self.classify_regions(image, probs > self.mask_threshold)
        return ensemble_scores(class_logits, clip_logits, valid, self.ensemble_weight)

    @torch.no_grad()
    def classify_regions(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Branch B: CLIP's logits of masked regions.

        Args:
            image: (3, h, w) in [0, 1].
            masks: (Q, h, w) bool.

        Returns:
            (Q, K) logits, zero where invalid, and (Q,) whether a mask has any pixel.
        """
        regions, region_masks, valid = crop_regions(image, masks, self.clip.image_size, FILLS[self.fill])
        features = self.clip.encode_regions(regions[valid], region_masks[valid]).float()
        texts = self.proposer.text_features
        assert texts is not None and self.class_of_phrase is not None
        logits = regions.new_zeros((len(masks), texts.shape[0]))
        with torch.autocast(image.device.type, enabled=False):  # half precision is too coarse for logits up to 100
            logits[valid] = LOGIT_SCALE * features @ texts.T
        return self._best_synonym(logits, no_object=False), valid

    def _best_synonym(self, logits: Tensor, no_object: bool = True) -> Tensor:
        """(Q, S [+ 1]) logits of phrases to (Q, K [+ 1]) of classes."""
        assert self.class_of_phrase is not None and self.vocabulary is not None
        if len(self.class_of_phrase) == len(self.vocabulary):
            return logits
        phrases = logits[:, :-1] if no_object else logits
        classes = logits.new_full((len(logits), len(self.vocabulary)), -torch.inf)
        classes = classes.scatter_reduce(1, self.class_of_phrase.expand_as(phrases), phrases, "amax")
        return torch.cat([classes, logits[:, -1:]], dim=1) if no_object else classes


def _check_image(image: Tensor) -> None:
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[0] != 3:
        raise InputError(f"an image is a tensor of shape (3, h, w), got {shape}; convert it to RGB first")
    if min(shape[1:]) < MIN_SIDE:
        patch = f"one patch ({MIN_SIDE} × {MIN_SIDE})"
        raise InputError(f"an image of {shape[1]} × {shape[2]} pixels is smaller than {patch}; enlarge or leave it out")
    if not image.is_floating_point():
        raise InputError(f"an image is a tensor of floats in [0, 1], got {image.dtype}; divide bytes by 255")


def _sizes(images: Tensor | Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None) -> Sequence[tuple[int, int]]:
    return [(image.shape[1], image.shape[2]) for image in images] if sizes is None else sizes
