"""What files may ask for: images of a size that can be meant, and names that stay in their folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ovseg.structures import InputError

MAX_MEGAPIXELS = 100.0  # of an image, its labels or masks
VARIABLE = "OVSEG_MAX_MEGAPIXELS"  # read from the environment each time, so that it reaches workers, too


def check_size(width: int, height: int, what: str) -> None:
    """Refuse what has more pixels than are read, before they are in memory.

    Raises:
        InputError: it has; the sentence begins with `what`.
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
