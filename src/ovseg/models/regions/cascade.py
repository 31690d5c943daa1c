"""A cascade of region encoders: one pass for all regions, crops for those that need more detail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.regions.base import RegionEncoder
from ovseg.models.regions.cascade_parts import built, crop_clip_of, merged
from ovseg.models.regions.coverage import hard_support, patch_coverages
from ovseg.models.regions.crops import CropEncoder
from ovseg.models.regions.single_pass import SinglePassEncoder
from ovseg.ops import best_synonyms
from ovseg.structures import ImageTextBatch, InputError, RegionFeatures, RegionTextBatch


class CascadeEncoder(RegionEncoder):
    """Encode all regions in a single pass, then encode the small or undecided ones again as crops.

    A region qualifies for a crop if it is small (`min_patches`) or undecided (`min_margin`). If more regions qualify
    than the budget allows, those furthest below their threshold win. Without thresholds, all regions qualify, and the
    crops go to those with the smallest margin or, without a vocabulary of two classes, with the fewest patches.

    With a budget of 0 the features equal those of the single pass. With a budget of at least the number of regions
    and no thresholds, they equal those of the crops.

    Args:
        clip: encodes the images of the single pass, the texts and, without `crop_clip`, the crops.
        single_pass: options of the `SinglePassEncoder`, such as `clip_short_side`.
        crops: options of the `CropEncoder`, such as `fill`.
        crop_clip: another CLIP for the crops, such as the `.ckpt` of adapter training, if the single pass and the crops
            were adapted separately. Its text tower must be that of `clip`. A saved segmenter contains its image tower
            and stores its mask prompts' `prompt_depth` and `shared_prompt` here.
        min_patches: regions with fewer patches qualify, counted where the single pass sees a hard mask.
        min_margin: regions qualify whose cosine similarities to the two best classes differ by less.
        budget: largest number of crops per image, or per window if windows are averaged.

    Raises:
        InputError: an option is out of range, or `crop_clip` has another embedding space or image tower than `clip`.
    """

    text_features: Tensor | None  # (S, D), one row per phrase of the vocabulary
    class_of_phrase: Tensor | None  # (S,) index of each phrase's class

    def __init__(
        self,
        clip: CLIPAdapter,
        single_pass: dict[str, Any] | None = None,
        crops: dict[str, Any] | None = None,
        crop_clip: str | dict[str, Any] | None = None,
        min_patches: int | None = None,
        min_margin: float | None = None,
        budget: int = 20,
    ) -> None:
        super().__init__(clip)
        if budget < 0:
            raise InputError(f"budget is {budget}; give the largest number of crops per image, or 0 for none")
        if min_patches is not None and min_patches < 1:
            raise InputError(f"min_patches is {min_patches}; give at least 1, or null for no threshold")
        if min_margin is not None and not 0 < min_margin < math.inf:
            raise InputError(f"min_margin is {min_margin}; give a cosine similarity above 0, or null for no threshold")
        self.single_pass = built(SinglePassEncoder, clip, single_pass, "single_pass")
        self.crops = built(CropEncoder, crop_clip_of(clip, crop_clip), crops, "crops")
        self.min_patches, self.min_margin, self.budget = min_patches, min_margin, budget
        self._options = (single_pass, crops)
        self.register_buffer("text_features", None, persistent=False)
        self.register_buffer("class_of_phrase", None, persistent=False)
        self.classes = 0

    def set_text_features(self, text_features: Tensor, class_of_phrase: Tensor) -> None:
        """Receive the vocabulary whose classes decide margins; see `RegionEncoder.set_text_features`."""
        self.text_features, self.class_of_phrase = text_features, class_of_phrase
        self.classes = int(class_of_phrase.max()) + 1

    def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[RegionFeatures]:
        """Encode the regions of each image; the crops of all images are encoded together.

        See `RegionEncoder.forward`.

        Raises:
            InputError: `min_margin` is set, but there is no vocabulary.
        """
        if self.min_margin is not None and self.text_features is None:
            raise InputError(
                "min_margin compares the two best classes, but no vocabulary is set; call set_vocabulary first, or "
                "use min_patches where there is no vocabulary, as in mining"
            )
        encoded: list[RegionFeatures] = self.single_pass(images, masks)
        chosen = [self._choose(*args) for args in zip(images, masks, encoded, strict=True)]
        if not any(len(rows) for rows in chosen):
            return encoded
        crops = self.crops(images, [image_masks[rows] for image_masks, rows in zip(masks, chosen, strict=True)])
        return [_replace(*args) for args in zip(encoded, chosen, crops, strict=True)]

    def selects(self, objectness: Tensor) -> Tensor:
        """Return which proposals are encoded, (Q,) bool: those that the options of the crops select."""
        return self.crops.selects(objectness)

    def encode_batch(self, batch: RegionTextBatch | ImageTextBatch) -> Tensor:
        """Refuse to train: the two encoders are trained separately.

        Raises:
            InputError: always.
        """
        raise InputError(
            "CascadeEncoder cannot be trained as a whole; train a SinglePassEncoder, and a CropEncoder for crop_clip"
        )

    def settings(self) -> dict[str, Any]:
        crop_clip, prompt = None, self.crops.clip.visual.prompt
        if self.crops.clip is not self.clip:
            shared = prompt is not None and prompt.mask_embedding.shape[1] == 1
            crop_clip = {"prompt_depth": 0 if prompt is None else prompt.depth, "shared_prompt": shared}
        return {
            "single_pass": self.single_pass.settings(),
            "crops": self.crops.settings(),
            "crop_clip": crop_clip,
            "min_patches": self.min_patches,
            "min_margin": self.min_margin,
            "budget": self.budget,
        }

    def inherit(self, saved: RegionEncoder) -> None:
        """Continue with the options and weights of a saved `SinglePassEncoder` or `CropEncoder`.

        Options given to the constructor take precedence.
        """
        single_pass, crops = self._options
        if type(saved) is SinglePassEncoder:
            self.single_pass = merged(saved, self.clip, single_pass, "single_pass")
        if type(saved) is CropEncoder:
            self.crops = merged(saved, self.crops.clip, crops, "crops")

    def _choose(self, image: Tensor, masks: Tensor, encoded: RegionFeatures) -> Tensor:
        """Return the indices of the regions to encode as crops, (C,) in ascending order."""
        rows = encoded.valid.nonzero()[:, 0]
        if not self.budget or not len(rows):
            return rows[:0]
        if self.min_patches is None and self.min_margin is None:
            compare = self.classes > 1
            need = self._margins(encoded.features[rows]) if compare else self._sizes(image, masks[rows])
        else:
            shares = []  # of each threshold that a region reaches
            if self.min_patches is not None:
                shares.append(self._sizes(image, masks[rows]) / self.min_patches)
            if self.min_margin is not None:
                shares.append(self._margins(encoded.features[rows]) / self.min_margin)
            need = torch.stack(shares).amin(dim=0)
            rows, need = rows[need < 1], need[need < 1]
        return rows[need.argsort(stable=True)[: self.budget]].sort().values

    def _margins(self, features: Tensor) -> Tensor:
        """Return by how much the cosine similarities of regions (N, D) to their two best classes differ, (N,)."""
        assert self.text_features is not None and self.class_of_phrase is not None
        if self.classes < 2:
            return features.new_full((len(features),), math.inf)
        with torch.autocast(features.device.type, enabled=False):
            cosines = features.float() @ self.text_features.float().T
        best = best_synonyms(cosines, self.class_of_phrase, self.classes).topk(2, dim=1).values
        return best[:, 0] - best[:, 1]

    def _sizes(self, image: Tensor, masks: Tensor) -> Tensor:
        """Return the number of patches of masks (N, h, w) in the single pass, (N,).

        The fraction orders masks with equally many patches by area.
        """
        coverage = patch_coverages(masks, self.single_pass.grid_of(image))  # (N, L)
        return hard_support(coverage).sum(dim=1) + coverage.sum(dim=1) / (coverage.shape[1] + 1)


def _replace(encoded: RegionFeatures, rows: Tensor, crops: RegionFeatures) -> RegionFeatures:
    """Replace the features of the regions at `rows` by those of their crops."""
    features, valid = encoded.features.clone(), encoded.valid.clone()
    features[rows], valid[rows] = crops.features.to(features.dtype), crops.valid
    return RegionFeatures(features, valid)
