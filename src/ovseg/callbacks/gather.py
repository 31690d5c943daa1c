"""What every process found, brought together."""

from __future__ import annotations

from typing import Any

from torch import distributed


def gathered(part: Any) -> list[Any]:
    """The parts of all processes, in their order; every one of them has to ask."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [part]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, part)
    return parts
