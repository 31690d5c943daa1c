"""What files may ask for: images of a size that can be meant."""

from __future__ import annotations

import os

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
