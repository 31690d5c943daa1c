"""Read image files of many formats as RGB, and resize by the paper's rule."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from ovseg.limits import check_size
from ovseg.structures import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".mpo", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MIN_SIDE = 4  # pixels, one patch of the backbones

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # MPO is read as JPEG; EPS would start Ghostscript

# errors that Pillow raises for broken files
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels, and turn errors raised inside the block into `InputError`s.

    Raises:
        InputError: the file is missing, not an image, damaged, or larger than `ovseg.limits.check_size` allows.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give an image file")
    with _input_errors(path):
        file = path.open("rb")
    with file:
        with _input_errors(path):
            image = _open_lazily(file, path)
        check_size(image.width, image.height, str(path))
        with _input_errors(path), image:
            yield image


@contextmanager
def _input_errors(path: Path) -> Iterator[None]:
    """Turn Pillow's errors into `InputError`s that name the file."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image; replace it with a file such as photo.jpg or photo.png") from error
    except (
        Image.DecompressionBombError
    ) as error:  # from readers that allocate immediately, or whose tiles differ in size
        raise InputError(f"{path} has more pixels than Pillow reads in its format; resize it") from error
    except _BROKEN as error:
        raise InputError(f"{path} cannot be used ({error}); replace it with an image that opens in a viewer") from error


def _open_lazily(file: IO[bytes], path: Path) -> ImageFile.ImageFile:
    """Open like `Image.open(file, formats=FORMATS)`, but without Pillow's size limit.

    Pillow's limit applies to the whole process, warns from 89 megapixels on, and cannot be raised for one image.
    """
    Image.init()
    prefix = file.read(16)
    for name in FORMATS:
        reader, accepts = Image.OPEN[name]
        if accepts is None or accepts(prefix) is True:
            file.seek(0)
            try:
                return reader(file, str(path))
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # only its first bytes match this format
    raise UnidentifiedImageError


def read_image(source: str | Path | Image.Image | NDArray[Any]) -> Image.Image:
    """Return the image as RGB with 8 bits per channel, rotated upright by its EXIF entry.

    16-bit values are scaled to 8 bits, transparent pixels are composited onto white, and animations give their first
    frame.

    Args:
        source: a file, a PIL image, or an array (H, W) or (H, W, 1 | 3 | 4) of uint8, uint16, bool or float in [0, 1].

    Raises:
        InputError: the file is missing, not an image, damaged, or larger than `ovseg.limits.check_size` allows.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    if isinstance(source, Image.Image):
        return _to_rgb(source)
    with open_image(source) as image:
        return _to_rgb(image)


def short_side_size(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Return the size (h, w) to which the paper's rule resizes an image of `size` (H, W).

    The short side becomes `short_side`, unless the long side would exceed `long_side`, which it then becomes. Sides are
    rounded by int(x + 0.5) and are at least `MIN_SIDE`.
    """
    scale = short_side / min(size)
    if scale * max(size) > long_side:
        scale = long_side / max(size)
    height, width = (max(int(scale * side + 0.5), MIN_SIDE) for side in size)
    return height, width


def resize_short_side(image: Image.Image, short_side: int, long_side: int) -> Image.Image:
    """Resize to `short_side_size` with bilinear interpolation on bytes, as the paper's evaluation does."""
    height, width = short_side_size((image.height, image.width), short_side, long_side)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def check_tensor(image: Tensor) -> None:
    """Check that a tensor is an RGB image: (3, h, w) floats in about [0, 1], with sides of at least `MIN_SIDE`.

    Raises:
        InputError: it is not.
    """
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[0] != 3:
        raise InputError(f"an image must be a tensor of shape (3, h, w), got {shape}; convert it to RGB first")
    if min(shape[1:]) < MIN_SIDE:
        patch = f"one patch ({MIN_SIDE} × {MIN_SIDE})"
        raise InputError(
            f"an image of {shape[1]} × {shape[2]} pixels is smaller than {patch}; enlarge it or leave it out"
        )
    if not image.is_floating_point():
        raise InputError(f"an image must be a tensor of floats in [0, 1], got {image.dtype}; divide bytes by 255")
    low, high = torch.stack(image.aminmax()).tolist()  # one transfer
    if not -0.5 <= low <= high <= 1.5:  # bicubic resizing overshoots [0, 1]; NaN fails the comparison
        raise InputError(f"an image must be a tensor of floats in [0, 1], got {low:g} … {high:g}; divide bytes by 255")


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "I":  # Pillow's 32-bit mode for the 16-bit images of some formats
        low, high = cast(tuple[int, int], image.getextrema())
        if low < 0 or high > 65535:
            raise InputError(f"the image has values from {low} to {high}, more than 16 bits; save it with 8 or 16 bits")
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
    elif array.dtype.type is np.uint16:  # in either byte order; 65535 is 257 x 255
        scaled = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating) and array.min() >= 0 and array.max() <= 1:
        scaled = (array * 255 + 0.5).astype(np.uint8)
    else:
        raise InputError(
            f"an array of {array.dtype} from {array.min()} to {array.max()} is not an image; "
            "give uint8, uint16 or floating point numbers in [0, 1]"
        )
    return Image.fromarray(scaled)
