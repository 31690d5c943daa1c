"""Limits on what a file or a setting can request: memory, the names of other files, and the range of numbers."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from ovseg.structures import InputError

MAX_MEGAPIXELS = 100.0  # default limit for an image, its labels or a mask
VARIABLE = "OVSEG_MAX_MEGAPIXELS"  # read on every call, so that it applies in workers as well
MAX_NAME = 255  # bytes in a file name, on all common file systems
SLACK = 2**26  # bytes that a file of any size may unpack to


def check_size(width: int, height: int, subject: str) -> None:
    """Check the number of pixels against the limit, before they are decoded.

    Args:
        width: width in pixels.
        height: height in pixels.
        subject: the subject of the error message, such as a path.

    Raises:
        InputError: there are more pixels than `OVSEG_MAX_MEGAPIXELS` allows, or its value is not a positive number.
    """
    value = os.environ.get(VARIABLE) or MAX_MEGAPIXELS
    try:
        limit = float(value)
    except ValueError:
        limit = -1
    if not limit > 0:
        raise InputError(f"{VARIABLE} is {value!r}; give a number of megapixels such as {MAX_MEGAPIXELS:g}")
    if min(width, height) < 0 or width * height > limit * 1e6:
        raise InputError(
            f"{subject} has {width:,} x {height:,} pixels, more than {limit:g} megapixels; resize it, or set "
            f"{VARIABLE} to a higher limit"
        )


def check_at_least(minimum: float, **values: float | Sequence[float] | None) -> None:
    """Check settings against a lower limit, before anything is read or written.

    Args:
        minimum: the lower limit.
        values: the settings by name; None means that a setting has its default.

    Raises:
        InputError: a number, or one of several, is below the limit or NaN.
    """
    for name, value in values.items():
        numbers = [] if value is None else value if isinstance(value, Sequence) else [value]
        if not all(number >= minimum for number in numbers):
            each = " for each number" if isinstance(value, Sequence) else ""
            text = list(value) if isinstance(value, Sequence) else value
            raise InputError(f"{name} is {text}; give at least {minimum:g}{each}")


def check_names(names: Iterable[str | None], source: Path) -> None:
    """Check that file names stay inside the folder they are relative to; links inside the folder may point anywhere.

    Args:
        names: the file names; None and empty names are refused.
        source: the file that contains the names, for the error message.

    Raises:
        InputError: a name can lead out of the folder, or is too long.
    """
    for name in names:
        if not name or name[0] == "/" or name[1:2] == ":" or "\\" in name or (".." in name and ".." in name.split("/")):
            raise InputError(
                f"{source} names the image {name!r}, which may be outside the image folder; write names relative to "
                "that folder, with / and without '..'"
            )
        # a character takes up to four bytes
        if len(name) > MAX_NAME // 4 and max(len(part.encode(errors="replace")) for part in name.split("/")) > MAX_NAME:
            raise InputError(
                f"{source} names the image {name[:20]!r}…, which is longer than a file name can be; correct it"
            )


def check_unpacked(size: int, packed: int, ratio: int = 1) -> None:
    """Check that a compressed file does not unpack to far more bytes than legitimate content would.

    Args:
        size: unpacked bytes, as declared by the file.
        packed: bytes of the file.
        ratio: highest compression ratio of legitimate content.

    Raises:
        ValueError: `size` is above `ratio * packed + SLACK`.
    """
    if size > ratio * packed + SLACK:
        raise ValueError(f"it would unpack from {packed:,} to {size:,} bytes")


def check_archive(path: Path) -> None:
    """Check that a zip archive of weights, which do not compress, does not unpack to far more bytes than it has.

    The declared sizes suffice, since `zipfile` reads no more bytes of a member than its directory declares.

    Raises:
        ValueError: it would unpack to far more.
    """
    with zipfile.ZipFile(path) as archive:
        check_unpacked(sum(member.file_size for member in archive.infolist()), path.stat().st_size)


def read_gzip(path: Path) -> str:
    """Read a small gzip-compressed text file.

    Raises:
        InputError: the file is missing, damaged or not text, or unpacks to more than `SLACK` bytes.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(SLACK + 1)
        if len(content) > SLACK:
            raise ValueError(f"it unpacks to more than {SLACK:,} bytes")
        return content.decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); download or save it again") from error
