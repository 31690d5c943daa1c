"""The numbers on the card of the shipped weights are true."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from ovseg.checkpoint import toy_weights

ROOT = Path(__file__).parent.parent


def test_numbers_of_the_card_belong_to_the_weights() -> None:
    spec = importlib.util.spec_from_file_location("toy_card", ROOT / "scripts" / "toy_card.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lines = (toy_weights() / "CARD.md").read_text(encoding="utf-8").splitlines()
    cells = [re.split(r" *\| *", line.strip("| ")) for line in lines if line.startswith("| m")]
    card = {name: float(few) for name, few, _ in cells}
    found = script.measure()
    assert card.keys() == found.keys()
    for name, value in found.items():
        assert card[name] == pytest.approx(value, abs=0.8), name  # a region of 89 is 1.1 %


def test_the_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in toy_weights().rglob("*") if file.is_file()) < 10 * 2**20
