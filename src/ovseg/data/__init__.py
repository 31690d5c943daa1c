"""Files on disk: images, labels, captions, pairs and vocabularies, as datamodules.

Names are imported on first use, so that `ovseg.data.toy` does not pay for Lightning and spaCy. The classes that
`ovseg.data.benchmarks.find_benchmarks` finds are names of this package as well.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "CaptionDataModule": "captions.datamodule",
    "COCOStuffDataModule": "coco_stuff",
    "ImagesDataModule": "images",
    "RegionTextDataModule": "pairs.datamodule",
    "SegmentationBenchmark": "benchmarks.folder",
    "read_pairs": "pairs",
    "read_vocabulary": "vocabulary",
    "write_pairs": "pairs",
}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return __dir__()
    if name in _HOMES or name[0].isupper():  # names of submodules are lower-case
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'benchmarks')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    benchmarks = import_module(f"{__name__}.benchmarks").find_benchmarks().values()
    return sorted([*_HOMES, *(benchmark.__name__ for benchmark in benchmarks)])
