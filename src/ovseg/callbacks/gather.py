"""Gather objects from all processes."""

from __future__ import annotations

from typing import Any

from torch import distributed


def gather_objects(part: Any) -> list[Any]:
    """Return the objects of all processes in the order of their ranks; every process must call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [part]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, part)
    return parts
