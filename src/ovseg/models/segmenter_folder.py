"""The folder of a segmenter: its name for settings, and where one may be written."""

from __future__ import annotations

from pathlib import Path

from ovseg.checkpoint import check_target
from ovseg.models.clip.files import check_clip_target
from ovseg.models.proposals.queries import CONFIG as PROPOSER

SETTINGS = "segmenter.yaml"


def check_segmenter_target(folder: Path) -> None:
    """Refuse a folder that does not hold an earlier segmenter, see `check_target`."""
    check_target(folder, SETTINGS)
    check_target(folder / "proposer", PROPOSER)
    check_clip_target(folder / "clip")
