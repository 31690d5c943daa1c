"""Write the tables in docs/benchmarks.md and docs/performance.md: `python scripts/benchmark_table.py`.

The benchmarks come from the classes in `ovseg.data.benchmarks`, the times from docs/performance.json, which
`python scripts/benchmark.py regions --json docs/performance.json` writes. Tests compare the pages with them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from ovseg.data.benchmarks import find_benchmarks
from ovseg.data.vocabulary import read_vocabulary

sys.path.insert(0, str(Path(__file__).parent))  # tests run this file by its path
from benchmarks.region_tables import tables

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
SPEED_PAGE, SPEED = DOCS / "performance.md", DOCS / "performance.json"


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
    """Replace the table of benchmarks in a page."""
    return between(page, "benchmarks", table())


def with_times(page: str) -> str:
    """Replace the tables of times in a page."""
    for name, markdown in tables(json.loads(SPEED.read_text(encoding="utf-8"))).items():
        page = between(page, name, markdown)
    return page


def between(page: str, name: str, content: str) -> str:
    """Replace what a page has between the two markers of a name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{content}\n{end}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    SPEED_PAGE.write_text(with_times(SPEED_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
