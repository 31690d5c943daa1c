"""A command line on two nodes of one process each, simulated by two processes."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests import killed


class Ended(NamedTuple):
    """What became of a process."""

    code: int | None
    said: str  # on stdout and stderr


def run(folder: Path, *commands: Sequence[object]) -> list[Ended]:
    """Run a command line a node, all at once.

    Args:
        folder: for what they say.
        commands: the words of each.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    logs = [folder / f"node{node}.log" for node in range(len(commands))]
    spread = ["--trainer.num_nodes", len(commands), "--trainer.strategy", "ddp"] if len(commands) > 1 else []
    processes = []
    for node, words in enumerate(commands):
        every = [str(word) for word in [*words, "--trainer.devices", 1, *spread]]
        processes.append(killed.CONTEXT.Process(target=_main, args=(every, node, port, logs[node])))
        processes[-1].start()
    for process in processes:
        process.join(240)
        assert process.exitcode is not None, "it hangs"
    return [Ended(process.exitcode, log.read_text()) for process, log in zip(processes, logs, strict=True)]


def _main(words: list[str], node: int, port: int, log: Path) -> None:
    import torch

    from ovseg.cli import main

    # without the last, Lightning's DDP takes all cores, and sums are added up in another order than by one thread
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(node), "OMP_NUM_THREADS": "1"}
    os.environ |= place
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(1)
    main(words)
