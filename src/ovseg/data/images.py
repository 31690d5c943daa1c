"""Image files of any kind, as RGB, and the datamodule that segments them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ovseg.data.base import eval_loader
from ovseg.data.vocabulary import read_vocabulary
from ovseg.structures import EvalBatch, InputError

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 500_000_000

# what Pillow's readers raise for broken files
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """The opened file, its pixels not yet read; whatever is wrong with it becomes an `InputError`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give an image file")
    guard, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours, below, neither warns nor starts so low
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{image.width} x {image.height} are more than {MAX_PIXELS:,} pixels")
            yield image
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image; replace it by a file such as photo.jpg or photo.png") from error
    except _BROKEN as error:
        raise InputError(f"{path} cannot be used ({error}); replace it by an image that opens in a viewer") from error
    finally:
        Image.MAX_IMAGE_PIXELS = guard


def read_image(source: str | Path | Image.Image | NDArray[Any]) -> Image.Image:
    """The image as RGB with 8 bits a channel, turned upright by its EXIF entry.

    16 bits are scaled to 8, transparent pixels are laid on white, of animations the first frame is taken.

    Args:
        source: a file, a PIL image, or an array (H, W), (H, W, 1 | 3 | 4): uint8, uint16, bool or float in [0, 1].

    Raises:
        InputError: the file is missing, not an image, damaged, or larger than `MAX_PIXELS`.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    if isinstance(source, Image.Image):
        return _to_rgb(source)
    with open_image(source) as image:
        return _to_rgb(image)


def verify_image(path: str | Path) -> None:
    """Check cheaply, by its header, that a file is an image; raises what `read_image` would."""
    with open_image(path) as image:
        image.verify()


def short_side_size(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """(h, w) of an image of `size` (H, W) by the paper's rule.

    The short side becomes `short_side` unless the long one would exceed `long_side`; int(x + 0.5), at least 1.
    """
    scale = short_side / min(size)
    if scale * max(size) > long_side:
        scale = long_side / max(size)
    height, width = (max(int(scale * side + 0.5), 1) for side in size)
    return height, width


def resize_short_side(image: Image.Image, short_side: int, long_side: int) -> Image.Image:
    """Resize by `short_side_size`, bilinear on bytes, as the paper's evaluation does."""
    height, width = short_side_size((image.height, image.width), short_side, long_side)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


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
        read_labels: (image file, (H, W) of the image) → (H, W) int64; `EvalBatch.labels` is empty without it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        short_side: int,
        long_side: int,
        read_labels: Callable[[Path, tuple[int, int]], Tensor] | None = None,
    ) -> None:
        self.paths, self.short_side, self.long_side = list(paths), short_side, long_side
        self.read_labels = read_labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> EvalBatch:
        path = self.paths[index]
        image = read_image(path)
        size = (image.height, image.width)
        return EvalBatch(
            images=[to_tensor(resize_short_side(image, self.short_side, self.long_side))],
            sizes=[size],
            names=[path.name],
            labels=[self.read_labels(path, size)] if self.read_labels else [],
        )


class ImagesDataModule(LightningDataModule):
    """Images without labels and the words to find in them.

    Args:
        images: files and folders.
        vocabulary: see `ovseg.data.vocabulary.read_vocabulary`.

    Raises:
        InputError: at once, before any model is built, if a file is not an image or the vocabulary cannot be used.
    """

    def __init__(
        self,
        images: str | list[str],
        vocabulary: str,
        short_side: int = 640,
        long_side: int = 2560,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.vocabulary = read_vocabulary(vocabulary)
        paths = find_images(images)
        for path in paths:
            verify_image(path)
        stems: dict[str, Path] = {}
        for path in paths:
            if not (other := stems.setdefault(path.stem, path)).samefile(path):
                raise InputError(f"{other} and {path} would be written to the same file; segment them in two runs")
        self.dataset = EvalImages(list(stems.values()), short_side, long_side)
        self.num_workers = num_workers

    def predict_dataloader(self) -> DataLoader[EvalBatch]:
        return eval_loader(self.dataset, self.num_workers)


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "I":  # how Pillow holds 16 bits of some formats, in 32
        low, high = cast(tuple[int, int], image.getextrema())
        if low < 0 or high > 65535:
            raise InputError(f"values of {low} to {high} are more than 16 bits")
        image = _from_array(np.asarray(image).astype(np.uint16))
    elif image.mode.startswith("I;16") or image.mode == "F":
        image = _from_array(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise InputError(f"an array of shape {array.shape} is not an image; give (H, W) or (H, W, 3)")
    if array.dtype == np.uint8:
        scaled = array
    elif array.dtype == np.bool_:
        scaled = array * np.uint8(255)
    elif array.dtype.type is np.uint16:  # of either byte order; 65535 is 257 x 255
        scaled = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating) and array.min() >= 0 and array.max() <= 1:
        scaled = (array * 255 + 0.5).astype(np.uint8)
    else:
        raise InputError(
            f"an array of {array.dtype} from {array.min()} to {array.max()} is not an image; "
            "give uint8, uint16 or floating point numbers in [0, 1]"
        )
    return Image.fromarray(scaled)
