"""COCO-Stuff, validation: 171 classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ovseg.data.benchmarks.base import Benchmark, Layout
from ovseg.data.labels import LabelFiles, coding_of
from ovseg.data.partners import by_stem
from ovseg.data.vocabulary import read_vocabulary


class COCOStuff171DataModule(Benchmark):
    """COCO-Stuff 171, 5,000 images. Labels are ids minus 1, with gaps; 255 means unlabelled.

    Labels in a folder `stuffthingmaps_detectron2` are read as class indices. Such converted labels are refused in
    `stuffthingmaps` itself, because they contain values that COCO-Stuff does not use.
    """

    layout = Layout(
        name="coco_stuff_171",
        total=5000,
        homes=("coco", "coco-stuff", "."),
        images=("val2017", "images/val2017"),
        labels=("stuffthingmaps/val2017", "stuffthingmaps_detectron2/val2017"),
        source="unpack val2017.zip from cocodataset.org into coco in the root folder, and "
        "stuffthingmaps_trainval2017.zip from github.com/nightrome/cocostuff into coco/stuffthingmaps",
    )

    def label_files(self, locations: Mapping[str, Path]) -> LabelFiles:
        files = by_stem(locations["images"], locations["labels"], source=self.layout.source)
        as_downloaded = locations["labels"].parent.name == "stuffthingmaps"
        coding = coding_of(read_vocabulary(self.layout.name), self.layout.name, use_ids=as_downloaded)
        return LabelFiles(files, coding, self.layout.name)
