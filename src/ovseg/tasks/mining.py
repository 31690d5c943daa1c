"""Stage 2: match the nouns of captions to masked regions by CLIP (paper §3.2)."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg import rle
from ovseg.checkpoint import network_digest
from ovseg.models import CLIPAdapter, MaskProposer, TextEncoder
from ovseg.ops import band_values, crop_regions, mask_probabilities, masks_to_boxes
from ovseg.structures import CaptionBatch, InputError, RegionTextPair
from ovseg.tasks.pair_filters import PairFilters


class Regions(NamedTuple):
    """The regions of one image that CLIP can see."""

    masks: Tensor  # (N, H, W) bool, at the image's own size
    scores: Tensor  # (N,) of the proposals
    indices: Tensor  # (N,) which of the given masks they are
    crops: Tensor  # (N, 3, s, s)
    crop_masks: Tensor  # (N, s, s) bool


class MiningTask(L.LightningModule):
    """Gives each noun of an image the region that CLIP finds most similar to it.

    The regions of all images of a batch go through CLIP together. What a batch gives depends on nothing else, so that
    it does not matter which process mines it, and after what.

    Args:
        clip: embeds regions and nouns; the paper uses plain ViT-L/14.
        proposals: network that proposes the regions: a `.ckpt`, a folder, a hub name or `toy`. Without it the regions
            are the masks that the datamodule gives.
        mask_threshold: probability above which a pixel belongs to a region.
        templates: prompt templates of the nouns, see `TextEncoder`.
        filters: what is left out; nothing by default.
        clip_batch: regions that go through CLIP at once.

    Raises:
        InputError: a number that means nothing.
    """

    def __init__(
        self,
        clip: CLIPAdapter,
        proposals: str | None = None,
        mask_threshold: float = 0.5,
        templates: str | list[str] = "single",
        filters: PairFilters = PairFilters(),  # noqa: B008 (frozen)
        clip_batch: int = 256,
    ) -> None:
        super().__init__()
        if not 0 <= mask_threshold <= 1:
            raise InputError(f"mask_threshold is {mask_threshold}; give a number from 0 to 1")
        if clip_batch < 1:
            raise InputError(f"clip_batch is {clip_batch}; give at least 1")
        self.clip = clip
        self.proposer = None if proposals is None else MaskProposer(proposals)
        self.mask_threshold, self.filters, self.clip_batch = mask_threshold, filters, clip_batch
        self.text = TextEncoder(clip, templates)

    def settings(self) -> dict[str, str | int | float | None]:
        """All that pairs depend on beside the batches; networks by their weights, so that files may move."""
        return {
            "clip": network_digest(self.clip, self.clip.architecture()),
            "proposals": None if self.proposer is None else network_digest(self.proposer, self.proposer.architecture()),
            "mask_threshold": None if self.proposer is None else self.mask_threshold,
            "templates": " | ".join(self.text.templates),
            "clip_batch": self.clip_batch,
            **asdict(self.filters),
        }

    def predict_step(self, batch: CaptionBatch, batch_index: int) -> list[RegionTextPair]:
        """The pairs of a batch of images; an image without any region or noun has none."""
        if not any(batch.nouns):
            return []
        given = self._regions(batch)
        regions = [self._see(image, *of_image) for image, of_image in zip(batch.images, given, strict=True)]
        features = torch.split(self._embed(regions), [len(found.masks) for found in regions])
        unique = sorted({noun for nouns in batch.nouns for noun in nouns})
        with torch.autocast(self.device.type, enabled=False):  # half precision would tie nouns and regions that differ
            texts = dict(zip(unique, self.text.encode(unique), strict=True))
        pairs = []
        for index, nouns in enumerate(batch.nouns):
            if nouns and len(features[index]):
                similarity = _cosines(torch.stack([texts[noun] for noun in nouns]), features[index])
                pairs += _pairs_of(batch, index, similarity, regions[index])
        return [pair for pair in pairs if self.filters.keeps(pair)]

    def _regions(self, batch: CaptionBatch) -> list[tuple[Tensor, Tensor]]:
        """Per image masks (M, H, W) bool at its own size, and their scores (M,)."""
        if (self.proposer is None) == (batch.masks is None):
            raise InputError(
                "mining needs regions: give --model.proposals a network, or --data.masks a COCO instances file"
                if self.proposer is None
                else "the regions come from --model.proposals and --data.masks at once; give one of them and null to "
                "the other"
            )
        if batch.masks is not None:
            ones = [torch.ones(len(masks), device=masks.device) for masks in batch.masks]
            return list(zip(batch.masks, batch.mask_scores or ones, strict=True))
        assert self.proposer is not None  # by the first lines; says so to mypy
        answer = self.proposer(batch.images)[-1]
        found = []
        for index, (image, size) in enumerate(zip(batch.images, batch.sizes, strict=True)):
            probs = mask_probabilities(answer.mask_logits[index].float(), (image.shape[1], image.shape[2]))
            few_at_once = torch.split(probs, _at_once(size, probs.device))
            parts = [_full_size(few, size, self.mask_threshold) for few in few_at_once]
            masks, scores = (torch.cat(part) for part in zip(*parts, strict=True))
            found.append((masks, scores if answer.objectness is None else scores * answer.objectness[index]))
        return found

    def _see(self, image: Tensor, masks: Tensor, scores: Tensor) -> Regions:
        """The regions to match, cut out at network resolution, at which a small mask may vanish."""
        indices = self.filters.regions(masks, scores)
        size = (image.shape[1], image.shape[2])
        resized = masks.new_zeros((0, *size))
        if len(indices):
            parts = torch.split(indices, _at_once((masks.shape[1], masks.shape[2]), masks.device))
            resized = torch.cat([F.interpolate(masks[None, few].float(), size, mode="nearest")[0] > 0 for few in parts])
        crops, crop_masks, valid = crop_regions(image, resized, self.clip.image_size)
        visible = valid.nonzero()[:, 0]
        indices = indices[visible]
        return Regions(masks[indices], scores[indices], indices, crops[visible], crop_masks[visible])

    def _embed(self, regions: list[Regions]) -> Tensor:
        """CLIP's features of the regions of all images, (N, D)."""
        crops = torch.cat([found.crops for found in regions])
        masks = torch.cat([found.crop_masks for found in regions])
        parts = [slice(start, start + self.clip_batch) for start in range(0, len(crops), self.clip_batch)]
        features = [self.clip.encode_regions(crops[part], masks[part]) for part in parts]
        return torch.cat(features) if features else crops.new_zeros((0, self.clip.dim))


def _at_once(size: tuple[int, int], device: torch.device) -> int:
    """How many masks of an image's own size (H, W) are floats at once, so that photographs do not fill the memory."""
    return max(band_values(device) // (size[0] * size[1]), 1)


def _full_size(probs: Tensor, size: tuple[int, int], threshold: float) -> tuple[Tensor, Tensor]:
    """Masks (Q, H, W) bool of probabilities (Q, h, w), and how sure the network is of the pixels it takes, (Q,)."""
    probs = F.interpolate(probs[None], size, mode="bilinear", align_corners=False)[0]
    masks = probs > threshold
    return masks, (probs * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2)).clamp(min=1)


def _cosines(texts: Tensor, regions: Tensor) -> Tensor:
    """(T, N) cosines of texts (T, D) and regions (N, D), in full precision."""
    with torch.autocast(texts.device.type, enabled=False):
        return texts.float() @ regions.float().T


def _pairs_of(batch: CaptionBatch, index: int, similarity: Tensor, regions: Regions) -> list[RegionTextPair]:
    """The pairs of image `index`: each noun with its best region, or each label with its own.

    Args:
        similarity: (nouns, regions) cosines.
    """
    count = similarity.shape[1]
    similarity, scores = similarity.cpu(), regions.scores.cpu()  # small, and read one by one
    if batch.labelled:
        nouns, chosen = regions.indices.cpu(), torch.arange(count)
    else:
        nouns, chosen = torch.arange(len(similarity)), similarity.argmax(dim=1)
    own = similarity[nouns, chosen]
    others = similarity[nouns].scatter(1, chosen[:, None], -torch.inf).max(dim=1).values
    margins = own - others if count > 1 else own
    used, places = torch.unique(chosen, return_inverse=True)  # a region may be the best of several nouns
    masks = regions.masks[used.to(regions.masks.device)].cpu()
    boxes, counts = masks_to_boxes(masks).tolist(), rle.encode(masks)
    rows = zip(nouns.tolist(), places.tolist(), own.tolist(), margins.tolist(), scores[chosen].tolist(), strict=True)
    return [
        RegionTextPair(
            image_id=batch.image_ids[index],
            file_name=batch.names[index],
            size=batch.sizes[index],
            counts=counts[place],
            box=tuple(boxes[place]),
            noun=batch.nouns[index][noun],
            caption_id=batch.caption_ids[index][noun],
            similarity=cosine,
            margin=margin,
            proposal_score=score,
        )
        for noun, place, cosine, margin, score in rows
    ]
