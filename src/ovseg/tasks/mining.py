"""Stage 2: match the nouns of captions to masked regions with CLIP (paper §3.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg import rle
from ovseg.checkpoint import network_digest, tensor_digests
from ovseg.models import CLIPAdapter, CropEncoder, GivenMasks, MaskProposer, Proposer, RegionEncoder, TextEncoder
from ovseg.models.regions.base import class_path
from ovseg.models.regions.saved import build_encoder
from ovseg.ops import band_values, masks_to_boxes
from ovseg.structures import CaptionBatch, ImageProposals, InputError, RegionTextPair
from ovseg.tasks.pair_filters import PairFilters


class Regions(NamedTuple):
    """The regions of one image that are visible to CLIP, and their features."""

    masks: Tensor  # (N, H, W) bool, at the image's original size
    scores: Tensor  # (N,) scores of the proposals
    indices: Tensor  # (N,) indices into the candidate masks
    features: Tensor  # (N, D), L2-normalised


class MiningTask(L.LightningModule):
    """Pair each noun of an image with the region that CLIP finds most similar to it.

    CLIP encodes the regions of all images in a batch together. The pairs of a batch depend only on that batch, so it
    does not matter which process mines it, or in what order.

    Args:
        clip: encodes regions and nouns; the paper uses the unmodified ViT-L/14.
        proposer: proposes the regions; a string is the `model` of a `MaskProposer`: a `.ckpt`, a folder, a hub name or
            `toy`. By default, the regions are the masks of the datamodule.
        mask_threshold: probability above which a pixel belongs to a region.
        templates: prompt templates for the nouns, see `TextEncoder`.
        filters: thresholds for regions and pairs; by default all are kept.
        region_encoder: class of the region encoder, constructed with `clip`; by default `CropEncoder`.

    Raises:
        InputError: `mask_threshold` is out of range.
    """

    def __init__(
        self,
        clip: CLIPAdapter,
        proposer: Proposer | str | None = None,
        mask_threshold: float = 0.5,
        templates: str | list[str] = "single",
        filters: PairFilters = PairFilters(),  # noqa: B008 (frozen)
        region_encoder: Callable[[CLIPAdapter], RegionEncoder] = CropEncoder,
    ) -> None:
        super().__init__()
        if not 0 <= mask_threshold <= 1:
            raise InputError(f"mask_threshold is {mask_threshold}; give a number from 0 to 1")
        self.region_encoder = build_encoder(clip, region_encoder)
        proposer = MaskProposer(proposer) if isinstance(proposer, str) else proposer
        self.proposer = None if isinstance(proposer, GivenMasks) else proposer
        self.mask_threshold, self.filters = mask_threshold, filters
        self.text = TextEncoder(clip, templates)

    def settings(self) -> dict[str, str | int | float | None]:
        """Return everything that pairs depend on besides the batches; networks as digests of their weights."""
        weights = tensor_digests(self.region_encoder.own_weights())
        return {
            "clip": network_digest(self.clip, self.clip.architecture()),
            "region_encoder": class_path(type(self.region_encoder)),
            **{f"region_encoder.{name}": value for name, value in self.region_encoder.settings().items()},
            **{f"region_encoder.{name}": digest for name, digest in weights.items()},
            "proposer": None if self.proposer is None else network_digest(self.proposer, self.proposer.architecture()),
            "mask_threshold": None if self.proposer is None else self.mask_threshold,
            "templates": " | ".join(self.text.templates),
            **asdict(self.filters),
        }

    def predict_step(self, batch: CaptionBatch, batch_index: int) -> list[RegionTextPair]:
        """Return the pairs of a batch of images; images without regions or nouns have none."""
        if not any(batch.nouns):
            return []
        regions = self._encode(batch.images, self._masks(batch))
        unique = sorted({noun for nouns in batch.nouns for noun in nouns})
        with torch.autocast(self.device.type, enabled=False):  # half precision would produce ties
            texts = dict(zip(unique, self.text.encode(unique), strict=True))
        pairs = []
        for index, nouns in enumerate(batch.nouns):
            if nouns and len(regions[index].features):
                similarity = _cosines(torch.stack([texts[noun] for noun in nouns]), regions[index].features)
                pairs += _pairs_of(batch, index, similarity, regions[index])
        return [pair for pair in pairs if self.filters.keeps(pair)]

    @property
    def clip(self) -> CLIPAdapter:
        """The CLIP that encodes regions and nouns."""
        return self.region_encoder.clip

    def check_regions(self, masks: bool) -> None:
        """Check that there is exactly one source of regions.

        Args:
            masks: whether the datamodule has masks.

        Raises:
            InputError: there is no source, or there are two.
        """
        if masks == (self.proposer is not None):
            raise InputError(
                "--model.proposer and --data.masks are both set; set one of them to null"
                if masks
                else "mining needs regions: set --model.proposer to a network, or --data.masks to a COCO instances file"
            )

    def _masks(self, batch: CaptionBatch) -> list[tuple[Tensor, Tensor]]:
        """Return the masks (M, H, W) bool of each image at its original size, and their scores (M,)."""
        self.check_regions(batch.masks is not None)
        if batch.masks is not None:
            ones = [torch.ones(len(masks), device=masks.device) for masks in batch.masks]
            return list(zip(batch.masks, batch.mask_scores or ones, strict=True))
        assert self.proposer is not None  # checked above; for mypy
        proposals = self.proposer.propose(batch.images)
        return [
            self._full_size(image_proposals, size) for image_proposals, size in zip(proposals, batch.sizes, strict=True)
        ]

    def _full_size(self, proposals: ImageProposals, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the masks (Q, H, W) bool of proposals at the image's original size, and their scores (Q,).

        A score is the mean probability inside the mask, times the objectness if there is one.
        """
        masks, scores = [], []
        for probs in torch.split(proposals.mask_probs, _masks_at_once(size, proposals.mask_probs.device)):
            resized = F.interpolate(probs[None], size, mode="bilinear", align_corners=False)[0]
            masks.append(resized > self.mask_threshold)
            areas = masks[-1].sum(dim=(1, 2)).clamp(min=1)
            scores.append((resized * masks[-1]).sum(dim=(1, 2)) / areas)
        confidence = torch.cat(scores)
        return torch.cat(masks), confidence if proposals.objectness is None else confidence * proposals.objectness

    def _encode(self, images: list[Tensor], candidates: list[tuple[Tensor, Tensor]]) -> list[Regions]:
        """Return the regions of each image that pass the filters and are visible to CLIP, with their features.

        CLIP sees regions at network resolution, at which a small mask may vanish.
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
    """Resize those masks (N, H, W) that `rows` selects to `size` (h, w), by nearest neighbour."""
    if not len(rows):
        return masks.new_zeros((0, *size))
    parts = torch.split(rows, _masks_at_once((masks.shape[1], masks.shape[2]), masks.device))
    return torch.cat([F.interpolate(masks[None, part].float(), size, mode="nearest")[0] > 0 for part in parts])


def _masks_at_once(size: tuple[int, int], device: torch.device) -> int:
    """Return how many masks of size (H, W) to hold in memory as floats at once."""
    return max(band_values(device) // (size[0] * size[1]), 1)


def _cosines(texts: Tensor, regions: Tensor) -> Tensor:
    """Return the cosine similarities (T, N) of texts (T, D) and regions (N, D), in full precision."""
    with torch.autocast(texts.device.type, enabled=False):
        return texts.float() @ regions.float().T


def _pairs_of(batch: CaptionBatch, index: int, similarity: Tensor, regions: Regions) -> list[RegionTextPair]:
    """Return the pairs of image `index`: each noun with its best region, or each label with its own region.

    Args:
        similarity: (nouns, regions) cosine similarities.
    """
    count = similarity.shape[1]
    similarity, scores = similarity.cpu(), regions.scores.cpu()  # small, and read element by element
    if batch.labelled:
        nouns, chosen = regions.indices.cpu(), torch.arange(count)
    else:
        nouns, chosen = torch.arange(len(similarity)), similarity.argmax(dim=1)
    best = similarity[nouns, chosen]
    others = similarity[nouns].scatter(1, chosen[:, None], -torch.inf).max(dim=1).values
    margins = best - others if count > 1 else best
    used, mask_rows = torch.unique(chosen, return_inverse=True)  # several nouns may share their best region
    masks = regions.masks[used.to(regions.masks.device)].cpu()
    boxes, counts = masks_to_boxes(masks).tolist(), rle.encode(masks)
    columns = (nouns, mask_rows, best, margins, scores[chosen])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        RegionTextPair(
            image_id=batch.image_ids[index],
            file_name=batch.names[index],
            size=batch.sizes[index],
            counts=counts[mask_row],
            box=tuple(boxes[mask_row]),
            noun=batch.nouns[index][noun],
            caption_id=batch.caption_ids[index][noun],
            similarity=cosine,
            margin=margin,
            proposal_score=score,
        )
        for noun, mask_row, cosine, margin, score in rows
    ]
