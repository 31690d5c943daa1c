"""Benchmarks to test on: the published ones as they are downloaded, and your own data.

To add one, write a subclass of `Benchmark` with a `layout` in a new module of this package, and conf/data/<name>.yaml.
Nothing lists the benchmarks: `find_benchmarks` looks for them in the modules of this package.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from ovseg.data.benchmarks.base import Benchmark, EvalDataModule, Layout
from ovseg.data.benchmarks.folder import SegmentationBenchmark

__all__ = ["Benchmark", "EvalDataModule", "Layout", "SegmentationBenchmark", "find_benchmarks"]


def find_benchmarks() -> dict[str, type[Benchmark]]:
    """Find the benchmarks that this package defines: name → class, sorted by name.

    Raises:
        ValueError: two benchmarks have the same name.
    """
    benchmarks: dict[str, type[Benchmark]] = {}
    for _, module_name, _ in pkgutil.iter_modules(__path__, f"{__name__}."):
        for value in vars(import_module(module_name)).values():
            if not (isinstance(value, type) and issubclass(value, Benchmark) and value.__module__ == module_name):
                continue
            if not hasattr(value, "layout"):
                continue  # a base class
            other = benchmarks.setdefault(value.layout.name, value)
            if other is not value:
                raise ValueError(
                    f"{other.__name__} and {value.__name__} are both called {value.layout.name}; rename one of them"
                )
    return dict(sorted(benchmarks.items()))


def __getattr__(name: str) -> Any:
    """Look up a benchmark's class by its name, such as `ADE20K150DataModule`."""
    if name[0].isupper():  # submodules have lower-case names, and looking for one must not import all of them
        for benchmark in find_benchmarks().values():
            if benchmark.__name__ == name:
                return benchmark
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
