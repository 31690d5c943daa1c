"""LightningModules of the stages, and of sweeps."""

from ovseg.tasks.adapter import AdapterTask
from ovseg.tasks.distillation import DistillationTask
from ovseg.tasks.mining import MiningTask
from ovseg.tasks.proposals import ProposalTask
from ovseg.tasks.segmentation import Segmentation, SegmentationTask
from ovseg.tasks.sweep import SweepTask

__all__ = [
    "AdapterTask",
    "DistillationTask",
    "MiningTask",
    "ProposalTask",
    "Segmentation",
    "SegmentationTask",
    "SweepTask",
]
