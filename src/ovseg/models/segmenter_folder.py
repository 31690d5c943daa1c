"""The folder of a saved segmenter: the name of its settings file, and where a segmenter may be written."""

from __future__ import annotations

from pathlib import Path

from ovseg.checkpoint import check_target
from ovseg.models.clip.files import check_clip_target
from ovseg.models.proposals.queries import CONFIG as PROPOSER

SETTINGS = "segmenter.yaml"


def check_segmenter_target(folder: Path) -> None:
    """Refuse to write into a folder that holds anything other than a saved segmenter, see `check_target`."""
    check_target(folder, SETTINGS)
    check_target(folder / "proposer", PROPOSER)
    check_clip_target(folder / "clip")
