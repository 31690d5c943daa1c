"""Stopping a run from outside: SIGTERM, which schedulers send to end a job, is handled like Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Raised when a signal stops the run.

    Args:
        number: the signal; the process exits with code 128 + number.
        together: whether every process of the run raises it at the same step.
    """

    def __init__(self, number: int, together: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.together = number, together


def stop(number: int, frame: Any = None, together: bool = False) -> NoReturn:
    """Raise `Stopped` and ignore further signals, so that they do not interrupt the writing of finished work."""
    if threading.current_thread() is threading.main_thread():
        for each_signal in SIGNALS:
            signal.signal(each_signal, signal.SIG_IGN)
    raise Stopped(number, together)


@contextmanager
def stoppable() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM raise `Stopped` inside the context; restore the earlier handlers afterwards."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    previous = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def outlive_signals(worker: int) -> None:
    """Keep a DataLoader worker alive when the whole job is signalled; pass it as `worker_init_fn`.

    The main process ends its workers itself. Torch's own handler would end the worker, whose death would then raise an
    error at an arbitrary point of the main process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # ignore only the first SIGTERM: the main process sends another to a worker that does not exit
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
