"""Pure tensor functions: boxes, crops, patch coverage, scores, ensemble.

`N` masks or regions, `Q` proposals, `K` classes, `L` patches.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Classifier = Literal["ensemble", "clip", "proposals"]
RGB = tuple[float, float, float]

# CLIP's mean colour as the paper fills with it, rounded as the paper rounds it; not CLIP's exact normalisation mean.
CLIP_MEAN: RGB = (122.7709383 / 255, 116.7460125 / 255, 104.09373615 / 255)


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Tight boxes around masks.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 4) int64: x0, y0, x1, y1, ends exclusive; all zero for an empty mask.
    """
    edges = []
    for occupied in (masks.any(dim=1), masks.any(dim=2)):  # columns (N, W), then rows (N, H)
        length = occupied.shape[1]
        if not length:
            edges.append(occupied.new_zeros((len(masks), 2), dtype=torch.int64))
            continue
        first = occupied.int().argmax(dim=1)
        last = length - occupied.flip(1).int().argmax(dim=1)
        edges.append(torch.stack([first, last], dim=1) * occupied.any(dim=1, keepdim=True))
    columns, rows = edges
    return torch.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], dim=1)


def expand_boxes(boxes: Tensor, ratio: float, height: int, width: int) -> Tensor:
    """Scale boxes about their centres; edges are truncated to integers, then clipped to the image.

    Args:
        boxes: (N, 4) x0, y0, x1, y1, ends exclusive.

    Returns:
        (N, 4) int64.
    """
    start, end = boxes[:, :2].double(), boxes[:, 2:].double()
    centre, half = (start + end) / 2, (end - start) * ratio / 2
    limit = torch.tensor([width, height], device=boxes.device)
    scaled = [
        edge.trunc().long().clamp(min=torch.zeros_like(limit), max=limit) for edge in (centre - half, centre + half)
    ]
    return torch.cat(scaled, dim=1)


def crop_regions(
    image: Tensor, masks: Tensor, size: int, fill: RGB = CLIP_MEAN, expand_ratio: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut each masked region out of an image, fill what the mask leaves out, and resize to a square (paper §3.3).

    The box of the mask is resized ignoring its aspect ratio: pixels bicubic without antialiasing, masks by nearest
    neighbour. Bicubic values may leave the range of the image slightly; they are not clipped.

    Args:
        image: (3, H, W), in the scale of `fill`.
        masks: (N, H, W) bool.
        size: side of the regions in pixels.
        fill: colour outside the mask.
        expand_ratio: scale of the box about its centre.

    Returns:
        regions (N, 3, size, size), region_masks (N, size, size) bool and valid (N,) bool. Every mask keeps its row;
        an empty mask, or one whose scaled box has no pixel, is invalid and its region is plain fill.
    """
    colour = image.new_tensor(fill)[:, None, None]
    regions = colour.expand(len(masks), 3, size, size).clone()
    region_masks = torch.zeros((len(masks), size, size), dtype=torch.bool, device=image.device)
    boxes = expand_boxes(masks_to_boxes(masks), expand_ratio, *image.shape[1:])
    valid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes_on_host: list[list[int]] = boxes.tolist()  # one transfer, not four a region
    for index in valid.nonzero()[:, 0].tolist():
        x0, y0, x1, y1 = boxes_on_host[index]
        mask = masks[index, y0:y1, x0:x1]
        region = torch.where(mask, image[:, y0:y1, x0:x1], colour)
        regions[index] = F.interpolate(region[None], (size, size), mode="bicubic", align_corners=False)[0]
        region_masks[index] = F.interpolate(mask[None, None].float(), (size, size), mode="nearest")[0, 0] > 0
    return regions, region_masks, valid


def patch_coverage(region_masks: Tensor, patch_size: int) -> Tensor:
    """Which patches of a vision transformer see any pixel of the mask (paper §3.3: M in {0, 1}).

    Args:
        region_masks: (N, H, W); bool, or soft in [0, 1], where any positive pixel counts.

    Returns:
        (N, L) float of zeros and ones, patches row by row.
    """
    visible = (region_masks > 0).float()[:, None]
    return F.max_pool2d(visible, patch_size).flatten(1)


def mask_probabilities(mask_logits: Tensor, size: tuple[int, int], stride: int = 4) -> Tensor:
    """Masks at network resolution: upsampled to the padded input, as probabilities, without the padding.

    Args:
        mask_logits: (Q, h', w') at `stride` of the padded input.
        size: (h, w) of the image before padding.

    Returns:
        (Q, h, w) in [0, 1].
    """
    padded = F.interpolate(mask_logits[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    return padded[:, : size[0], : size[1]].sigmoid()


def clip_scores(clip_logits: Tensor, valid: Tensor, objectness: Tensor | None = None) -> Tensor:
    """Class probabilities by CLIP alone: softmax over the K classes, zero for invalid proposals.

    Args:
        clip_logits: (Q, K).
        valid: (Q,) bool.
        objectness: (Q,) in [0, 1], of proposals that CLIP cannot call "nothing"; 1 where not given.
    """
    scores = clip_logits.softmax(dim=1) * valid[:, None]
    return scores if objectness is None else scores * objectness[:, None]


def proposal_scores(class_logits: Tensor) -> Tensor:
    """Class probabilities by the proposal network alone: (Q, K + 1) logits, no-object last, to (Q, K)."""
    return class_logits.softmax(dim=1)[:, :-1]


def ensemble_scores(class_logits: Tensor, clip_logits: Tensor, valid: Tensor, weight: float) -> Tensor:
    """Geometric mean of both classifiers, not renormalised (paper eq. 4).

    Args:
        class_logits: (Q, K + 1) of the proposal network, no-object last.
        clip_logits: (Q, K), without a no-object column: CLIP's softmax cannot say "nothing".
        valid: (Q,) bool; where false CLIP counts as 1 and only the proposal network speaks.
        weight: exponent of CLIP in [0, 1]; 0 is the proposal network alone.

    Returns:
        (Q, K) scores.
    """
    proposals = class_logits.log_softmax(dim=1)[:, :-1]
    clip = clip_logits.log_softmax(dim=1).masked_fill(~valid[:, None], 0.0)
    return ((1 - weight) * proposals + weight * clip).exp()


def semantic_scores(scores: Tensor, mask_probs: Tensor) -> Tensor:
    """Sum of the proposals' masks weighted by their class scores: (Q, K) and (Q, H, W) to (K, H, W)."""
    with torch.autocast(scores.device.type, enabled=False):
        return torch.einsum("qk,qhw->khw", scores, mask_probs)


def semantic_labels(scores: Tensor, mask_probs: Tensor, size: tuple[int, int], rows: int = 64) -> Tensor:
    """Most likely class of every pixel, in bands of rows: the whole (K, H, W) is never in memory.

    Equal to resizing `semantic_scores` bilinearly to `size` and taking the argmax, but for ties within rounding.

    Args:
        scores: (Q, K).
        mask_probs: (Q, h, w) at network resolution.
        size: (H, W) of the answer.
        rows: height of a band in pixels of the answer.

    Returns:
        (H, W) int64.
    """
    height, width = size
    low, high, fraction = _bilinear_taps(mask_probs.shape[1], height, mask_probs)
    left, right, across = _bilinear_taps(mask_probs.shape[2], width, mask_probs)
    labels = torch.empty(size, dtype=torch.int64, device=scores.device)
    for start in range(0, height, rows):
        band = slice(start, min(start + rows, height))
        first, last = int(low[band][0]), int(high[band][-1])
        coarse = semantic_scores(scores, mask_probs[:, first : last + 1])  # (K, a few rows, w)
        lines = coarse[:, low[band] - first].lerp(coarse[:, high[band] - first], fraction[band, None])
        labels[band] = lines[..., left].lerp(lines[..., right], across).argmax(dim=0)
    return labels


def _bilinear_taps(source: int, target: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both source indices and the weight of the second, per target index, as `interpolate(align_corners=False)`."""
    position = ((torch.arange(target, device=like.device, dtype=like.dtype) + 0.5) * (source / target) - 0.5).clamp(
        min=0
    )
    low = position.long().clamp(max=source - 1)
    return low, (low + 1).clamp(max=source - 1), position - low
