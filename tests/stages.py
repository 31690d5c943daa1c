"""Run the command line in process."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovseg.cli import main

REPOSITORY = Path(__file__).parent.parent
CONF = REPOSITORY / "conf"


def ovseg(*words: object) -> None:
    """Run a command line whose words may be paths and numbers."""
    main([str(word) for word in words])


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence with which a command line is refused: one line on stderr, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        ovseg(*words)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert printed.startswith("ovseg: ") and printed.endswith("\n")
    assert printed.count("\n") == 1 and "Traceback" not in printed
    return printed.removeprefix("ovseg: ").strip()


def write(path: Path, text: str) -> Path:
    """A file of this text."""
    path.write_text(text, encoding="utf-8")
    return path
