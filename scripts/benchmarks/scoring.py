"""Time and peak memory of labels from scored proposals: all scores at once, and ours."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import report, seconds
from ovseg.ops import semantic_labels, semantic_scores

Size = tuple[int, int]


class Case(NamedTuple):
    """One variant of the computation on one image."""

    form: str  # naive or ours
    network: Size  # (h, w) of the masks
    size: Size  # (H, W) of the labels
    blobs: int  # per mask along each side; more of them mean longer borders


def scoring(
    classes: int = 847,
    size: Size = (1365, 2048),
    network: Size = (640, 960),
    small: Size = (640, 853),
    naive: bool = False,
    threads: int = 1,
    device: str = "cpu",
) -> None:
    """Time the labels of 100 proposals: the argmax of all scores, and ours, in bands along the borders of segments.

    Each case runs in a separate process; its memory is the peak beyond that of the masks and scores. The masks are
    random: 16 x 16 smooth blobs, which give segments like those of photographs, and for ours also 160 x 160, its worst
    case, in which blobs are hardly larger than a pixel of the network's masks.

    Args:
        classes: number of classes.
        size: height and width of the large label map.
        network: height and width of the masks behind the large label map.
        small: height and width of a label map that has the resolution of its masks.
        naive: also compute all scores for the large label map, which takes 12 GB or more at its default size.
        threads: CPU threads.
        device: cpu or cuda.
    """
    cases = [Case("naive", small, small, 16), Case("ours", small, small, 16), Case("ours", network, size, 16)]
    cases += [Case("ours", network, size, 160), *([Case("naive", network, size, 16)] if naive else [])]
    spawn = multiprocessing.get_context("spawn")
    measured = {}
    for case in cases:
        with spawn.Pool(1) as pool:
            duration, memory = pool.apply(measure, (case, classes, threads, device))
        sizes = f"{case.network[0]} x {case.network[1]} to {case.size[0]} x {case.size[1]}, {case.blobs} x {case.blobs}"
        measured[f"{case.form:5}  {sizes} blobs, {memory:,.0f} MiB"] = duration
    torch.set_num_threads(threads)
    report(f"100 proposals, {classes} classes; peak memory beside masks and scores", measured)


@torch.no_grad()
def measure(case: Case, classes: int, threads: int, device: str) -> tuple[float, float]:
    """Return the seconds of a variant and its peak memory in MiB, in a separate process."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(100, classes, generator=generator) * 3).softmax(dim=1).to(device)
    blobs = torch.randn(1, 100, case.blobs, case.blobs, generator=generator) * 4 - 3
    probs = F.interpolate(blobs.to(device), case.network, mode="bilinear")[0].sigmoid_()
    answer = partial(semantic_labels if case.form == "ours" else naive_labels, scores, probs, case.size)
    (semantic_labels if case.form == "ours" else naive_labels)(scores, probs[:, :8, :8], (16, 16))  # warms up
    before = peak(device)
    return seconds(answer), peak(device) - before


def naive_labels(scores: Tensor, probs: Tensor, size: Size) -> Tensor:
    """Compute all scores at network resolution, resize them to full size, and take the argmax."""
    dense = semantic_scores(scores, probs)
    if dense.shape[1:] != size:
        dense = F.interpolate(dense[None], size, mode="bilinear", align_corners=False)[0]
    return dense.argmax(dim=0)


def peak(device: str) -> float:
    """Return the peak memory of this process in MiB; on a GPU, what torch allocated there."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
