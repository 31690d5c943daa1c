"""Images for evaluation and segmentation: their datasets, and the datamodule of unlabelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning import LightningDataModule
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ovseg.data.base import eval_loader
from ovseg.data.mask_reader import ImageMasks
from ovseg.data.masks import LabelMaps, open_masks
from ovseg.data.vocabulary import read_vocabulary
from ovseg.images import IMAGE_SUFFIXES, MIN_SIDE, read_image, resize_short_side, to_tensor
from ovseg.limits import check_at_least
from ovseg.structures import EvalBatch, InputError, Vocabulary

OTHERS = "others"


def find_images(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """List image files: those given, and those with an image's suffix directly in the given folders, sorted by name.

    Raises:
        InputError: a path does not exist, a folder has no images, or there are no paths.
    """
    files: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise InputError(f"{path} has no images; give a folder with files such as photo.jpg or photo.png")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"{path} does not exist; give an image file or a folder of images")
    if not files:
        raise InputError("no images given; give an image file or a folder of images")
    return files


class EvalSample(NamedTuple):
    """An image at the size at which it is scored, before it is resized for the network."""

    image: Image
    labels: Tensor | None  # (H, W) integers
    masks: ImageMasks | None  # at (H, W)


class EvalImages(Dataset[EvalBatch]):
    """Batches of one image, resized by the paper's rule; labels and masks keep the image's own size.

    Args:
        paths: the image files.
        resize: short and long side in pixels; None keeps the size of each image.
        read_labels: (image file, (H, W) of the image) → (H, W) integers; `EvalBatch.labels` is empty without it.
        read_masks: (image file, (H, W) of the image) → its masks; `EvalBatch.masks` is None without it.

    Raises:
        InputError: a side of `resize` is below `MIN_SIDE`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        resize: tuple[int, int] | None,
        read_labels: Callable[[Path, tuple[int, int]], Tensor] | None = None,
        read_masks: Callable[[Path, tuple[int, int]], ImageMasks] | None = None,
    ) -> None:
        check_at_least(MIN_SIDE, resize=resize)
        self.paths, self.resize = list(paths), resize
        self.read_labels, self.read_masks = read_labels, read_masks

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, path: Path) -> EvalSample:
        """Read an image with its labels and masks."""
        image = read_image(path)
        size = (image.height, image.width)
        return EvalSample(
            image,
            labels=None if self.read_labels is None else self.read_labels(path, size),
            masks=None if self.read_masks is None else self.read_masks(path, size),
        )

    def __getitem__(self, index: int) -> EvalBatch:
        path = self.paths[index]
        image, labels, masks = self.read(path)
        return EvalBatch(
            images=[to_tensor(resize_short_side(image, *self.resize) if self.resize else image)],
            sizes=[(image.height, image.width)],
            names=[str(path)],
            labels=[] if labels is None else [labels],
            masks=None if masks is None else [masks.masks],
            mask_scores=None if masks is None else [masks.scores],
        )


class ReadableImages(EvalImages):
    """Like `EvalImages`, but a broken file gives a batch without images that says why."""

    def __getitem__(self, index: int) -> EvalBatch:
        try:
            return super().__getitem__(index)
        except InputError as error:
            return EvalBatch([], [], [], [], faults=(str(error),))


class ImagesDataModule(LightningDataModule):
    """Unlabelled images and the words to find in them.

    A task or callback tells it the network's resolution and the remaining images through `configure`.

    Args:
        images: files and folders.
        vocabulary: see `ovseg.data.vocabulary.read_vocabulary`. Every pixel gets one of the words; a single word is
            joined by `others`, as in the release's demo.
        resize: short and long side in pixels; defaults to the segmenter's.
        num_workers: processes that read images.
        masks: regions in place of proposals: a COCO instances file, a JSON list of results with run lengths (SAM's, for
            example), or label maps.

    Raises:
        InputError: at once, before any image is segmented: there are no images, the vocabulary or the masks cannot
            be used, or a number is out of range. Files that are not images are reported when they are read, see
            `ReadableImages`.
    """

    def __init__(
        self,
        images: str | list[str],
        vocabulary: str,
        resize: tuple[int, int] | None = None,
        num_workers: int = 0,
        masks: Path | LabelMaps | None = None,
    ) -> None:
        super().__init__()
        check_at_least(MIN_SIDE, resize=resize)  # before any file is read
        check_at_least(0, num_workers=num_workers)
        self.vocabulary = _with_others(read_vocabulary(vocabulary))
        paths = find_images(images)
        stems: dict[str, Path] = {}
        for path in paths:
            if not (other := stems.setdefault(path.stem, path)).samefile(path):
                raise InputError(f"{other} and {path} would be written to the same file; segment them in two runs")
        self.paths, self.resize, self.num_workers = list(stems.values()), resize, num_workers
        self.masks = None if masks is None else open_masks(masks, self.paths)
        self.dataset = ReadableImages(self.paths, resize, read_masks=self.masks)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # few images may be left for many processes

    def setup(self, stage: str) -> None:
        self.dataset = ReadableImages(self.paths, self.resize, read_masks=self.masks)  # undoes an earlier `configure`

    def configure(self, resize: tuple[int, int] | None = None, paths: Sequence[Path] | None = None) -> None:
        """Adapt to the run, after `setup`.

        Args:
            resize: short and long side that the network was made for; the datamodule's own `resize` takes precedence.
            paths: the images that are still to be segmented.
        """
        if self.resize is None and resize is not None:
            self.dataset.resize = resize
        if paths is not None:
            self.dataset.paths = list(paths)

    def predict_dataloader(self) -> DataLoader[EvalBatch]:
        return eval_loader(self.dataset, self.num_workers, may_idle=True)


def _with_others(vocabulary: Vocabulary) -> Vocabulary:
    """Add `others` to a single word, which would otherwise get every pixel."""
    if len(vocabulary) > 1 or vocabulary.names[0].casefold() == OTHERS:
        return vocabulary
    return Vocabulary((*vocabulary.names, OTHERS), (*vocabulary.synonyms, (OTHERS,)))
