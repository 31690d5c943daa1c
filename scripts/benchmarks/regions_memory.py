"""Measure how the memory for one image grows with its number of proposals."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import open_clip
import torch

from benchmarks.report import commit, hardware, peak_rss
from ovseg.models import CascadeEncoder, CLIPAdapter, CropEncoder, GivenMasks, OpenVocabSegmenter, SinglePassEncoder

ENCODERS: dict[str, Callable[[CLIPAdapter], Any]] = {
    "crops": CropEncoder,
    "single pass": SinglePassEncoder,
    "cascade": CascadeEncoder,
}


def regions_memory(
    model: str = "ViT-L-14",
    blocks: int | None = None,
    proposals: tuple[int, ...] = (100, 1000),
    size: tuple[int, int] = (640, 960),
    classes: int = 10,
    threads: int = 1,
) -> None:
    """Print the peak memory of labelling one image from given masks, above what the process had before.

    *Masks* is what the masks take as floats and as bools; *rest* is the remainder of the peak.

    Args:
        model: an open_clip name; the weights are random.
        blocks: blocks of its image tower. Without gradients, memory does not depend on them but time does.
        proposals: numbers of masks, one line each.
        size: height and width of the image.
        classes: size of the vocabulary.
        threads: CPU threads.
    """
    print(f"{model}, {size[0]} x {size[1]} pixels, MiB; {hardware()}; torch {torch.__version__}; commit {commit()}\n")
    print(f"{'':12} {'proposals':>9} {'peak':>8} {'masks':>8} {'rest':>8}", flush=True)
    for name in ENCODERS:
        for count in proposals:
            peak, masks = peak_memory(name, count, model, blocks, size, classes, threads)
            line = (peak / 2**20, masks / 2**20, (peak - masks) / 2**20)
            print(f"{name:12} {count:9,} {' '.join(f'{value:8,.0f}' for value in line)}", flush=True)


def peak_memory(*arguments: Any) -> tuple[int, int]:
    """Return the results of `measure` from a fresh process, since the peak of a process never falls.

    The process returns freed blocks to the system at once; by default, glibc keeps up to 2 GiB of them, which differ
    from run to run.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


@torch.no_grad()
def measure(
    name: str, count: int, model: str, blocks: int | None, size: tuple[int, int], classes: int, threads: int
) -> tuple[int, int]:
    """Return the peak of labelling one image above the memory before, and the memory of its masks, in bytes."""
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)  # of random weights
    if blocks is not None:
        open_clip.factory._MODEL_CONFIGS[model]["vision_cfg"]["layers"] = blocks
    encoder = ENCODERS[name](CLIPAdapter(model))
    proposer = GivenMasks()
    segmenter = OpenVocabSegmenter(proposer, encoder).eval()
    names = [f"class {index}" for index in range(classes)]
    segmenter.set_vocabulary(names)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((3, *size), generator=generator)

    def label(number: int) -> None:
        masks = torch.zeros((number, *size), dtype=torch.bool)
        for mask in masks:  # boxes of different sizes
            top, left = (int(torch.randint(side // 2, (), generator=generator)) for side in size)
            height, width = (int(torch.randint(16, side // 2, (), generator=generator)) for side in size)
            mask[top : top + height, left : left + width] = True
        proposer.take([masks])
        segmenter.labels([image])

    label(2)  # warm up
    before = peak_rss()
    label(count)
    peak = peak_rss() - before
    floats, bools = 4, 1 + 1  # bytes: the proposals' probabilities; the given masks and the thresholded ones
    return peak, count * size[0] * size[1] * (floats + bools)
