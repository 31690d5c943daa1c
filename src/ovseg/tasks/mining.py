"""Stage 2: match the nouns of captions to masked regions by CLIP (paper §3.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg import rle
from ovseg.checkpoint import network_digest
from ovseg.models import CLIPAdapter, CropEncoder, GivenMasks, MaskProposer, Proposer, RegionEncoder, TextEncoder
from ovseg.models.regions.base import class_path
from ovseg.ops import band_values, masks_to_boxes
from ovseg.structures import CaptionBatch, ImageProposals, InputError, RegionTextPair
from ovseg.tasks.pair_filters import PairFilters


class Regions(NamedTuple):
    """The regions of one image that CLIP can see, and their features."""

    masks: Tensor  # (N, H, W) bool, at the image's own size
    scores: Tensor  # (N,) of the proposals
    indices: Tensor  # (N,) which of the given masks they are
    features: Tensor  # (N, D), L2-normalised


class MiningTask(L.LightningModule):
    """Gives each noun of an image the region that CLIP finds most similar to it.

    The regions of all images of a batch go through CLIP together. What a batch gives depends on nothing else, so that
    it does not matter which process mines it, and after what.

    Args:
        clip: embeds regions and nouns; the paper uses plain ViT-L/14.
        proposer: proposes the regions; a text is the `model` of a `MaskProposer`: a `.ckpt`, a folder, a hub name or
            `toy`. Without it the regions are the masks that the datamodule brings.
        mask_threshold: probability above which a pixel belongs to a region.
        templates: prompt templates of the nouns, see `TextEncoder`.
        filters: what is left out; nothing by default.
        region_encoder: makes from CLIP what encodes the regions; crops in batches of 256 by default.

    Raises:
        InputError: a number that means nothing.
    """

    def __init__(
        self,
        clip: CLIPAdapter,
        proposer: Proposer | str | None = None,
        mask_threshold: float = 0.5,
        templates: str | list[str] = "single",
        filters: PairFilters = PairFilters(),  # noqa: B008 (frozen)
        region_encoder: Callable[[CLIPAdapter], RegionEncoder] = lambda clip: CropEncoder(clip, regions_per_batch=256),
    ) -> None:
        super().__init__()
        if not 0 <= mask_threshold <= 1:
            raise InputError(f"mask_threshold is {mask_threshold}; give a number from 0 to 1")
        self.region_encoder = region_encoder(clip)
        proposer = MaskProposer(proposer) if isinstance(proposer, str) else proposer
        self.proposer = None if isinstance(proposer, GivenMasks) else proposer
        self.mask_threshold, self.filters = mask_threshold, filters
        self.text = TextEncoder(clip, templates)

    def settings(self) -> dict[str, str | int | float | None]:
        """All that pairs depend on beside the batches; networks by their weights, so that files may move."""
        return {
            "clip": network_digest(self.clip, self.clip.architecture()),
            "region_encoder": class_path(type(self.region_encoder)),
            **{f"region_encoder.{name}": value for name, value in self.region_encoder.settings().items()},
            "proposer": None if self.proposer is None else network_digest(self.proposer, self.proposer.architecture()),
            "mask_threshold": None if self.proposer is None else self.mask_threshold,
            "templates": " | ".join(self.text.templates),
            **asdict(self.filters),
        }

    def predict_step(self, batch: CaptionBatch, batch_index: int) -> list[RegionTextPair]:
        """The pairs of a batch of images; an image without any region or noun has none."""
        if not any(batch.nouns):
            return []
        regions = self._encode(batch.images, self._masks(batch))
        unique = sorted({noun for nouns in batch.nouns for noun in nouns})
        with torch.autocast(self.device.type, enabled=False):  # half precision would tie nouns and regions that differ
            texts = dict(zip(unique, self.text.encode(unique), strict=True))
        pairs = []
        for index, nouns in enumerate(batch.nouns):
            if nouns and len(regions[index].features):
                similarity = _cosines(torch.stack([texts[noun] for noun in nouns]), regions[index].features)
                pairs += _pairs_of(batch, index, similarity, regions[index])
        return [pair for pair in pairs if self.filters.keeps(pair)]

    @property
    def clip(self) -> CLIPAdapter:
        """Encodes regions and nouns."""
        return self.region_encoder.clip

    def _masks(self, batch: CaptionBatch) -> list[tuple[Tensor, Tensor]]:
        """Per image masks (M, H, W) bool at its own size, and their scores (M,)."""
        if (self.proposer is None) == (batch.masks is None):
            raise InputError(
                "mining needs regions: give --model.proposer a network, or --data.masks a COCO instances file"
                if self.proposer is None
                else "the regions come from --model.proposer and --data.masks at once; give one of them and null to "
                "the other"
            )
        if batch.masks is not None:
            ones = [torch.ones(len(masks), device=masks.device) for masks in batch.masks]
            return list(zip(batch.masks, batch.mask_scores or ones, strict=True))
        assert self.proposer is not None  # by the first lines; says so to mypy
        proposals = self.proposer.propose(batch.images)
        return [self._full_size(*of_image) for of_image in zip(proposals, batch.sizes, strict=True)]

    def _full_size(self, proposals: ImageProposals, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Masks (Q, H, W) bool of proposals at the image's own size, and how confident the network is in them, (Q,)."""
        masks, scores = [], []
        for probs in torch.split(proposals.mask_probs, _masks_at_once(size, proposals.mask_probs.device)):
            resized = F.interpolate(probs[None], size, mode="bilinear", align_corners=False)[0]
            masks.append(resized > self.mask_threshold)
            areas = masks[-1].sum(dim=(1, 2)).clamp(min=1)
            scores.append((resized * masks[-1]).sum(dim=(1, 2)) / areas)
        score = torch.cat(scores)
        return torch.cat(masks), score if proposals.objectness is None else score * proposals.objectness

    def _encode(self, images: list[Tensor], candidates: list[tuple[Tensor, Tensor]]) -> list[Regions]:
        """The regions of each image that pass the filters and that CLIP can see, with their features.

        CLIP sees them at network resolution, at which a small mask may vanish.
        """
        indices = [self.filters.regions(masks, scores) for masks, scores in candidates]
        resized = [
            _network_size(masks, rows, (image.shape[1], image.shape[2]))
            for image, (masks, _), rows in zip(images, candidates, indices, strict=True)
        ]
        regions = []
        for (masks, scores), rows, encoded in zip(
            candidates, indices, self.region_encoder(images, resized), strict=True
        ):
            visible = encoded.valid.nonzero()[:, 0]
            kept = rows[visible]
            regions.append(Regions(masks[kept], scores[kept], kept, encoded.features[visible]))
        return regions


def _network_size(masks: Tensor, rows: Tensor, size: tuple[int, int]) -> Tensor:
    """The masks (N, H, W) in `rows` at `size` (h, w), by nearest neighbour."""
    if not len(rows):
        return masks.new_zeros((0, *size))
    parts = torch.split(rows, _masks_at_once((masks.shape[1], masks.shape[2]), masks.device))
    return torch.cat([F.interpolate(masks[None, part].float(), size, mode="nearest")[0] > 0 for part in parts])


def _masks_at_once(size: tuple[int, int], device: torch.device) -> int:
    """How many masks of an image's own size (H, W) are floats at once, so that photographs do not fill the memory."""
    return max(band_values(device) // (size[0] * size[1]), 1)


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
