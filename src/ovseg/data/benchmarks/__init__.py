"""Benchmarks to test on: the published ones as downloaded, and your own data."""

from __future__ import annotations

from ovseg.data.benchmarks.ade20k import ADE20K150DataModule, ADE20K847DataModule
from ovseg.data.benchmarks.base import Benchmark, EvalDataModule, by_name
from ovseg.data.benchmarks.coco_stuff import COCOStuff171DataModule
from ovseg.data.benchmarks.folder import SegmentationBenchmark
from ovseg.data.benchmarks.pascal import (
    PascalContext59DataModule,
    PascalContext459DataModule,
    PascalVOC20bDataModule,
    PascalVOC20DataModule,
    PascalVOC21DataModule,
)

__all__ = [
    "BENCHMARKS",
    "ADE20K150DataModule",
    "ADE20K847DataModule",
    "Benchmark",
    "COCOStuff171DataModule",
    "EvalDataModule",
    "PascalContext59DataModule",
    "PascalContext459DataModule",
    "PascalVOC20DataModule",
    "PascalVOC20bDataModule",
    "PascalVOC21DataModule",
    "SegmentationBenchmark",
]

_PUBLISHED: tuple[type[Benchmark], ...] = (
    ADE20K150DataModule,
    ADE20K847DataModule,
    COCOStuff171DataModule,
    PascalContext59DataModule,
    PascalContext459DataModule,
    PascalVOC20DataModule,
    PascalVOC20bDataModule,
    PascalVOC21DataModule,
)
BENCHMARKS = by_name(_PUBLISHED)
