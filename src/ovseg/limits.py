"""Limits on what a file may ask for: its size in memory, and the names of other files."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from ovseg.structures import InputError

MAX_MEGAPIXELS = 100.0  # of an image, its labels or masks
VARIABLE = "OVSEG_MAX_MEGAPIXELS"  # read from the environment each time, so that it reaches workers, too
MAX_NAME = 255  # bytes of a file's name, on all common file systems
SLACK = 2**26  # bytes that any file may unpack to, however small it is


def check_size(width: int, height: int, what: str) -> None:
    """Refuse more pixels than the limit, before they are decoded.

    Raises:
        InputError: there are more; the sentence begins with `what`.
    """
    given = os.environ.get(VARIABLE) or MAX_MEGAPIXELS
    try:
        limit = float(given)
    except ValueError:
        limit = -1
    if not limit > 0:
        raise InputError(f"{VARIABLE} is {given!r}; give a number of megapixels such as {MAX_MEGAPIXELS:g}")
    if min(width, height) < 0 or width * height > limit * 1e6:
        raise InputError(
            f"{what} has {width:,} x {height:,} pixels, more than {limit:g} megapixels; resize it, or set {VARIABLE} "
            "to read it as it is"
        )


def check_names(names: Iterable[str | None], source: Path) -> None:
    """Refuse file names that lead out of the folder they are relative to; links inside it may lead anywhere.

    Raises:
        InputError: names the first in `source`, the file that has them.
    """
    for name in names:
        if not name or name[0] == "/" or name[1:2] == ":" or "\\" in name or (".." in name and ".." in name.split("/")):
            raise InputError(
                f"{source} names the image {name!r}, which may lie outside the image folder; write names relative to "
                "it, with / and without '..'"
            )
        # a character has up to four bytes
        if len(name) > MAX_NAME // 4 and max(len(part.encode(errors="replace")) for part in name.split("/")) > MAX_NAME:
            raise InputError(f"{source} names an image {name[:20]!r}…, longer than a file's name can be; correct it")


def check_unpacked(size: int, packed: int, ratio: int = 1) -> None:
    """Refuse a file that unpacks to more bytes than what it holds can take.

    Args:
        size: bytes unpacked, as the file says.
        packed: bytes of the file.
        ratio: how much smaller honest content may get.

    Raises:
        ValueError: it does.
    """
    if size > ratio * packed + SLACK:
        raise ValueError(f"it would unpack from {packed:,} to {size:,} bytes")


def check_archive(path: Path) -> None:
    """Refuse a zip of weights, which do not get smaller by packing, that would unpack to much more than it is.

    `zipfile` gives no more bytes of a member than its size in the directory.

    Raises:
        ValueError: it would.
    """
    with zipfile.ZipFile(path) as archive:
        check_unpacked(sum(member.file_size for member in archive.infolist()), path.stat().st_size)


def read_gzip(path: Path) -> str:
    """The text of a small file.

    Raises:
        InputError: it is damaged, no text, or unpacks to more than `SLACK` bytes.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(SLACK + 1)
        if len(content) > SLACK:
            raise ValueError(f"it unpacks to more than {SLACK:,} bytes")
        return content.decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); fetch or save it again") from error
