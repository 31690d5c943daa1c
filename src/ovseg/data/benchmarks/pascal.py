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
    """PASCAL VOC 2012, 1,449 images: palette indices, background (0) and void (255) are unlabelled."""

    layout = Layout(
        classes="pascal_voc_20",
        total=1449,
        homes=("VOCdevkit/VOC2012", "VOC2012", "."),
        images=("JPEGImages",),
        labels=("SegmentationClass", "SegmentationClassAug"),
        split=("ImageSets/Segmentation/val.txt",),
        source="unpack VOCtrainval_11-May-2012.tar there, from host.robots.ox.ac.uk/pascal/VOC/voc2012",
    )
    coding: ClassVar[Coding] = Coding(range(1, 21), {0, 255})

    def label_files(self, locations: Mapping[str, Path]) -> LabelFiles:
        files = by_list(locations["split"], locations["images"], locations["labels"], ".png", self.layout.source)
        return LabelFiles(files, self.coding, self.layout.classes)


class PascalVOC21DataModule(PascalVOC20DataModule):
    """PAS-21: the same images, background is class 0."""

    layout = PascalVOC20DataModule.layout._replace(classes="pascal_voc_21")
    coding = Coding(range(21), {255})


class PascalVOC20bDataModule(PascalVOC20DataModule):
    """PAS-20b: the same images, background is one class more, named by the other 39 classes of PASCAL Context 59."""

    layout = PascalVOC20DataModule.layout._replace(classes="pascal_voc_20b")
    coding = Coding((*range(1, 21), 0), {255})


class PascalContext459DataModule(Benchmark):
    """PASCAL Context 459, 5,104 images: `LabelMap` of a MATLAB file, 0 is unlabelled.

    Where `pascalcontext_val.txt` is missing the validation list of VOC 2010 applies. Folders of label PNGs that other
    projects prepared are not read: they do not say which of the class lists in circulation they follow.
    """

    layout = Layout(
        classes="pascal_context_459",
        total=5104,
        homes=("VOCdevkit/VOC2010", "VOC2010", "."),
        images=("JPEGImages",),
        labels=("trainval",),
        split=("pascalcontext_val.txt", "ImageSets/Main/val.txt"),
        source="unpack VOCtrainval_03-May-2010.tar there, from host.robots.ox.ac.uk/pascal/VOC/voc2010, and in VOC2010 "
        "trainval.tar.gz with the *.mat, from cs.stanford.edu/~roozbeh/pascal-context; the split pascalcontext_val.txt "
        "comes with the code of OVSeg and its relatives, without it VOC's ImageSets/Main/val.txt applies",
    )

    def label_files(self, locations: Mapping[str, Path]) -> LabelFiles:
        files = by_list(locations["split"], locations["images"], locations["labels"], ".mat", self.layout.source)
        return LabelFiles(files, self.coding_of_maps(), self.layout.classes)

    def coding_of_maps(self) -> Coding:
        """Which ids of the 459 are the classes."""
        return Coding(range(1, 460), {0}, read_label_map)


class PascalContext59DataModule(PascalContext459DataModule):
    """PASCAL Context 59, the same files: the 59 frequent classes, the other 400 are unlabelled."""

    layout = PascalContext459DataModule.layout._replace(classes="pascal_context_59")

    def coding_of_maps(self) -> Coding:
        ids = read_dataset_ids(self.layout.classes, "pascal_context_459_ids")
        assert ids is not None  # it is ours
        return Coding(ids, range(460), read_label_map)
