"""Speed of the parts, before and after, as ratios of one run: the one place of claims about speed.

python scripts/benchmark.py text              a table of seconds and ratios, beside hardware and commit
python scripts/benchmark.py adapter --help    the sizes that can be chosen
"""

from __future__ import annotations

from typing import Any

import jsonargparse
from benchmarks.adapter import adapter
from benchmarks.text import text

BENCHMARKS: dict[str, Any] = {"adapter": adapter, "text": text}  # one function a file in scripts/benchmarks

if __name__ == "__main__":
    jsonargparse.auto_cli(BENCHMARKS)
