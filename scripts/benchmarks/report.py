"""Timing, and the table that every benchmark prints."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def seconds(function: Callable[[], Any], repeats: int = 1) -> float:
    """Best wall-clock time of `repeats` runs, work on a GPU included; the caller warms up."""
    best = float("inf")
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        function()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def report(title: str, measured: Mapping[str, float]) -> None:
    """Print seconds, and how many times faster than the first row each row is."""
    width = max(map(len, measured))
    first = next(iter(measured.values()))
    print(f"{title}\n{hardware()}; torch {torch.__version__}; commit {commit()}\n")
    print(f"{'':{width}}  {'seconds':>9}  {'ratio':>7}")
    for name, value in measured.items():
        print(f"{name:{width}}  {value:9.3f}  {first / value:6.1f}x")


def hardware() -> str:
    """GPU, processor and how many of its cores are used."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{torch.cuda.get_device_name()}; {processor}" if torch.cuda.is_available() else processor


def commit() -> str:
    """Short hash of the checkout, with a + where files differ from it."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def wait() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
