"""Pure tensor functions: boxes, crops, patch coverage, scores, ensemble.

`N` masks or regions, `Q` proposals, `K` classes, `L` patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Classifier = Literal["ensemble", "clip", "proposals"]
RGB = tuple[float, float, float]

# CLIP's mean colour as the paper fills with it, rounded as the paper rounds it; not CLIP's exact normalisation mean.
CLIP_MEAN: RGB = (122.7709383 / 255, 116.7460125 / 255, 104.09373615 / 255)
BAND_VALUES = 2**24  # floats in memory at once, 64 MiB: on a CPU larger bands are no faster, smaller ones overlap more
BAND_VALUES_OF_GPU = 2**27  # 512 MiB: each band is a wait for the device, and most images are one


def band_values(device: torch.device) -> int:
    """Floats in memory at once, where a whole would be too large."""
    return BAND_VALUES if device.type == "cpu" else BAND_VALUES_OF_GPU


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
    scaled = torch.cat([centre - half, centre + half], dim=1).trunc().long().clamp(min=0)
    scaled[:, 0::2].clamp_(max=width)
    scaled[:, 1::2].clamp_(max=height)
    return scaled


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
    colour = torch.stack([image.new_full((1, 1), channel) for channel in fill])
    regions = colour.expand(len(masks), 3, size, size).clone()
    region_masks = torch.zeros((len(masks), size, size), dtype=torch.bool, device=image.device)
    boxes = expand_boxes(masks_to_boxes(masks), expand_ratio, *image.shape[1:])
    valid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):  # one transfer, not four a region
        if x0 >= x1 or y0 >= y1:
            continue
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


def semantic_rows(scores: Tensor, mask_probs: Tensor) -> Tensor:
    """`semantic_scores` with the classes last, where argmax is fast: (Q, K) and (Q, h, w) to (h, w, K)."""
    with torch.autocast(scores.device.type, enabled=False):
        return (mask_probs.flatten(1).T @ scores).view(*mask_probs.shape[1:], -1)


def semantic_labels(scores: Tensor, mask_probs: Tensor, size: tuple[int, int], values: int | None = None) -> Tensor:
    """Most likely class of every pixel; the whole (K, H, W) is never in memory.

    Equal to resizing `semantic_scores` bilinearly to `size` and taking the argmax, but for ties within rounding.

    Args:
        scores: (Q, K).
        mask_probs: (Q, h, w) at network resolution.
        size: (H, W) of the answer.
        values: scores in memory at once, about; by the device where not given.

    Returns:
        (H, W) int64.
    """
    if size[0] * size[1] < mask_probs[0].numel():  # sums may be resized before or after; the fewer pixels, the better
        mask_probs = F.interpolate(mask_probs[None], size, mode="bilinear", align_corners=False)[0]

    def band(first: int, last: int) -> Tensor:
        return semantic_rows(scores, mask_probs[:, first:last])

    shape = (*mask_probs.shape[1:], scores.shape[1])
    return labels_in_bands(band, shape, size, values or band_values(scores.device))


def labels_in_bands(
    band: Callable[[int, int], Tensor], shape: tuple[int, ...], size: tuple[int, int], values: int = BAND_VALUES
) -> Tensor:
    """Argmax over the classes of scores that are computed in bands of rows and resized bilinearly.

    Interpolation is convex: a pixel between four neighbours of one best class has that class. Only the others, along
    the borders of segments, are interpolated.

    Args:
        band: first and last row, exclusive → (rows, w, K) scores.
        shape: (h, w, K) of all the scores.
        size: (H, W) of the answer.
        values: scores in memory at once, about.

    Returns:
        (H, W) int64.
    """
    tile = max(values // shape[2], 4)  # pixels
    rows = max(tile // shape[1], 2)
    if size == shape[:2]:
        return torch.cat([band(row, min(row + rows, size[0])).argmax(dim=2) for row in range(0, size[0], rows)])
    answer = []
    step = max((rows - 1) * size[0] // shape[0], 1)
    (upper_rows, lower_rows, weights), (left, right, across) = map(_bilinear_taps, shape[:2], size)
    parts = [slice(start, start + step) for start in range(0, size[0], step)]
    bands = [(int(upper_rows[part][0]), int(lower_rows[part][-1]) + 1) for part in parts]  # while these are on the host
    for part, (first, last) in zip(parts, bands, strict=True):
        scores = band(first, last)
        # to the scores' device, where they are from the second band on
        upper_rows, lower_rows, left, right = (
            index.to(scores.device) for index in (upper_rows, lower_rows, left, right)
        )
        weights, across = weights.to(scores), across.to(scores)
        top, bottom, down = upper_rows[part] - first, lower_rows[part] - first, weights[part]
        best = scores.argmax(dim=2)
        labels = best[top][:, left]
        y, x = (~_agreement(best)[top][:, left]).nonzero(as_tuple=True)
        for rows_of, columns in zip(torch.split(y, tile // 4), torch.split(x, tile // 4), strict=True):
            upper, lower = (
                scores[line, left[columns]].lerp(scores[line, right[columns]], across[columns, None])
                for line in (top[rows_of], bottom[rows_of])
            )
            labels[rows_of, columns] = upper.lerp(lower, down[rows_of, None]).argmax(dim=1)
        answer.append(labels)
    return torch.cat(answer)


def _agreement(labels: Tensor) -> Tensor:
    """(h, w) bool: whether a pixel and those to the right, below, and across have the same label."""
    below, beside = (torch.arange(1, side + 1, device=labels.device).clamp(max=side - 1) for side in labels.shape)
    level = labels == labels[:, beside]
    return level & level[below] & (labels == labels[below])


def _bilinear_taps(source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both source indices and the weight of the second, per target index, as `interpolate(align_corners=False)`."""
    position = ((torch.arange(target) + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = position.long().clamp(max=source - 1)
    return low, (low + 1).clamp(max=source - 1), position - low
