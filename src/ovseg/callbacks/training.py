"""Stop training cleanly on signals, and draw the same random numbers after resuming."""

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
    """End a run cleanly on Ctrl-C and SIGTERM.

    Training stops at the end of the current step, the same step in all processes, whichever process received the
    signal, so that the run can resume exactly. Everything else stops immediately, and so does training on a second
    signal. During validation the first process stops alone and saves without the others, whose position is unknown.

    SIGUSR1, on which Lightning saves and requeues a SLURM job, also waits for the end of the step. Within a step the
    weights may be newer than the optimizer's moments, and processes wait for each other.

    This replaces Lightning's SIGTERM handler, which communicates with other processes from inside the handler,
    whatever they are doing, and exits with code 0.
    """

    _REQUEUE, _STOP = 1, 2
    _trainer: L.Trainer
    _requeue: Callable[[int, Any], Any] | None = None  # Lightning's handler
    _request = 0  # 0, _REQUEUE or _STOP
    _number = signal.SIGTERM

    def _listen(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trainer = trainer
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            return
        for number in SIGNALS:
            signal.signal(number, self._on_stop)
        requeue = signal.getsignal(signal.SIGUSR1)
        if callable(requeue) and requeue != self._on_requeue:
            self._requeue = requeue
            signal.signal(signal.SIGUSR1, self._on_requeue)

    # Lightning sets its own handlers before these hooks
    on_sanity_check_start = on_train_start = on_validation_start = on_test_start = on_predict_start = _listen

    def _on_stop(self, number: int, frame: Any) -> None:
        trainer = self._trainer
        fitting = trainer.state.fn == TrainerFn.FITTING
        if self._request < self._STOP and (trainer.training or (fitting and not trainer.is_global_zero)):
            self._request, self._number = self._STOP, signal.Signals(number)
        else:
            stop(number)

    def _on_requeue(self, number: int, frame: Any) -> None:
        if self._trainer.training:
            self._request = max(self._request, self._REQUEUE)
        elif self._requeue:
            self._requeue(number, frame)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step_before:  # checkpoints do not store accumulated gradients
            return
        request = self._request
        if trainer.world_size > 1:  # Lightning also synchronises the processes in every step
            requests = torch.tensor(request, device=trainer.strategy.root_device)
            distributed.all_reduce(requests, distributed.ReduceOp.MAX)
            request = int(requests)
        self._request = 0
        if request == self._STOP:
            stop(self._number, together=True)
        if request == self._REQUEUE and self._requeue:
            self._requeue(signal.SIGUSR1, None)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._request = 0
        if isinstance(exception, KeyboardInterrupt) and not trainer.is_global_zero and not trainer.training:
            time.sleep(5)  # let the first process end by itself: it is killed when another process has ended


class StepSeed(Callback):
    """Seed every training step from (seed, process, step), for the points of the mask loss and stochastic depth.

    A resumed run then draws the same numbers as an uninterrupted one.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seed = torch.initial_seed()  # set by `seed_everything`

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        entropy = (self.seed, trainer.global_rank, trainer.global_step, batch_idx)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
