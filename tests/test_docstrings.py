"""Tests that every public class and function has a docstring, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "ovseg"
Documented = ast.Module | ast.ClassDef | ast.FunctionDef


def public(parent: ast.Module | ast.ClassDef) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Yield public classes and functions, without methods of subclasses, since most override a documented method."""
    for node in parent.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef) and not node.bases:
                yield from public(node)


def undocumented(source: str) -> list[str]:
    """Return the names whose docstring is missing or whose first line is not a sentence."""
    tree = ast.parse(source)
    documented: list[Documented] = [tree, *public(tree)] if tree.body else []
    summaries = [
        (getattr(node, "name", "module"), (ast.get_docstring(node) or "").split("\n")[0]) for node in documented
    ]
    return [name for name, summary in summaries if not summary.endswith((".", ":", "…"))]


def test_everything_public_has_a_docstring() -> None:
    missing = {str(file.relative_to(SOURCE)): undocumented(file.read_text()) for file in sorted(SOURCE.rglob("*.py"))}
    assert {file: names for file, names in missing.items() if names} == {}


def test_missing_docstrings_are_detected() -> None:
    source = '''"""A module."""
class A:
    """No sentence"""
    def method(self): ...
    def _private(self): ...
class B(A):
    """A class."""
    def overridden(self): ...
def function(): ...
'''
    assert undocumented(source) == ["A", "method", "function"]
