"""Command lines in processes that `kill -9` ends at a chosen moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# a server with the slow imports done, from which each process is forked in no time; it has no threads to lose
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ovseg.cli.lightning", "ovseg.tasks", "ovseg.data.captions.datamodule", "tests.killed"])


def run(words: Sequence[object], batches: int | None = None, files: int | None = None) -> int:
    """The exit code of a command line, -9 where it was killed.

    Args:
        batches: kill it when so many batches are predicted.
        files: kill it when the file of this number in a store is written, before it gets its name.
    """
    process = CONTEXT.Process(target=_main, args=([str(word) for word in words], batches, files))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def _main(words: list[str], batches: int | None, files: int | None) -> None:
    import torch

    from ovseg.callbacks import PairsWriter
    from ovseg.cli import main

    torch.set_num_threads(1)
    written, predicted = Path.replace, PairsWriter.on_predict_batch_end
    counts = {"batches": 0, "files": 0}

    def counted(kind: str, last: int | None) -> None:
        counts[kind] += 1
        if counts[kind] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def replace(self: Path, target: Any) -> Path:
        if target.name == "store.json" or target.suffix == ".parquet":
            counted("files", files)
        return written(self, target)

    def on_predict_batch_end(self: PairsWriter, *args: Any) -> None:
        counted("batches", batches)
        predicted(self, *args)

    Path.replace, PairsWriter.on_predict_batch_end = replace, on_predict_batch_end  # type: ignore[method-assign]
    main(words)
