"""Rules that every file of the package follows."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ovseg"
FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_file_is_short_and_says_what_it_is(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert len(lines) <= 260, "split it"

    module = ast.parse(file.read_text())
    assert ast.get_docstring(module) or file.name == "__main__.py"
    silent = [
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        if not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert silent == []


def test_constructors_have_at_most_eight_arguments() -> None:
    too_many = [
        f"{file.relative_to(SOURCE)}:{cls.name}"
        for file in FILES
        for cls in ast.walk(ast.parse(file.read_text()))
        if isinstance(cls, ast.ClassDef)
        for method in cls.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        if len(method.args.args) + len(method.args.kwonlyargs) - 1 > 8
    ]
    assert too_many == []


def test_import_of_the_package_imports_nothing_heavy() -> None:
    heavy = "torch lightning transformers open_clip spacy numpy PIL jsonargparse"
    code = f"import sys, ovseg; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_network_is_out_of_reach() -> None:
    with pytest.raises(pytest.fail.Exception, match="must not use the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    with pytest.raises(pytest.fail.Exception, match="must not use the network"):
        socket.getaddrinfo("example.org", 443)


def test_loopback_is_within_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_golden_arrays_stay_small() -> None:
    folder = Path(__file__).parent / "parity" / "goldens"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 10_000_000
