"""Generated pages match the source, and no public method is missing from docs/api.md for lack of a docstring."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("reference_docs", ROOT / "scripts" / "reference_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(script: Any) -> None:
    stale = [file.name for file, text in script.pages().items() if file.read_text(encoding="utf-8") != text]
    assert stale == [], f"these pages no longer say what the source says; run `{script.COMMAND}`"


def test_methods_on_the_page_have_docstrings(script: Any) -> None:
    silent = [
        f"{name}.{method}"
        for module in map(import_module, script.MODULES)
        for name in script.public(module)
        if inspect.isclass(value := getattr(module, name))
        for method in undocumented(value, script.definition(value))
    ]
    assert silent == []


def undocumented(cls: type, node: ast.ClassDef) -> list[str]:
    """Public methods without a docstring, except those that override one of a base class."""
    bases = cls.__mro__[1:]
    return [
        method.name
        for method in node.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and not ast.get_docstring(method)
        if not any(method.name in vars(base) for base in bases)
        if not any(ast.unparse(one).endswith(".setter") for one in method.decorator_list)
    ]


def test_a_docstring_becomes_markdown(script: Any) -> None:
    text = """Cut out regions.

Invalid ones are filled.

Args:
    images: (B, 3, h, w),
        in [0, 1].
    height, width: in pixels.

Returns:
    (N, 3, s, s).

Raises:
    ValueError: shapes differ.
"""
    assert (
        "\n\n".join(script.render(text))
        == """Cut out regions.

Invalid ones are filled.

**Arguments**

- `images`: (B, 3, h, w),
  in [0, 1].
- `height`, `width`: in pixels.

**Returns**: (N, 3, s, s).

**Raises**

- `ValueError`: shapes differ."""
    )


def test_a_signature_reads_as_in_the_source(script: Any) -> None:
    node = ast.parse("def crop(self, a: int, /, b=2**24, *rest: str, c: float | None = None, **more: int) -> str: ...")
    expected = "crop(a: int, /, b=2 ** 24, *rest: str, c: float | None=None, **more: int) -> str"
    assert script.signature(node.body[0]) == expected.replace("None=None", "None = None")
