"""Files and functions of the package stay short."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "ovseg"


def too_long(source: str, name: str) -> list[str]:
    """Return the file if it has more than 250 lines, and each of its functions that has more than 60."""
    lines = len(source.splitlines())
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {f"{name}:{each.name}": (each.end_lineno or 0) - each.lineno + 1 for each in functions}
    return [f"{name} has {lines} lines"] * (lines > 250) + [
        f"{key} has {n} lines" for key, n in lengths.items() if n > 60
    ]


def test_no_file_has_more_than_250_lines_and_no_function_more_than_60() -> None:
    files = {str(file.relative_to(SOURCE)): file.read_text() for file in SOURCE.rglob("*.py")}
    assert [fault for name, source in files.items() for fault in too_long(source, name)] == []


def test_a_long_file_and_a_long_function_are_noticed() -> None:
    function = "def f():\n" + "    pass\n" * 60
    assert too_long(function, "a.py") == ["a.py:f has 61 lines"]
    assert too_long("\n" * 251, "a.py") == ["a.py has 251 lines"]
    assert too_long("def f():\n" + "    pass\n" * 59 + "\n" * 190, "a.py") == []
