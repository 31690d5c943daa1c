"""Measure every claim about speed: each part before and after, as ratios within one run.

python scripts/benchmark.py text              prints seconds and ratios with hardware and commit
python scripts/benchmark.py adapter --help    lists the sizes you can choose
"""

from __future__ import annotations

from typing import Any

import jsonargparse
from benchmarks.adapter import adapter
from benchmarks.loading import loading
from benchmarks.loading_memory import loading_memory
from benchmarks.mining import mining, mining_memory
from benchmarks.regions import regions
from benchmarks.regions_memory import regions_memory
from benchmarks.scoring import scoring
from benchmarks.sweep import sweep
from benchmarks.text import text

# each function is in its own file in scripts/benchmarks
BENCHMARKS: dict[str, Any] = {
    "adapter": adapter,
    "loading": loading,
    "loading_memory": loading_memory,
    "mining": mining,
    "mining_memory": mining_memory,
    "regions": regions,
    "regions_memory": regions_memory,
    "scoring": scoring,
    "sweep": sweep,
    "text": text,
}

if __name__ == "__main__":
    jsonargparse.auto_cli(BENCHMARKS)
