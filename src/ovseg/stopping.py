"""How a run is stopped from outside: SIGTERM, by which schedulers end jobs, does what Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal ended the run.

    Args:
        number: of the signal; a shell sees the exit code 128 + number.
        together: whether every process of the run raises this at the same step.
    """

    def __init__(self, number: int, together: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.together = number, together


def stop(number: int, frame: Any = None, together: bool = False) -> NoReturn:
    """Raise `Stopped`, once: further signals do not disturb the writing of what is finished."""
    if threading.current_thread() is threading.main_thread():
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
    raise Stopped(number, together)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM raise `Stopped`; afterwards both do what they did before."""
    if threading.current_thread() is not threading.main_thread():  # no other may
        yield
        return
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def outlive_signals(worker: int) -> None:
    """For `DataLoader(worker_init_fn=…)`: a signal to the whole job leaves it to the main process to end its workers.

    Torch's own handler would end the worker, and its death would raise an error anywhere in the main process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # only once, since the main process, too, ends by SIGTERM a worker that does not end by itself
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
