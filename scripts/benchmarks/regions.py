"""Time region encoders against the straightforward form, each beside its floor, and how they grow."""

from __future__ import annotations

import json as json_module
import os
import platform
import sys
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.floors import counted_flops, crop_flops, matrix_rate, single_pass_flops
from benchmarks.region_parts import DrawnMasks, PlainCrops, Stopwatch, draw_masks, draw_regions
from benchmarks.region_tables import tables
from benchmarks.region_toys import mining_agreement, mining_speed, pixel_agreement, single_pass_memory
from benchmarks.report import commit, hardware, seconds
from ovseg.models import CLIPAdapter, CropEncoder, OpenVocabSegmenter, RegionEncoder, SinglePassEncoder
from ovseg.ops import semantic_labels

NAMES = ("person", "dog", "bicycle", "car", "tree", "building", "road", "sky", "grass", "water")
BASELINE = "crops one at a time, CLIP in one batch"
Values = dict[str, Any]


@dataclass
class Variant:
    """A region encoder and the FLOPs that it needs for an image."""

    encoder: RegionEncoder
    flops: float
    bf16: bool = False


@torch.no_grad()
def regions(
    model: str = "ViT-B-16",
    proposals: int = 100,
    size: tuple[int, int] = (512, 767),
    repeats: int = 3,
    parts: str = "main, growth, mining, toy, memory",
    threads: int = 2,
    json: str | None = None,
) -> None:
    """Time crops and single passes on one image: region encoding, and from the image to its labels.

    Proposals come from the paper's MaskFormer with R101c. All weights are random; masks are drawn ellipses. The
    variants take turns, and every number is the median over the repeats.

    Args:
        model: an open_clip model name.
        proposals: regions of the image.
        size: height and width of the image and of its labels, in pixels.
        repeats: how often each variant is measured.
        parts: which measurements to make, separated by commas. `main` times all variants; `growth` times more and
            fewer proposals, classes and pixels; `mining` times mining; `toy` compares results on toy scenes; `memory`
            measures memory with ViT-L/14.
        threads: CPU threads.
        json: file to which to write all numbers.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    chosen = {part.strip() for part in parts.split(",")}
    values: Values = {"run": describe_run(), "settings": {"model": model, "proposals": proposals, "size": list(size)}}
    values["settings"] |= {"names": len(NAMES), "repeats": repeats}
    clip = CLIPAdapter(model).eval()
    segmenter = OpenVocabSegmenter(DrawnMasks(proposals, clip.dim), PlainCrops(clip)).eval()
    image = torch.rand(3, *size)
    if "main" in chosen:
        segmenter.set_vocabulary(NAMES)
        values |= measure(segmenter, image, make_variants(clip, proposals, image), repeats)
    if "growth" in chosen:
        values["growth"] = measure_growth(clip, segmenter.proposer, size, repeats)  # type: ignore[arg-type]
    if "mining" in chosen:
        values["mining"] = mining_speed(clip, segmenter.proposer, image)  # type: ignore[arg-type]
    if "toy" in chosen:
        values["toy"] = {**pixel_agreement(), **mining_agreement()}
    if "memory" in chosen:
        values["memory"] = single_pass_memory()
    values["run"]["load_at_end"] = os.getloadavg()[0]
    print("\n\n".join(tables(values).values()))
    if json is not None:
        Path(json).write_text(json_module.dumps(values, indent=1) + "\n", encoding="utf-8")


def describe_run() -> Values:
    """Return what the numbers depend on besides the settings."""
    packages = ("torch", "open_clip_torch", "transformers", "timm")
    return {
        "command": " ".join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "commit": commit(),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "load_at_start": os.getloadavg()[0],
    }


def make_variants(clip: CLIPAdapter, proposals: int, image: Tensor) -> dict[str, Variant]:
    """Return all variants by name, the baseline first; all have the same weights."""
    crops, tower = crop_flops(clip, proposals), clip.visual.tower
    depth = len(tower.blocks(tower.grid))
    variants = {BASELINE: Variant(PlainCrops(clip), crops), "crops": Variant(CropEncoder(clip), crops)}
    variants["crops, bf16"] = Variant(CropEncoder(clip, precision="bf16"), crops, bf16=True)
    for short_side in (320, 384, 512):
        for branch_block in (1, depth - 2):
            encoder = SinglePassEncoder(clip, short_side, branch_block)
            rows, columns = encoder.grid_of(image)
            name = f"single pass, {short_side} × {columns * short_side // rows}, branch_block {branch_block}"
            flops = single_pass_flops(clip, proposals, rows * columns, branch_block)
            variants[name] = Variant(encoder, flops)
            if short_side == 384 and branch_block == 1:
                encoder = SinglePassEncoder(clip, short_side, precision="bf16")
                variants[f"{name}, bf16"] = Variant(encoder, flops, bf16=True)
    for variant in variants.values():
        variant.encoder.eval()
    return variants


def measure(segmenter: OpenVocabSegmenter, image: Tensor, variants: dict[str, Variant], repeats: int) -> Values:
    """Time all variants in turns, and compare the results of crops with the baseline's."""
    clip, stopwatch = segmenter.clip, Stopwatch()
    propose, few = segmenter.proposer.propose, draw_regions(2, (image.shape[1], image.shape[2]))
    proposer_flops = counted_flops(lambda: propose([image], segmenter.vocabulary))  # also warms up
    stopwatch.watch("clip", clip.visual)  # before copies of it are made
    for variant in variants.values():
        variant.encoder([image], [few])  # warms up
        stopwatch.watch("encoding", variant.encoder)
    segmenter.proposer.propose = stopwatch.watched("proposals", propose)  # type: ignore[method-assign]
    rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    results: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(repeats):
        for name, variant in variants.items():
            rates["fp32"].append(matrix_rate(torch.float32))
            rates["bf16"].append(matrix_rate(torch.bfloat16))
            segmenter.region_encoder = variant.encoder
            duration, labels = stopwatch.run(lambda: segmenter.labels([image])[0])
            taken[name].append(duration)
            results[name] = (stopwatch.results["encoding"][0].features, labels)
            print(f"{name}: {duration['encoding']:.2f} s, end to end {duration['total']:.2f} s", flush=True)
    del segmenter.proposer.propose  # the class's own again
    rate = {precision: median(measured) for precision, measured in rates.items()}
    rows = [_row(name, variant, taken[name], rate, proposer_flops) for name, variant in variants.items()]
    return {"rates": rate, "proposer_flops": proposer_flops, "rows": rows, "equality": compare(results)}


def _row(
    name: str, variant: Variant, taken: list[dict[str, float]], rate: dict[str, float], proposer_flops: float
) -> Values:
    """Return the medians of a variant, in seconds, and its floors."""
    row: Values = {"name": name, "flops": variant.flops}
    row |= {part: median(duration[part] for duration in taken) for part in taken[0]}
    row["floor"] = variant.flops / rate["bf16" if variant.bf16 else "fp32"]
    return row | {"total_floor": row["floor"] + proposer_flops / rate["fp32"]}


def compare(results: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Values]:
    """Compare the features and labels of crops with those of the baseline, the first of the results."""
    (features, labels), *_ = results.values()
    return {
        name: {
            "largest_difference": (others[0] - features).abs().max().item(),
            "equal_pixels": (others[1] == labels).float().mean().item(),
        }
        for name, others in results.items()
        if name.startswith("crops,") or name == "crops"
    }


def measure_growth(clip: CLIPAdapter, proposer: DrawnMasks, size: tuple[int, int], repeats: int) -> Values:
    """Time more and fewer proposals, classes and pixels."""
    crops, one_pass = CropEncoder(clip).eval(), SinglePassEncoder(clip).eval()
    image, masks, proposals = torch.rand(3, *size), draw_regions(1000, size), []
    for count in (10, 30, 100, 300, 1000):
        row: Values = {"count": count, "single pass": encoding_time(one_pass, image, masks[:count], repeats)}
        if count <= 30:
            row["crops"] = encoding_time(crops, image, masks[:count], 1)
        proposals.append(row)
    classes = [{"count": count, "labels": labels_time(count, size, repeats)} for count in (10, 150, 847)]
    pixels = []
    for factor in (0.5, 1, 2):
        scaled = (round(size[0] * factor), round(size[1] * factor))
        image, masks = torch.rand(3, *scaled), draw_regions(100, scaled)
        row = {"size": list(scaled), "proposals": seconds(partial(proposer, [image]))}
        row["single pass"] = encoding_time(one_pass, image, masks, repeats)
        pixels.append(row | {"labels": labels_time(len(NAMES), scaled, repeats)})
    return {"proposals": proposals, "classes": classes, "pixels": pixels}


def encoding_time(encoder: RegionEncoder, image: Tensor, masks: Tensor, repeats: int) -> float:
    """Return the median time of encoding the regions of an image."""
    return median(seconds(lambda: encoder([image], [masks])) for _ in range(repeats))


def labels_time(classes: int, size: tuple[int, int], repeats: int) -> float:
    """Return the median time of labelling every pixel from the scores of 100 proposals."""
    scores, probabilities = torch.rand(100, classes), draw_masks(100, size)
    return median(seconds(lambda: semantic_labels(scores, probabilities, size)) for _ in range(repeats))
