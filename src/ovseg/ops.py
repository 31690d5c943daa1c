"""Pure tensor functions: boxes, crops, patch coverage, class scores and labels.

`N` masks or regions, `Q` proposals, `K` classes, `L` patches.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.bands import band_values as band_values
from ovseg.bands import labels_in_bands as labels_in_bands
from ovseg.cropping import RegionCutter

Classifier = Literal["ensemble", "clip", "proposals"]
RGB = tuple[float, float, float]

# The fill colour of the paper: CLIP's mean, rounded as in the release, so not CLIP's exact normalisation mean.
CLIP_MEAN: RGB = (122.7709383 / 255, 116.7460125 / 255, 104.09373615 / 255)


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Return tight bounding boxes of masks.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 4) int64: x0, y0, x1, y1, ends exclusive; zeros for an empty mask.
    """
    if not masks.numel():
        return torch.zeros((len(masks), 4), dtype=torch.int64, device=masks.device)
    edges = []
    for side in (1, 2):
        occupied = masks.view(torch.uint8).amax(dim=side)  # columns (N, W), then rows (N, H); faster than `any`
        first = occupied.argmax(dim=1)
        last = occupied.shape[1] - occupied.flip(1).argmax(dim=1)
        edges.append(torch.stack([first, last], dim=1) * occupied.amax(dim=1, keepdim=True))
    columns, rows = edges
    return torch.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], dim=1)


def expand_boxes(boxes: Tensor, ratio: float, height: int, width: int) -> Tensor:
    """Scale boxes about their centres, truncate the edges to integers and clip them to the image.

    Args:
        boxes: (N, 4) x0, y0, x1, y1, ends exclusive.
        ratio: factor on width and height.
        height: height of the image, in pixels.
        width: width of the image, in pixels.

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
    """Crop each masked region, fill the pixels outside its mask, and resize it to a square (paper §3.3).

    The aspect ratio is not preserved. Pixels are resized bicubically without antialiasing, masks by nearest neighbour.
    Bicubic values may slightly exceed the range of the image and are not clipped.

    Args:
        image: (3, H, W), in the value range of `fill`.
        masks: (N, H, W) bool.
        size: side length of the regions, in pixels.
        fill: RGB colour outside the mask.
        expand_ratio: factor on the width and height of each box.

    Returns:
        regions (N, 3, size, size), region_masks (N, size, size) bool and valid (N,) bool. Every mask keeps its row.
        An empty mask, or one whose scaled box contains no pixel, is invalid, and its region consists of `fill`.
    """
    boxes = expand_boxes(masks_to_boxes(masks), expand_ratio, *image.shape[1:])
    corners: list[list[int]] = boxes.tolist()  # one transfer from the device for all boxes
    cutter = RegionCutter(image, masks, boxes, corners, fill_colour(image, fill))
    return *cutter.cut(0, len(masks), size), (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def fill_colour(image: Tensor, fill: RGB) -> Tensor:
    """Return a fill colour as (3, 1, 1) on the device of the image, without waiting for it."""
    return torch.stack([image.new_full((1, 1), channel) for channel in fill])


def patch_coverage(region_masks: Tensor, patch_size: int) -> Tensor:
    """Mark the patches of a vision transformer that contain any pixel of the mask (paper §3.3: M in {0, 1}).

    Args:
        region_masks: (N, H, W) bool, or float in [0, 1]; any positive pixel counts.
        patch_size: side length of a patch, in pixels.

    Returns:
        (N, L) float zeros and ones, patches in row-major order.
    """
    visible = (region_masks > 0).float()[:, None]
    return F.max_pool2d(visible, patch_size).flatten(1)


def mask_probabilities(mask_logits: Tensor, size: tuple[int, int], stride: int = 4) -> Tensor:
    """Upsample mask logits to network resolution, remove the padding and apply the sigmoid.

    Args:
        mask_logits: (Q, h', w'), at 1 / `stride` of the resolution of the padded input.
        size: (h, w) of the image before padding.
        stride: distance of neighbouring mask logits, in pixels of the padded input.

    Returns:
        (Q, h, w) in [0, 1].
    """
    rows, columns = mask_logits.shape[1] * stride, mask_logits.shape[2] * stride
    height, width = min(size[0], rows), min(size[1], columns)
    probabilities = mask_logits.new_empty((len(mask_logits), height, width))
    at_once = max(band_values(mask_logits.device) // 16 // max(rows * columns, 1), 1)  # few stay in a CPU's cache
    for first in range(0, len(mask_logits), at_once):
        part = slice(first, first + at_once)
        padded = F.interpolate(mask_logits[None, part], scale_factor=stride, mode="bilinear", align_corners=False)[0]
        probabilities[part] = padded[:, :height, :width].sigmoid()
    return probabilities


def clip_scores(clip_logits: Tensor, valid: Tensor, objectness: Tensor | None = None) -> Tensor:
    """Return the class probabilities of CLIP alone: softmax over K classes, zero for invalid proposals.

    Args:
        clip_logits: (Q, K).
        valid: (Q,) bool.
        objectness: (Q,) factor in [0, 1], because CLIP has no "no object" class; 1 by default.

    Returns:
        (Q, K).
    """
    scores = clip_logits.softmax(dim=1) * valid[:, None]
    return scores if objectness is None else scores * objectness[:, None]


def best_synonyms(phrase_logits: Tensor, class_of_phrase: Tensor, classes: int) -> Tensor:
    """Reduce logits of phrases to logits of classes, each of which has the logit of its best synonym.

    Args:
        phrase_logits: (Q, S).
        class_of_phrase: (S,) int64, the class that each phrase stands for.
        classes: K.

    Returns:
        (Q, K).
    """
    if len(class_of_phrase) == classes:
        return phrase_logits
    logits = phrase_logits.new_full((len(phrase_logits), classes), -torch.inf)
    return logits.scatter_reduce(1, class_of_phrase.expand_as(phrase_logits), phrase_logits, "amax")


def proposal_scores(class_logits: Tensor) -> Tensor:
    """Return the class probabilities of the proposal network alone, (Q, K), from (Q, K + 1) logits, no-object last."""
    return class_logits.softmax(dim=1)[:, :-1]


def ensemble_scores(class_logits: Tensor, clip_logits: Tensor, valid: Tensor, weight: float) -> Tensor:
    """Return the weighted geometric mean of both classifiers, not renormalised (paper eq. 4).

    Args:
        class_logits: (Q, K + 1) logits of the proposal network, no-object last.
        clip_logits: (Q, K) logits of CLIP, which has no no-object class.
        valid: (Q,) bool; where false, CLIP's probability counts as 1, which leaves the proposal network alone.
        weight: exponent of CLIP in [0, 1]; 0 uses the proposal network alone.

    Returns:
        (Q, K) scores.
    """
    proposals = class_logits.log_softmax(dim=1)[:, :-1]
    clip = clip_logits.log_softmax(dim=1).masked_fill(~valid[:, None], 0.0)
    return ((1 - weight) * proposals + weight * clip).exp()


def semantic_scores(scores: Tensor, mask_probs: Tensor) -> Tensor:
    """Sum the masks (Q, H, W) of all proposals, weighted by their class scores (Q, K), to (K, H, W)."""
    with torch.autocast(scores.device.type, enabled=False):
        return torch.einsum("qk,qhw->khw", scores, mask_probs)


def semantic_rows(scores: Tensor, mask_probs: Tensor) -> Tensor:
    """Return `semantic_scores` as (h, w, K), since argmax is faster over the last dimension."""
    with torch.autocast(scores.device.type, enabled=False):
        return (mask_probs.flatten(1).T @ scores).view(*mask_probs.shape[1:], -1)


def semantic_labels(scores: Tensor, mask_probs: Tensor, size: tuple[int, int], values: int | None = None) -> Tensor:
    """Return the best class of every pixel, without holding all (K, H, W) scores in memory.

    Equals the argmax of `semantic_scores` resized bilinearly to `size`, except for ties within rounding.

    Args:
        scores: (Q, K).
        mask_probs: (Q, h, w) at network resolution.
        size: (H, W) of the result.
        values: approximate number of scores in memory at once; defaults to `band_values` of the device.

    Returns:
        (H, W) int64.
    """
    few = size[0] * size[1] < mask_probs.shape[1] * mask_probs.shape[2]
    if few and len(mask_probs):  # resizing commutes with the sum; use the fewer pixels
        mask_probs = F.interpolate(mask_probs[None], size, mode="bilinear", align_corners=False)[0]

    def band(first: int, last: int) -> Tensor:
        return semantic_rows(scores, mask_probs[:, first:last])

    shape = (*mask_probs.shape[1:], scores.shape[1])
    return labels_in_bands(band, shape, size, values or band_values(scores.device))
