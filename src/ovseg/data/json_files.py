"""Reading JSON with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ovseg.structures import InputError


def read_json(path: Path, advice: str) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or not JSON; the message ends with `advice`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); {advice}") from error
