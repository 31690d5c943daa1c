"""Which regions and pairs mining leaves out; nothing by default, as in the paper."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ovseg.ops import band_values
from ovseg.structures import InputError, RegionTextPair


@dataclass(frozen=True)
class PairFilters:
    """What regions and pairs need to be kept; caps per noun apply when a store is read, see `Pairs.filter`.

    Args:
        min_similarity: cosine of region and noun.
        min_margin: similarity above that of the second-best region.
        min_area: share of the image that a region covers.
        max_overlap: of regions of an image that overlap more (intersection over union), the best proposal is kept.

    Raises:
        InputError: a number that means nothing.
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
        """Indices of the regions to keep, ascending.

        Args:
            masks: (M, H, W) bool.
            scores: (M,) of the proposals; where they are equal, the first counts as the better.
        """
        keep = masks.flatten(1).any(dim=1)
        if self.min_area is not None:
            keep &= masks.flatten(1).sum(dim=1) / masks[0].numel() >= self.min_area
        kept = keep.nonzero()[:, 0]
        if self.max_overlap is None or not len(kept):
            return kept
        overlaps = (mask_overlaps(masks[kept]) > self.max_overlap).cpu()  # at once, and not a question a region
        best: list[int] = []
        for index in scores[kept].argsort(descending=True, stable=True).tolist():
            if not overlaps[index, best].any():
                best.append(index)
        return kept[torch.tensor(sorted(best), device=kept.device)]

    def keeps(self, pair: RegionTextPair) -> bool:
        """Whether a pair is similar and distinct enough."""
        enough = self.min_similarity is None or pair.similarity >= self.min_similarity
        return enough and (self.min_margin is None or pair.margin >= self.min_margin)


def mask_overlaps(masks: Tensor) -> Tensor:
    """(N, N) intersection over union of masks (N, H, W), none of them empty."""
    flat = masks.flatten(1)
    shared = torch.zeros((len(flat), len(flat)), dtype=torch.float64, device=masks.device)
    at_once = max(band_values(masks.device) // len(flat), 1)
    for pixels in torch.split(flat, at_once, dim=1):  # photographs would fill the memory
        with torch.autocast(masks.device.type, enabled=False):  # counts of pixels need all digits
            shared += pixels.float() @ pixels.float().T
    areas = flat.sum(dim=1)
    return (shared / (areas[:, None] + areas - shared)).float()
