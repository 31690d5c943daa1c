"""Compiling CLIP at the start of a run."""

from __future__ import annotations

import lightning as L

from ovseg.models import CLIPAdapter


class CLIPCompiler(L.Callback):
    """Compile the image tower of every CLIP in the task, for every verb.

    The tower is compiled at its first use. Features, weights and their names stay the same.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compile the towers before the strategy wraps the task, in every process."""
        for module in pl_module.modules():
            if isinstance(module, CLIPAdapter):
                module.compile_visual()
