"""LightningModules: one for each stage."""

from ovseg.tasks.adapter import AdapterTask

__all__ = ["AdapterTask"]
