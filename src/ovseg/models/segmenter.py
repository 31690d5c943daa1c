"""The whole model: proposals, mask-prompted CLIP, and the ensemble of both (paper §3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.images import check_tensor, read_image, resize_short_side, to_tensor
from ovseg.limits import check_size
from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.clip.text import TextEncoder
from ovseg.models.ensemble import RegionLogits, class_scores, uses_clip, visible_masks
from ovseg.models.phrases import PhraseFeatures
from ovseg.models.proposals.base import Proposer
from ovseg.models.regions.base import RegionEncoder
from ovseg.models.released.parts import released_parts
from ovseg.models.segmenter_folder import EncoderFactory, SegmenterParts, no_settings, read_segmenter, write_segmenter
from ovseg.models.views import ViewAnswer, Views, mean_labels, mean_scores
from ovseg.ops import Classifier
from ovseg.structures import ImageProposals, InputError, Vocabulary, names_of


class OpenVocabSegmenter(nn.Module):
    """Segment images into the classes of a vocabulary that is set at run time.

    Args:
        proposer: proposes masks (branch A).
        region_encoder: encodes their regions (branch B); its CLIP also encodes the vocabulary for both branches.
        templates: prompt templates, see `TextEncoder`.
        mask_threshold: probability above which a pixel belongs to a proposal's region.
        ensemble_weight: exponent of CLIP's scores, in [0, 1]; 0 uses the proposal network alone.
        classifier: `ensemble`, or one branch alone: `clip` or `proposals`. By default `ensemble` if the proposals have
            class logits, else `clip`.
        resize: (short, long) in pixels: `segment` resizes short sides to `short`, unless the long side would exceed
            `long`.

    Raises:
        InputError: a number is out of range, or the proposals do not support the classifier.
    """

    def __init__(
        self,
        proposer: Proposer,
        region_encoder: RegionEncoder,
        templates: str | Sequence[str] = "vild",
        mask_threshold: float = 0.5,
        ensemble_weight: float = 0.7,
        classifier: Classifier | None = None,
        resize: tuple[int, int] = (640, 2560),
    ) -> None:
        super().__init__()
        for name, number in (("mask_threshold", mask_threshold), ("ensemble_weight", ensemble_weight)):
            if not 0 <= number <= 1:
                raise InputError(f"{name} is {number}; give a number from 0 to 1")
        if len(resize) != 2 or not all(type(side) is int and side > 0 for side in resize):
            raise InputError(
                f"resize is {tuple(resize)}; give the short side and the upper limit of the long side in pixels"
            )
        check_size(resize[1], resize[0], "the largest image of resize")
        self.proposer, self.region_encoder = proposer, region_encoder
        self.text = TextEncoder(region_encoder.clip, templates)
        self.mask_threshold, self.ensemble_weight = mask_threshold, ensemble_weight
        self.classifier = classifier
        self.resize = tuple(resize)
        self.views = Views()  # a test-time option, not saved with the segmenter
        self.vocabulary: Vocabulary | None = None
        self.register_buffer("text_features", None, persistent=False)
        self.register_buffer("class_of_phrase", None, persistent=False)

    text_features: Tensor | None  # (S, D), one row per phrase of the vocabulary
    class_of_phrase: Tensor | None  # (S,) index of each phrase's class

    @property
    def clip(self) -> CLIPAdapter:
        """The CLIP of the region encoder."""
        return self.region_encoder.clip

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.clip.mean.device

    @property
    def classifier(self) -> Classifier:
        """The branches that classify; setting one that the proposals do not support raises an `InputError`."""
        return self._classifier

    @classifier.setter
    def classifier(self, classifier: Classifier | None) -> None:
        self._classifier = self.proposer.checked_classifier(classifier)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, region_encoder: EncoderFactory | None = None
    ) -> OpenVocabSegmenter:
        """Load a folder that `save_pretrained` or `ovseg bundle` wrote, `toy`, or a checkpoint of the released OVSeg.

        Args:
            name_or_path: the folder, `toy`, or the `.pth` file.
            region_encoder: creates the region encoder from CLIP; by default, the saved one is loaded.

        Raises:
            InputError: there is no segmenter, or a file is damaged or does not fit.
        """
        if Path(name_or_path).is_file():
            released = released_parts(name_or_path)
            encoder = region_encoder(released.region_encoder.clip) if region_encoder else released.region_encoder
            return cls(released.proposer, encoder, **released.settings).eval()
        parts = read_segmenter(name_or_path, region_encoder)
        try:
            return cls(parts.proposer, parts.region_encoder, **parts.settings).eval()
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise no_settings(Path(name_or_path), error) from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the networks and settings, without the vocabulary, into a new folder or over an earlier segmenter."""
        settings = {
            "templates": list(self.text.templates),
            "mask_threshold": self.mask_threshold,
            "ensemble_weight": self.ensemble_weight,
            "classifier": self.classifier,
            "resize": list(self.resize),
        }
        write_segmenter(Path(folder), SegmenterParts(self.proposer, self.region_encoder, settings))

    def set_vocabulary(self, vocabulary: Vocabulary | Sequence[str]) -> None:
        """Set the classes; a class with synonyms gets the score of its best synonym.

        Raises:
            InputError: there are no names, or a name is empty or repeated.
        """
        vocabulary = names_of(vocabulary)
        self.text_features = self.text(vocabulary.phrases)
        self.proposer.set_text_features(self.text_features)
        self.class_of_phrase = torch.tensor(vocabulary.class_of_phrase, device=self.text_features.device)
        self.region_encoder.set_text_features(self.text_features, self.class_of_phrase)
        self.vocabulary = vocabulary

    @torch.no_grad()
    def forward(
        self, images: Tensor | Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Return the scores of every class at every pixel.

        Args:
            images: (3, h, w) in [0, 1] each, at network resolution.
            sizes: (H, W) to which the scores of each image are resized bilinearly; by default the size of the image.

        Returns:
            (K, H, W) for each image.
        """
        return [
            F.interpolate(mean_scores(answers, _size(image))[None], size, mode="bilinear", align_corners=False)[0]
            for answers, image, size in zip(self.answers(images), images, _sizes(images, sizes), strict=True)
        ]

    @torch.no_grad()
    def labels(self, images: Tensor | Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """Return the best class of every pixel, (H, W) int64 for each image.

        Equals the argmax of `forward`, but never holds the scores of all classes and pixels in memory.
        """
        return [
            mean_labels(answers, _size(image), size)
            for answers, image, size in zip(self.answers(images), images, _sizes(images, sizes), strict=True)
        ]

    def answers(self, images: Tensor | Sequence[Tensor]) -> list[list[ViewAnswer]]:
        """Return the scored proposals of each view, per image, for `mean_labels` or `mean_scores` to average."""
        if self.views == Views():
            return [[ViewAnswer(scores, mask_probs, (0, 0))] for scores, mask_probs in self.score_proposals(images)]
        # one view at a time, because all windows of a large image could exhaust the memory
        return [
            [view.answer(*self.score_proposals([view.image])[0]) for view in self.views.of(image)] for image in images
        ]

    def segment(self, image: Any, vocabulary: Vocabulary | Sequence[str] | None = None) -> Tensor:
        """Return the best class of every pixel of one image.

        Args:
            image: a PIL image, a path, or an (H, W, 3) uint8 array.
            vocabulary: classes to set first; by default those that are already set.

        Returns:
            (H, W) int64 at the image's original size.
        """
        if vocabulary is not None:
            self.set_vocabulary(vocabulary)
        original = read_image(image)
        resized = to_tensor(resize_short_side(original, *self.resize)).to(self.device)
        return self.labels([resized], [(original.height, original.width)])[0]

    def score_proposals(self, images: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the class scores (Q, K) and masks (Q, h, w) in [0, 1] of each image's proposals."""
        classifier, weight, result = self.classifier, self.ensemble_weight, []
        for image, proposals in zip(images, self.propose(images), strict=True):
            regions = None
            if uses_clip(classifier, weight):
                regions = self.classify_regions(
                    image, visible_masks(proposals, self.mask_threshold, self.region_encoder)
                )
            result.append((class_scores(proposals, regions, classifier, weight), proposals.mask_probs))
        return result

    @torch.no_grad()
    def propose(self, images: Tensor | Sequence[Tensor]) -> list[ImageProposals]:
        """Propose masks for each image (branch A).

        Raises:
            InputError: no vocabulary is set, or the images are not RGB in [0, 1].
        """
        if self.vocabulary is None:
            raise InputError("the segmenter has no vocabulary yet; call set_vocabulary(['cat', 'sofa', …]) first")
        for image in images:
            check_tensor(image)
        return self.proposer.propose(images, self.vocabulary)

    @torch.no_grad()
    def classify_regions(self, image: Tensor, masks: Tensor) -> RegionLogits:
        """Return CLIP's class logits for masked regions (branch B); set a vocabulary first.

        Args:
            image: (3, h, w) in [0, 1].
            masks: (Q, h, w) bool.
        """
        assert self.text_features is not None and self.class_of_phrase is not None and self.vocabulary is not None
        phrases = PhraseFeatures(self.text_features, self.class_of_phrase, len(self.vocabulary))
        return phrases.classify(self.region_encoder([image], [masks])[0])


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _sizes(images: Tensor | Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None) -> Sequence[tuple[int, int]]:
    return [_size(image) for image in images] if sizes is None else sizes
