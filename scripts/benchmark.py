"""Speed of the parts, before and after, as ratios of one run: the one place of claims about speed.

python scripts/benchmark.py text              a table of seconds and ratios, beside hardware and commit
python scripts/benchmark.py adapter --help    the sizes that can be chosen
"""

from __future__ import annotations

from typing import Any

import jsonargparse
from benchmarks.adapter import adapter
from benchmarks.loading import loading, loading_memory
from benchmarks.mining import mining, mining_memory
from benchmarks.scoring import scoring
from benchmarks.sweep import sweep
from benchmarks.text import text

# one function a file in scripts/benchmarks
BENCHMARKS: dict[str, Any] = {
    "adapter": adapter,
    "loading": loading,
    "loading_memory": loading_memory,
    "mining": mining,
    "mining_memory": mining_memory,
    "scoring": scoring,
    "sweep": sweep,
    "text": text,
}

if __name__ == "__main__":
    jsonargparse.auto_cli(BENCHMARKS)
