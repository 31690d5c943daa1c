"""The whole model: proposals, mask-prompted CLIP, and the ensemble of both (paper §3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from ovseg.checkpoint import first_line, toy_weights
from ovseg.images import check_tensor, read_image, resize_short_side, to_tensor
from ovseg.limits import check_size
from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.clip.files import WEIGHTS
from ovseg.models.clip.text import TextEncoder
from ovseg.models.ensemble import ImageProposals, RegionLogits, clip_speaks, join_branches
from ovseg.models.phrases import PhraseFeatures, classify_regions
from ovseg.models.proposals.queries import MaskProposer
from ovseg.models.released.parts import released_parts
from ovseg.models.segmenter_folder import SETTINGS, check_segmenter_target
from ovseg.models.views import ViewAnswer, Views, mean_labels, mean_scores
from ovseg.ops import CLIP_MEAN, Classifier, mask_probabilities
from ovseg.structures import InputError, Vocabulary, names_of

FILLS = {"mean": CLIP_MEAN, "zero": (0.0, 0.0, 0.0)}


class OpenVocabSegmenter(nn.Module):
    """Segments images into the words of a vocabulary that is set at run time.

    Args:
        proposer: branch A.
        clip: branch B, and the text tower of both.
        templates: prompt templates, see `TextEncoder`.
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
        for name, number in (("mask_threshold", mask_threshold), ("ensemble_weight", ensemble_weight)):
            if not 0 <= number <= 1:
                raise InputError(f"{name} is {number}; give a number from 0 to 1")
        if len(resize) != 2 or not all(type(side) is int and side > 0 for side in resize):
            raise InputError(f"resize is {tuple(resize)}; give the short and the longest long side in pixels")
        check_size(resize[1], resize[0], "the largest image of resize")
        if fill not in FILLS:
            raise InputError(f"fill is {fill!r}; choose from {', '.join(FILLS)}")
        self.proposer, self.clip = proposer, clip
        self.text = TextEncoder(clip, templates)
        self.mask_threshold, self.ensemble_weight = mask_threshold, ensemble_weight
        self.classifier = classifier
        self.fill, self.resize = fill, tuple(resize)
        self.views = Views()  # test-time options, no part of a saved segmenter
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
            parts = released_parts(folder)
            return cls(parts.proposer, parts.clip, **parts.settings).eval()
        if not (folder / SETTINGS).is_file():
            lack = f"it has no {SETTINGS}" if folder.exists() else "it does not exist"
            raise InputError(
                f"no segmenter in {folder}: {lack}; make one with `ovseg bundle "
                "--proposals PROPOSALS.ckpt --clip ADAPTER.ckpt --out FOLDER`, or use `toy`"
            )
        if not (folder / "clip" / WEIGHTS).is_file():  # a CLIP folder without weights is otherwise a new CLIP
            raise InputError(f"no weights of CLIP in {folder / 'clip'}: it has no {WEIGHTS}; fetch the segmenter again")
        proposer, clip = MaskProposer(str(folder / "proposer")), CLIPAdapter(str(folder / "clip"))
        try:
            settings: dict[str, Any] = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
            return cls(proposer, clip, **settings).eval()
        except InputError:
            raise
        except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{folder / SETTINGS} holds no settings ({first_line(error)}); bundle it again") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the networks and settings, without the vocabulary, into a new folder or over an earlier segmenter."""
        folder = Path(folder)
        check_segmenter_target(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text("", encoding="utf-8")  # without settings it is known to be incomplete
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
        (folder / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def set_vocabulary(self, vocabulary: Vocabulary | Sequence[str]) -> None:
        """Choose the classes; a class with synonyms scores as its best synonym.

        Raises:
            InputError: no names, an empty or a repeated one.
        """
        vocabulary = names_of(vocabulary)
        self.proposer.set_text_features(self.text(vocabulary.phrases))
        self.class_of_phrase = torch.tensor(vocabulary.class_of_phrase, device=self.proposer.image_mean.device)
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
            F.interpolate(mean_scores(answers, _size(image))[None], size, mode="bilinear", align_corners=False)[0]
            for answers, image, size in zip(self.answers(images), images, _sizes(images, sizes), strict=True)
        ]

    @torch.no_grad()
    def labels(self, images: Tensor | Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """Best class of every pixel, (H, W) int64 an image: the argmax of `forward`, without its memory."""
        return [
            mean_labels(answers, _size(image), size)
            for answers, image, size in zip(self.answers(images), images, _sizes(images, sizes), strict=True)
        ]

    def answers(self, images: Tensor | Sequence[Tensor]) -> list[list[ViewAnswer]]:
        """Per image what `views` says, to be averaged by `mean_labels` or `mean_scores`."""
        if self.views == Views():
            return [[ViewAnswer(*found, (0, 0))] for found in self.score_proposals(images)]
        # one at a time, since windows of a large image could fill the memory
        return [
            [view.answer(*self.score_proposals([view.image])[0]) for view in self.views.of(image)] for image in images
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

    def score_proposals(self, images: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per image the class scores (Q, K) of its proposals and their masks (Q, h, w) in [0, 1]."""
        classifier, weight, result = self.classifier, self.ensemble_weight, []
        for found in self.propose(images):
            regions = None
            if clip_speaks(classifier, weight):
                regions = self.classify_regions(found.image, found.mask_probs > self.mask_threshold)
            result.append((join_branches(found, regions, classifier, weight), found.mask_probs))
        return result

    @torch.no_grad()
    def propose(self, images: Tensor | Sequence[Tensor]) -> list[ImageProposals]:
        """Branch A, for each image.

        Raises:
            InputError: no vocabulary is set, or the images are not RGB in [0, 1].
        """
        if self.vocabulary is None:
            raise InputError("the segmenter has no vocabulary yet; call set_vocabulary(['cat', 'sofa', …]) first")
        for image in images:
            check_tensor(image)
        if not len(images):
            return []
        masks, _, logits, objectness = self.proposer(images)[-1]
        return [
            ImageProposals(
                image,
                mask_probabilities(masks[index].float(), _size(image)),
                None if logits is None else self._best_synonyms(logits[index].float()),
                None if objectness is None else objectness[index],
            )
            for index, image in enumerate(images)
        ]

    def classify_regions(self, image: Tensor, masks: Tensor) -> RegionLogits:
        """Branch B: CLIP's logits of masked regions.

        Args:
            image: (3, h, w) in [0, 1].
            masks: (Q, h, w) bool.
        """
        return classify_regions(self.clip, image, masks, self._phrases(), FILLS[self.fill])

    def _phrases(self) -> PhraseFeatures:
        features = self.proposer.text_features
        assert features is not None and self.class_of_phrase is not None and self.vocabulary is not None
        return PhraseFeatures(features, self.class_of_phrase, len(self.vocabulary))

    def _best_synonyms(self, logits: Tensor) -> Tensor:
        """(Q, S + 1) logits of phrases and no object to (Q, K + 1) of classes."""
        return torch.cat([self._phrases().best(logits[:, :-1]), logits[:, -1:]], dim=1)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _sizes(images: Tensor | Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None) -> Sequence[tuple[int, int]]:
    return [_size(image) for image in images] if sizes is None else sizes
