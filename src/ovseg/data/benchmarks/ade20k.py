"""ADE20K, validation: the 150 classes of the scene parsing benchmark and 847 classes of the full data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ovseg.data.benchmarks.base import Benchmark, Layout
from ovseg.data.images import EvalImages, EvalSample
from ovseg.data.labels import Coding, LabelFiles, read_ade20k_full
from ovseg.data.mask_reader import MaskReader
from ovseg.data.masks import LabelMaps
from ovseg.data.partners import by_stem, require_labels
from ovseg.data.vocabulary import read_dataset_ids
from ovseg.structures import InputError

Protocol = Literal["release", "full"]


class ADE20K150DataModule(Benchmark):
    """ADE20K SceneParsing 150, 2,000 images. Label 0 means unlabelled, 1 is the first class."""

    layout = Layout(
        name="ade20k_150",
        total=2000,
        homes=("ADEChallengeData2016", "."),
        images=("images/validation",),
        labels=("annotations/validation",),
        source="unpack ADEChallengeData2016.zip from sceneparsing.csail.mit.edu into the root folder",
    )

    def label_files(self, locations: Mapping[str, Path]) -> LabelFiles:
        files = by_stem(locations["images"], locations["labels"], source=self.layout.source)
        return LabelFiles(files, Coding(range(1, 151), {0}), self.layout.name)


class ReducedImages(EvalImages):
    """Images with their labels and masks, reduced if their short side is too long.

    The release prepares its files in this way with OpenCV: images bilinearly without antialiasing, labels by nearest
    neighbour. Masks are reduced like labels.

    Args:
        labels: label files of the images.
        resize: short and long side in pixels for the network, applied to the reduced image.
        masks: masks of the images, at their full size.
        short_side: the longest short side in pixels that is not reduced.
    """

    def __init__(
        self,
        labels: LabelFiles,
        resize: tuple[int, int] | None,
        masks: MaskReader | None = None,
        short_side: int = 512,
    ) -> None:
        super().__init__(labels.images, resize, labels, masks)
        self.short_side = short_side

    def read(self, path: Path) -> EvalSample:
        sample = super().read(path)
        image, labels, masks = sample
        size = (image.height, image.width)
        height, width = reduced = reduced_size(size, self.short_side)
        if reduced == size:
            return sample
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, reduced, mode="bilinear", align_corners=False)[0].round().byte()
        rows, columns = _nearest(size[0], height), _nearest(size[1], width)
        return EvalSample(
            Image.fromarray(pixels.permute(1, 2, 0).numpy()),
            None if labels is None else labels[rows][:, columns],
            None if masks is None else masks._replace(masks=masks.masks[:, rows][:, :, columns]),
        )


def reduced_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return (h, w) of an image of `size` (H, W) after its short side is limited to `short_side`."""
    if min(size) <= short_side:
        return size
    height, width = (round(side / min(size) * short_side) for side in size)
    return height, width


def _nearest(old: int, new: int) -> Tensor:
    """Return the index, among `old` pixels, of the nearest neighbour of each of `new` pixels.

    The arithmetic is OpenCV's; another order of operations rounds whole quotients differently.
    """
    return (torch.arange(new, dtype=torch.float64) * (1 / (new / old))).floor().long().clamp(max=old - 1)


class ADE20K847DataModule(Benchmark):
    """Full ADE20K of 2021, 2,000 images in nested folders. The colours of `*_seg.png` encode object ids.

    Objects outside the vocabulary of 847 are unlabelled. `index_ade20k.pkl` is not read, because a pickle can run
    arbitrary code.

    Args:
        root: the folder that holds the data sets, or this benchmark's folder.
        vocabulary: other names of the same classes in the same order, see `ovseg.data.vocabulary.read_vocabulary`.
        synonyms: whether to use the built-in list's synonyms as well.
        resize: short and long side in pixels; defaults to the segmenter's.
        num_workers: processes that read images and labels.
        masks: regions in place of proposals, see `Benchmark`; they are reduced together with the images.
        protocol: `release` first reduces images and labels whose short side exceeds 512, see `ReducedImages`; `full`
            shows the network the photographs as they are and scores at their size.
    """

    layout = Layout(
        name="ade20k_847",
        total=2000,
        homes=("ADE20K_2021_17_01", "."),
        images=("images/ADE/validation",),
        source="unpack ADE20K_2021_17_01.zip into the root folder; "
        "groups.csail.mit.edu/vision/datasets/ADE20K provides it after registration",
    )

    def __init__(
        self,
        root: str = "datasets",
        vocabulary: str | None = None,
        synonyms: bool = False,
        resize: tuple[int, int] | None = None,
        num_workers: int = 0,
        masks: Path | LabelMaps | None = None,
        protocol: Protocol = "release",
    ) -> None:
        if protocol not in get_args(Protocol):
            raise InputError(f"data.protocol is {protocol!r}; give {' or '.join(get_args(Protocol))}")
        super().__init__(root, vocabulary, synonyms, resize, num_workers, masks)
        if protocol == "release":
            self.dataset = ReducedImages(self.labels, resize, self.masks)

    def label_files(self, locations: Mapping[str, Path]) -> LabelFiles:
        folder = locations["images"]
        files = {image: image.with_name(f"{image.stem}_seg.png") for image in sorted(folder.rglob("*.jpg"))}
        if not files:
            raise InputError(f"{folder} has no images; {self.layout.source}")
        require_labels(files, folder, self.layout.source)
        ids = read_dataset_ids(self.layout.vocabulary)
        assert ids is not None  # the built-in vocabulary has them
        return LabelFiles(files, Coding(ids, range(26 * 256), read_ade20k_full), self.layout.name)
