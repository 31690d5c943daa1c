"""Files on disk: images, labels, captions, pairs and vocabularies, as datamodules.

Names are looked up when they are asked for: `ovseg.data.toy` must not pay for Lightning and spaCy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "ADE20K150DataModule": "benchmarks",
    "ADE20K847DataModule": "benchmarks",
    "CaptionDataModule": "captions.datamodule",
    "COCOStuff171DataModule": "benchmarks",
    "COCOStuffDataModule": "coco_stuff",
    "ImagesDataModule": "images",
    "PascalContext59DataModule": "benchmarks",
    "PascalContext459DataModule": "benchmarks",
    "PascalVOC20DataModule": "benchmarks",
    "PascalVOC20bDataModule": "benchmarks",
    "PascalVOC21DataModule": "benchmarks",
    "RegionTextDataModule": "pairs.datamodule",
    "SegmentationBenchmark": "benchmarks",
    "read_pairs": "pairs",
    "read_vocabulary": "vocabulary",
    "write_pairs": "pairs",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
