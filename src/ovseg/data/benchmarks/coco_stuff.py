"""COCO-Stuff, validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ovseg.data.benchmarks.base import Benchmark, Layout
from ovseg.data.labels import LabelFiles, coding_of
from ovseg.data.partners import by_stem
from ovseg.data.vocabulary import read_vocabulary


class COCOStuff171DataModule(Benchmark):
    """COCO-Stuff 171, 5,000 images: ids minus 1, with gaps; 255 is unlabelled.

    A folder `stuffthingmaps_detectron2` is read as the class indices that it holds. Prepared labels under the name of
    the original ones give themselves away by values that COCO-Stuff does not use, and are refused.
    """

    layout = Layout(
        classes="coco_stuff_171",
        total=5000,
        homes=("coco", "coco-stuff", "."),
        images=("val2017", "images/val2017"),
        labels=("stuffthingmaps/val2017", "stuffthingmaps_detectron2/val2017"),
        source="unpack val2017.zip there, from cocodataset.org, and stuffthingmaps_trainval2017.zip of COCO-Stuff, "
        "from github.com/nightrome/cocostuff, in a folder stuffthingmaps",
    )

    def label_files(self, locations: Mapping[str, Path]) -> LabelFiles:
        files = by_stem(locations["images"], locations["labels"], source=self.layout.source)
        as_downloaded = locations["labels"].parent.name == "stuffthingmaps"
        coding = coding_of(read_vocabulary(self.layout.classes), self.layout.classes, use_ids=as_downloaded)
        return LabelFiles(files, coding, self.layout.classes)
