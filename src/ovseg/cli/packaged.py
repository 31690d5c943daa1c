"""Configs that ship with the package: `conf/test.yaml` works in every folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parent.parent  # contains `conf`, a link to the repository's in a checkout


def find_packaged(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace paths under `conf` that do not exist in the working directory by the copies that ship with ovseg.

    Args:
        words: the command line; `conf/…` may be a separate word or follow `--flag=`.

    Returns:
        The words with full paths, and the replaced paths as the user wrote them.
    """
    full, replaced = [], []
    for word in words:
        flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        path = Path(value)
        if path.parts[:1] == ("conf",) and not path.exists() and (PACKAGE / path).exists() and ".." not in path.parts:
            word = f"{flag}{equals}{PACKAGE / path}"
            replaced.append(value)
        full.append(word)
    return full, replaced


def notice(paths: Sequence[str]) -> str:
    """Return the line that says which configs come from the package."""
    return f"ovseg: {', '.join(dict.fromkeys(paths))}: not in this folder, using the copy that ships with ovseg"
