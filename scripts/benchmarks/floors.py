"""Count the operations of CLIP's image tower and measure the rate at which this machine multiplies matrices.

Their ratio is the floor of a running time: what CLIP would take if it did nothing but multiply matrices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import seconds
from ovseg.models import CLIPAdapter

Shape = tuple[int, int, int]  # rows, inputs and outputs of a linear layer
SHAPES: tuple[Shape, ...] = ((1970, 768, 3072), (1970, 3072, 768), (964, 768, 3072))  # MLPs of 10 crops and of one pass


def matrix_rate(dtype: torch.dtype = torch.float32, repeats: int = 3) -> float:
    """Return the best rate of linear layers of CLIP's shapes, in FLOPs per second; a product and a sum are two."""
    return max(_rate(shape, dtype, repeats) for shape in SHAPES)


def _rate(shape: Shape, dtype: torch.dtype, repeats: int) -> float:
    rows, inputs, outputs = shape
    tokens, weight = torch.rand(rows, inputs).to(dtype), torch.rand(outputs, inputs).to(dtype)
    F.linear(tokens, weight)  # warms up
    return 2 * rows * inputs * outputs / seconds(lambda: F.linear(tokens, weight), repeats)


def crop_flops(clip: CLIPAdapter, regions: int) -> float:
    """Return the FLOPs that the image tower needs for `regions` crops, from their formula.

    The last block computes only keys and values of the patches.
    """
    tower = clip.visual.tower
    patches = (clip.image_size // tower.patch_size) ** 2
    tokens, width, blocks = 1 + patches, tower.width, len(tower.blocks(tower.grid))
    block = tokens * _token_flops(width) + _attention_flops(tokens, tokens, width)
    last = 2 * 2 * patches * width**2 + _token_flops(width) + _attention_flops(1, tokens, width)
    return regions * (_embedding_flops(clip, patches) + (blocks - 1) * block + last + 2 * width * clip.dim)


def single_pass_flops(clip: CLIPAdapter, regions: int, patches: int, branch_block: int = 1) -> float:
    """Return the FLOPs that a single pass needs, from their formula.

    A region attends to itself and to the patches; the last block computes only keys and values of the patches.
    """
    tower = clip.visual.tower
    tokens, width, blocks = 1 + patches, tower.width, len(tower.blocks(tower.grid))
    image = tokens * _token_flops(width) + _attention_flops(tokens, tokens, width)
    region = _token_flops(width) + _attention_flops(1, 1 + patches, width)
    branched = blocks - branch_block + 1
    last = 2 * 2 * tokens * width**2
    pooled = regions * 2 * width * clip.dim
    return _embedding_flops(clip, patches) + (blocks - 1) * image + last + branched * regions * region + pooled


def counted_flops(function: Callable[[], object]) -> float:
    """Return the FLOPs of matrix products and convolutions that torch counts; on a CPU it misses fused attention."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def _token_flops(width: int) -> float:
    """Return the FLOPs of a token in a block's linear layers: queries, keys, values, output, and an MLP of 4 widths."""
    return 2 * 12 * width**2


def _attention_flops(queries: int, keys: int, width: int) -> float:
    return 2 * 2 * queries * keys * width


def _embedding_flops(clip: CLIPAdapter, patches: int) -> float:
    tower = clip.visual.tower
    return 2 * patches * 3 * tower.patch_size**2 * tower.width
