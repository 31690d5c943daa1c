"""Write the table of benchmarks in docs/benchmarks.md: `python scripts/benchmark_table.py`.

The rows come from the classes in `ovseg.data.benchmarks`. A test compares the page with them.
"""

from __future__ import annotations

import re
from pathlib import Path

from ovseg.data.benchmarks import find_benchmarks
from ovseg.data.vocabulary import read_vocabulary

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def table() -> str:
    """Return a row for each benchmark: its config, the numbers of classes and images, and how to get the files."""
    rows = [
        "| `--data` | classes | images | how to get the files (root folder: `--data.root`) |",
        "| --- | --- | --- | --- |",
    ]
    for name, benchmark in find_benchmarks().items():
        layout = benchmark.layout
        classes = len(read_vocabulary(layout.vocabulary).scored_names)
        rows.append(f"| `conf/data/{name}.yaml` | {classes} | {layout.total:,} | {layout.source} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """Replace what a page has between the two markers."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
