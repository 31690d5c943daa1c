"""Write the results of a sweep: a table on the terminal, a CSV file and a heat map."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ovseg.structures import InputError
from ovseg.tasks.sweep import Setting, SweepTask

CAVEAT = (
    "Choosing a setting on the images it is evaluated on overstates the result. The release was tuned on the test set; "
    "use held-out data instead."
)
Metric = Literal["miou_union", "miou_target", "fwiou", "macc", "pacc"]  # the metrics of `MeanIoU`
Results = Mapping[Setting, Mapping[str, float]]


class SweepWriter(Callback):
    """Print the grid of a `SweepTask` and the best setting, and write `sweep.csv` and `sweep.png`.

    Args:
        out: the output folder.
        metric: the metric that is shown and that selects the best setting.
    """

    def __init__(self, out: str | Path, metric: Metric = "miou_union") -> None:
        self.out, self.metric = Path(out), metric

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SweepTask)
        if not trainer.is_global_zero:
            return
        results = pl_module.results
        best = best_setting(results, self.metric)
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*Setting._fields, *results[best]])
            writer.writerows([*setting, *values.values()] for setting, values in results.items())
        heat_map(results, self.metric).savefig(self.out / "sweep.png", dpi=150)
        print("\n".join([*table(results, self.metric), "", *advice(best, results[best][self.metric], self.metric)]))
        print(f"all metrics in {self.out / 'sweep.csv'}, heat map in {self.out / 'sweep.png'} ({trainer.precision})")


def best_setting(results: Results, metric: Metric) -> Setting:
    """Return the setting with the highest `metric`, the first one in a tie.

    Raises:
        InputError: no pixel is labelled.
    """
    best = max(results, key=lambda setting: results[setting][metric])
    if math.isnan(results[best][metric]):
        raise InputError(f"{metric} is undefined because no pixel is labelled; check the data with `ovseg data check`")
    return best


def table(results: Results, metric: Metric) -> list[str]:
    """Return the lines of a table in per cent, with a row per mask threshold and a column per ensemble weight."""
    thresholds, weights, grid = _grid(results, metric)
    lines = [f"{metric} in %", " " * 17 + "".join(f"{weight:>9g}" for weight in weights) + "  (ensemble_weight)"]
    for threshold, row in zip(thresholds, grid, strict=True):
        lines.append(f"threshold {threshold:<7g}" + "".join(f"{100 * value:9.2f}" for value in row))
    return lines


def advice(best: Setting, value: float, metric: Metric) -> list[str]:
    """Return the lines that name the best setting, with a caveat."""
    flags = f"--model.ensemble_weight {best.ensemble_weight:g} --model.mask_threshold {best.mask_threshold:g}"
    return [f"best: {100 * value:.2f} with {flags}", f"({metric}) {CAVEAT}"]


def heat_map(results: Results, metric: Metric) -> Figure:
    """Draw the grid as a heat map with numbers in per cent."""
    thresholds, weights, grid = _grid(results, metric)
    figure = Figure(figsize=(1.6 + len(weights), 1.8 + 0.6 * len(thresholds)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(100 * grid, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(weights)), [f"{weight:g}" for weight in weights])
    axes.set_yticks(range(len(thresholds)), [f"{threshold:g}" for threshold in thresholds])
    axes.set(xlabel="ensemble weight", ylabel="mask threshold", title=f"{metric} in %")
    middle = 100 * (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (row, column), value in np.ndenumerate(100 * grid):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < middle else "black")
    figure.colorbar(image)
    return figure


def _grid(results: Results, metric: Metric) -> tuple[list[float], list[float], NDArray[np.float64]]:
    """Return the thresholds, the weights, and the metric of each combination, (thresholds, weights)."""
    thresholds = sorted({setting.mask_threshold for setting in results})
    weights = sorted({setting.ensemble_weight for setting in results})
    grid = [[results[Setting(threshold, weight)][metric] for weight in weights] for threshold in thresholds]
    return thresholds, weights, np.array(grid)
