"""How a training run is stopped, and random numbers that a resumed one draws again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed

from ovseg.stopping import SIGNALS, stop


class StopAfterStep(Callback):
    """Ends a run in good order on Ctrl-C and SIGTERM.

    Training stops at the end of the step, in all processes at the same one, whichever got the signal; the run then goes
    on exactly. All else stops at once, and so does training at the second signal. In a validation the first process
    stops alone, since the others may be anywhere; it saves without them.

    SIGUSR1, on which Lightning saves and requeues a job of SLURM, waits for the end of the step, too: in the middle of
    one, weights may be of this step and the optimizer's moments of the one before, and processes wait for each other.

    Takes the place of Lightning's handler of SIGTERM, which sends to other processes from inside the handler, be they
    in the middle of something else, and exits with code 0.
    """

    _REQUEUE, _STOP = 1, 2
    _trainer: L.Trainer
    _requeue: Callable[[int, Any], Any] | None = None  # Lightning's
    _asked = 0  # for what, of the two above
    _number = signal.SIGTERM

    def _listen(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trainer = trainer
        if threading.current_thread() is not threading.main_thread():  # no other may
            return
        for number in SIGNALS:
            signal.signal(number, self._on_stop)
        requeue = signal.getsignal(signal.SIGUSR1)
        if callable(requeue) and requeue != self._on_requeue:
            self._requeue = requeue
            signal.signal(signal.SIGUSR1, self._on_requeue)

    # Lightning sets its own handlers before these
    on_sanity_check_start = on_train_start = on_validation_start = on_test_start = on_predict_start = _listen

    def _on_stop(self, number: int, frame: Any) -> None:
        trainer = self._trainer
        fitting = trainer.state.fn == TrainerFn.FITTING
        if self._asked < self._STOP and (trainer.training or (fitting and not trainer.is_global_zero)):
            self._asked, self._number = self._STOP, signal.Signals(number)
        else:
            stop(number)

    def _on_requeue(self, number: int, frame: Any) -> None:
        if self._trainer.training:
            self._asked = max(self._asked, self._REQUEUE)
        elif self._requeue:
            self._requeue(number, frame)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._before = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._before:  # gradients are accumulated, and are in no checkpoint
            return
        asked = self._asked
        if trainer.world_size > 1:  # Lightning, too, waits for a number of all processes in each step
            numbers = torch.tensor(asked, device=trainer.strategy.root_device)
            distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
            asked = int(numbers)
        self._asked = 0
        if asked == self._STOP:
            stop(self._number, together=True)
        if asked == self._REQUEUE and self._requeue:
            self._requeue(signal.SIGUSR1, None)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._asked = 0
        if isinstance(exception, KeyboardInterrupt) and not trainer.is_global_zero and not trainer.training:
            time.sleep(5)  # else the first process may be killed, because another has ended, before it has ended itself


class StepSeed(Callback):
    """Lets what a training step draws (points of the mask loss, paths to drop) follow from seed, process and step.

    A resumed run then draws what the uninterrupted one would have drawn.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seed = torch.initial_seed()  # of `seed_everything`

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        entropy = (self.seed, trainer.global_rank, trainer.global_step, batch_idx)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
