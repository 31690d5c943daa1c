"""Where what can be made again is kept: `$OVSEG_CACHE`, else `$XDG_CACHE_HOME/ovseg`, else `~/.cache/ovseg`."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(part: str) -> Path:
    """The folder for one kind of files, which may not be there yet.

    Raises:
        RuntimeError: the user has no home.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not caches.is_absolute():  # XDG's specification has relative ones ignored
        caches = Path("~/.cache")
    return Path(os.environ.get("OVSEG_CACHE") or caches / "ovseg").expanduser() / part
