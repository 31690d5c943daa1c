"""Where what can be made again is kept: `$OVSEG_CACHE`, or else `~/.cache/ovseg`."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(part: str) -> Path:
    """The folder for one kind of files, which may not be there yet.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("OVSEG_CACHE") or "~/.cache/ovseg").expanduser() / part
