"""Everything a run produces besides its metrics: checkpoints, stores, segmentations, reports and plots."""

from __future__ import annotations

from ovseg.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from ovseg.callbacks.compilation import CLIPCompiler
from ovseg.callbacks.pairs import PairsWriter
from ovseg.callbacks.report import ReportWriter
from ovseg.callbacks.segmentations import SegmentationWriter
from ovseg.callbacks.sweep import SweepWriter
from ovseg.callbacks.training import StepSeed, StopAfterStep

__all__ = [
    "BestCheckpoint",
    "CLIPCompiler",
    "LastCheckpoint",
    "PairsWriter",
    "ReportWriter",
    "SegmentationWriter",
    "StepSeed",
    "StopAfterStep",
    "SweepWriter",
]
