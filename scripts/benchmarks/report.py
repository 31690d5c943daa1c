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
    """Return the best wall-clock time of `repeats` runs, GPU work included; the caller warms up."""
    best = float("inf")
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        function()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def report(title: str, measured: Mapping[str, float]) -> None:
    """Print seconds, and each row's speed-up over the first."""
    width = max(map(len, measured))
    first = next(iter(measured.values()))
    print(f"{title}\n{hardware()}; torch {torch.__version__}; commit {commit()}\n")
    print(f"{'':{width}}  {'seconds':>9}  {'ratio':>7}")
    for name, value in measured.items():
        print(f"{name:{width}}  {value:9.3f}  {first / value:6.1f}x")


def hardware() -> str:
    """Describe GPU, processor and the number of cores used."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{torch.cuda.get_device_name()}; {processor}" if torch.cuda.is_available() else processor


def commit() -> str:
    """Return the short hash of the checkout, with a + if files differ from it."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def peak_rss() -> int:
    """Return the peak resident memory of this process in bytes (Linux).

    Unlike `getrusage`, it does not include the peak of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def wait() -> None:
    """Wait until a GPU has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
