"""The notebook runs in a fresh clone, is committed without outputs, and shows what it claims."""

from __future__ import annotations

import ast
import asyncio
import csv
import importlib.util
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "ablations.ipynb"
CPU_SECONDS = 120  # what two minutes are on one core that nobody else uses
HANGS_AFTER = 900  # seconds on a core that many use


def code_cells(notebook: Any) -> dict[str, Any]:
    return {cell["id"]: cell for cell in notebook.cells if cell.cell_type == "code"}


def assigned(source: str) -> dict[str, ast.expr | None]:
    """The names that a cell of nothing but assignments gives values to, in order, with the values; None if unpacked."""
    values: dict[str, ast.expr | None] = {}
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.Assign)
        for target in statement.targets:
            if isinstance(target, ast.Name):
                values[target.id] = statement.value
            else:
                values |= {node.id: None for node in ast.walk(target) if isinstance(node, ast.Name)}
    return values


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_is_committed_without_what_running_it_leaves(notebook: Any) -> None:
    for cell in code_cells(notebook).values():
        assert cell.outputs == [] and cell.execution_count is None and cell.metadata == {}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}  # not the version of who saved it


def test_cells_are_short(notebook: Any) -> None:
    assert [name for name, cell in code_cells(notebook).items() if len(cell.source.splitlines()) > 35] == []


def test_first_cell_is_settings_and_offers_the_same_for_real_data(notebook: Any) -> None:
    source = next(iter(code_cells(notebook).values())).source
    real = "\n".join(re.findall(r"^# (\w+(?:, \w+)* = .*)$", source, re.MULTILINE))
    assert list(assigned(real)) == list(assigned(source))


def test_rows_are_those_of_the_script_that_makes_them(notebook: Any) -> None:
    spec = importlib.util.spec_from_file_location("ablate_toy", ROOT / "scripts" / "ablate_toy.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = assigned(code_cells(notebook)["settings"].source)["ROWS"]
    assert rows is not None
    folders = {
        row: "seed?" + "".join(f"-{train}-{pairs}" for pairs, train in adaptation) if adaptation else "plain"
        for row, adaptation in script.ROWS.items()
    }
    assert list(ast.literal_eval(rows).items()) == list(folders.items())
    columns = ast.parse(code_cells(notebook)["scores"].source).body[0]
    assert isinstance(columns, ast.Assign)
    with (ROOT / "notebooks" / "ablations.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {line["column"] for line in table} >= ast.literal_eval(columns.value).keys()
    assert {line["row"] for line in table} <= {*folders, "proposals only"}
    assert len({(line["row"], line["seed"], line["column"]) for line in table}) == len(table)


def test_runs_in_a_fresh_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notebook: Any) -> None:
    for folder in ("conf", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("runs", ".ipynb_checkpoints"))
    for folder in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(folder, str(tmp_path / folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    client = NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path / "notebooks")}})  # as Jupyter does
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    asyncio.run(asyncio.wait_for(client.async_execute(), HANGS_AFTER))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_SECONDS

    outputs = {name: cell.outputs for name, cell in code_cells(notebook).items()}
    pictures = [name for name, of in outputs.items() if any("image/png" in output.get("data", {}) for output in of)]
    assert pictures == ["regions", "prompts-times-fine-tuning", "ensemble-weight", "pairs", "mined-against-labels"]
    printed = "".join(output.text for output in outputs["answers"] if output.output_type == "stream")
    counts = re.findall(r"(\w+) CLIP classifies (\d+) of \d+ regions correctly", printed)
    correct = {name: int(count) for name, count in counts}
    assert correct["adapted"] > correct["plain"]
    curves = {}
    for name in ("plain", "adapted"):
        with (tmp_path / "runs" / "notebook" / "sweep" / name / "sweep.csv").open() as file:
            curves[name] = {float(row["ensemble_weight"]): float(row["miou_union"]) for row in csv.DictReader(file)}
    assert curves["plain"][0] == curves["adapted"][0]  # the proposals alone
    assert max(curves["adapted"].values()) > max(curves["plain"].values()) > curves["plain"][0]
