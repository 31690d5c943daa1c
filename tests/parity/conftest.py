"""Print after the parity tests how far each part was from the golden numbers."""

from __future__ import annotations

import pytest

from tests.parity import goldens


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if goldens.DEVIATIONS:
        terminalreporter.section("largest deviation from the released implementation")
    for part, (largest, count) in sorted(goldens.DEVIATIONS.items()):
        terminalreporter.write_line(f"{part:<60}{largest:>10.1e}  of {count:,} numbers")
