"""Datasets and the datamodule of images to be answered at their own size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning import LightningDataModule
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ovseg.data.base import eval_loader
from ovseg.data.vocabulary import read_vocabulary
from ovseg.images import IMAGE_SUFFIXES, read_image, resize_short_side, to_tensor
from ovseg.structures import EvalBatch, InputError, Vocabulary

OTHERS = "others"


def find_images(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files named, and those with an image's suffix directly in the folders named, sorted within each.

    Raises:
        InputError: a path is missing, a folder has no image, or nothing is named.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise InputError(f"{path} has no image; name a folder that holds files such as photo.jpg or photo.png")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path} does not exist; give an image file or a folder of images")
    if not found:
        raise InputError("no images given; name an image file or a folder of images")
    return found


class EvalImages(Dataset[EvalBatch]):
    """Batches of one image, resized by the paper's rule; the labels stay at the image's own size.

    Args:
        paths: the image files.
        resize: short and long side in pixels; the image's own size where not given.
        read_labels: (image file, (H, W) of the image) → (H, W) integers; `EvalBatch.labels` is empty without it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        resize: tuple[int, int] | None,
        read_labels: Callable[[Path, tuple[int, int]], Tensor] | None = None,
    ) -> None:
        self.paths, self.resize, self.read_labels = list(paths), resize, read_labels

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, path: Path) -> tuple[Image, Tensor | None]:
        """An image and its labels as they are scored, before the network's resizing."""
        image = read_image(path)
        return image, self.read_labels(path, (image.height, image.width)) if self.read_labels else None

    def __getitem__(self, index: int) -> EvalBatch:
        path = self.paths[index]
        image, labels = self.read(path)
        return EvalBatch(
            images=[to_tensor(resize_short_side(image, *self.resize) if self.resize else image)],
            sizes=[(image.height, image.width)],
            names=[str(path)],
            labels=[] if labels is None else [labels],
        )


class ReadableImages(EvalImages):
    """Images some of which may be broken: of these the batch has no image but the reason."""

    def __getitem__(self, index: int) -> EvalBatch:
        try:
            return super().__getitem__(index)
        except InputError as error:
            return EvalBatch([], [], [], [], (str(error),))


class ImagesDataModule(LightningDataModule):
    """Images without labels and the words to find in them.

    Args:
        images: files and folders.
        vocabulary: see `ovseg.data.vocabulary.read_vocabulary`; every pixel gets one of the words, and beside a single
            word there is `others`, as in the demo of the release.
        resize: short and long side in pixels; what the segmenter was made for where not given.

    Raises:
        InputError: at once, before any image is segmented, if there is none or the vocabulary cannot be used. Files
            that are no images are found when they are read, see `ReadableImages`.
    """

    def __init__(
        self,
        images: str | list[str],
        vocabulary: str,
        resize: tuple[int, int] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.vocabulary = _with_others(read_vocabulary(vocabulary))
        paths = find_images(images)
        stems: dict[str, Path] = {}
        for path in paths:
            if not (other := stems.setdefault(path.stem, path)).samefile(path):
                raise InputError(f"{other} and {path} would be written to the same file; segment them in two runs")
        self.paths, self.resize, self.num_workers = list(stems.values()), resize, num_workers
        self.dataset = ReadableImages(self.paths, resize)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # few images may be left for many processes

    def setup(self, stage: str) -> None:
        self.dataset = ReadableImages(self.paths, self.resize)  # whatever an earlier run was configured for

    def configure(self, resize: tuple[int, int] | None = None, paths: Sequence[Path] | None = None) -> None:
        """Tell, after `setup`, what this run needs to know.

        Args:
            resize: what the network was made for; a `resize` of its own goes before it.
            paths: the images that are left to do.
        """
        if self.resize is None and resize is not None:
            self.dataset.resize = resize
        if paths is not None:
            self.dataset.paths = list(paths)

    def predict_dataloader(self) -> DataLoader[EvalBatch]:
        return eval_loader(self.dataset, self.num_workers, may_idle=True)


def _with_others(vocabulary: Vocabulary) -> Vocabulary:
    """A single word would be all of the picture."""
    if len(vocabulary) > 1 or vocabulary.names[0].casefold() == OTHERS:
        return vocabulary
    return Vocabulary((*vocabulary.names, OTHERS), (*vocabulary.synonyms, (OTHERS,)))
