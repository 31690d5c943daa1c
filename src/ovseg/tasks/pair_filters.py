"""Filters for mined regions and pairs; disabled by default, as in the paper."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ovseg.ops import band_values
from ovseg.structures import InputError, RegionTextPair


@dataclass(frozen=True)
class PairFilters:
    """Thresholds that regions and pairs must meet. Limits per noun apply when a store is read, see `Pairs.filter`.

    Args:
        min_similarity: minimum cosine similarity of region and noun.
        min_margin: minimum lead in similarity over the image's best other region.
        min_area: minimum share of the image that a region covers.
        max_overlap: maximum IoU of two regions of an image; of regions that overlap more, the one with the best score
            is kept.

    Raises:
        InputError: a threshold is out of range.
    """

    min_similarity: float | None = None
    min_margin: float | None = None
    min_area: float | None = None
    max_overlap: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low, high = (0, 1) if name in ("min_area", "max_overlap") else (-2, 2)
            if value is not None and not low <= value <= high:
                raise InputError(f"filters.{name} is {value}; give a number from {low} to {high}, or leave it out")

    def regions(self, masks: Tensor, scores: Tensor) -> Tensor:
        """Return the indices of the regions to keep, in ascending order.

        Args:
            masks: (M, H, W) bool.
            scores: (M,) scores of the proposals; of equal ones, the first wins.
        """
        keep = masks.flatten(1).any(dim=1)
        if self.min_area is not None:
            keep &= masks.flatten(1).sum(dim=1) / masks[0].numel() >= self.min_area
        kept = keep.nonzero()[:, 0]
        if self.max_overlap is None or not len(kept):
            return kept
        overlaps = (mask_overlaps(masks[kept]) > self.max_overlap).cpu()  # one transfer instead of one per region
        best: list[int] = []
        for index in scores[kept].argsort(descending=True, stable=True).tolist():
            if not overlaps[index, best].any():
                best.append(index)
        return kept[torch.tensor(sorted(best), device=kept.device)]

    def keeps(self, pair: RegionTextPair) -> bool:
        """Return whether a pair reaches `min_similarity` and `min_margin`."""
        similar = self.min_similarity is None or pair.similarity >= self.min_similarity
        return similar and (self.min_margin is None or pair.margin >= self.min_margin)


def mask_overlaps(masks: Tensor) -> Tensor:
    """Return the IoU of every pair of non-empty masks (N, H, W), (N, N)."""
    flat = masks.flatten(1)
    shared = torch.zeros((len(flat), len(flat)), dtype=torch.float64, device=masks.device)
    at_once = max(band_values(masks.device) // len(flat), 1)
    for pixels in torch.split(flat, at_once, dim=1):  # all pixels of photographs as floats could exhaust the memory
        with torch.autocast(masks.device.type, enabled=False):  # half precision is too coarse for pixel counts
            shared += pixels.float() @ pixels.float().T
    areas = flat.sum(dim=1)
    return (shared / (areas[:, None] + areas - shared)).float()
