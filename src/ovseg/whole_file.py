"""Write a file completely or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ovseg.structures import InputError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which the block writes; it replaces `path` if the block succeeds.

    Raises:
        InputError: the disk is full or the folder cannot be written. Nothing is left, and an earlier file is unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # several processes may write the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the refusal for a file or folder that cannot be written."""
    return InputError(
        f"{path} cannot be written ({error.strerror or error}); free disk space or correct the path, and rerun the "
        "same command"
    )
