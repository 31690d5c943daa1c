"""The cache of files that can be regenerated: `$OVSEG_CACHE`, else `$XDG_CACHE_HOME/ovseg`, else `~/.cache/ovseg`."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(part: str) -> Path:
    """Return the cache folder for one kind of file, whether or not it exists.

    Raises:
        RuntimeError: the user has no home folder.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not caches.is_absolute():  # the XDG specification says to ignore relative paths
        caches = Path("~/.cache")
    return Path(os.environ.get("OVSEG_CACHE") or caches / "ovseg").expanduser() / part
