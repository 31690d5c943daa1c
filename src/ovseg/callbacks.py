"""Writers and loggers: whatever leaves a run beside its metrics."""
from __future__ import annotations
import lightning as L
class PairsWriter(L.Callback):
    def __init__(self, out: str) -> None: self.out = out
class SegmentationWriter(L.Callback):
    def __init__(self, out: str) -> None: self.out = out
