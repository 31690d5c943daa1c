"""PASCAL VOC 2012 and PASCAL Context (annotations of VOC 2010), validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ovseg.data.benchmarks.base import Benchmark, Layout
from ovseg.data.labels import Coding, LabelFiles, read_label_map
from ovseg.data.partners import by_list
from ovseg.data.vocabulary import read_dataset_ids


class PascalVOC20DataModule(Benchmark):
    """PASCAL VOC 2012, 1,449 images. Labels are palette indices; background (0) and void (255) are unlabelled."""

    layout = Layout(
        name="pascal_voc_20",
        total=1449,
        homes=("VOCdevkit/VOC2012", "VOC2012", "."),
        images=("JPEGImages",),
        labels=("SegmentationClass", "SegmentationClassAug"),
        split=("ImageSets/Segmentation/val.txt",),
        source="unpack VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012 into the root folder",
    )
    coding: ClassVar[Coding] = Coding(range(1, 21), {0, 255})

    def label_files(self, locations: Mapping[str, Path]) -> LabelFiles:
        files = by_list(locations["split"], locations["images"], locations["labels"], ".png", self.layout.source)
        return LabelFiles(files, self.coding, self.layout.name)


class PascalVOC21DataModule(PascalVOC20DataModule):
    """PAS-21: the same images; background is class 0."""

    layout = PascalVOC20DataModule.layout._replace(name="pascal_voc_21")
    coding = Coding(range(21), {255})


class PascalVOC20bDataModule(PascalVOC20DataModule):
    """PAS-20b: the same images; background is a 21st class, named by the other 39 classes of PASCAL Context 59."""

    layout = PascalVOC20DataModule.layout._replace(name="pascal_voc_20b")
    coding = Coding((*range(1, 21), 0), {255})


class PascalContext459DataModule(Benchmark):
    """PASCAL Context 459, 5,104 images. Labels are the `LabelMap` of a MATLAB file; 0 means unlabelled.

    The split `pascalcontext_val.txt` comes with the code of OVSeg and related projects; without it the validation list
    of VOC 2010 is used. Label PNGs prepared by other projects are not read, because nothing in them says which of
    several class lists they follow.
    """

    layout = Layout(
        name="pascal_context_459",
        total=5104,
        homes=("VOCdevkit/VOC2010", "VOC2010", "."),
        images=("JPEGImages",),
        labels=("trainval",),
        split=("pascalcontext_val.txt", "ImageSets/Main/val.txt"),
        source="unpack VOCtrainval_03-May-2010.tar from host.robots.ox.ac.uk/pascal/VOC/voc2010 into the root folder "
        "and trainval.tar.gz with the *.mat from cs.stanford.edu/~roozbeh/pascal-context into its VOCdevkit/VOC2010",
    )

    def label_files(self, locations: Mapping[str, Path]) -> LabelFiles:
        files = by_list(locations["split"], locations["images"], locations["labels"], ".mat", self.layout.source)
        return LabelFiles(files, self.coding_of_maps(), self.layout.name)

    def coding_of_maps(self) -> Coding:
        """Return how the 459 ids stand for classes."""
        return Coding(range(1, 460), {0}, read_label_map)


class PascalContext59DataModule(PascalContext459DataModule):
    """PASCAL Context 59, the same files. Only the 59 most frequent classes are labelled."""

    layout = PascalContext459DataModule.layout._replace(name="pascal_context_59")

    def coding_of_maps(self) -> Coding:
        ids = read_dataset_ids(self.layout.name, "pascal_context_459_ids")
        assert ids is not None  # the built-in vocabulary has them
        return Coding(ids, range(460), read_label_map)
