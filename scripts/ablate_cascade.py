"""Draw the cascade's curve of accuracy against time on the toy world: part of `./scripts/ablate_toy.sh regions`.

A cascade joins the best single pass of ablate_regions.py, chosen on the scenes of CHOSEN_ON, and the crops it was
distilled from. Its crops go to the regions with the smallest margin between their two best classes.
"""

from __future__ import annotations

import itertools
import math
import statistics

import ablate_regions
import ablate_toy
import matplotlib
from ablate_regions import CHOSEN_ON, CROPS, FOLDER, REPORTED_ON, Cell, Scores
from ablate_toy import SEEDS
from matplotlib import pyplot

from ovseg.data import read_vocabulary
from ovseg.models import CascadeEncoder, CLIPAdapter, RegionEncoder

BUDGETS = (0, 1, 2, 5, 10, 20)  # crops per image
PANELS = {
    "mask accuracy": {"seen": "mask_accuracy_seen", "unseen": "mask_accuracy_unseen"},
    "mask accuracy, by size": {"small": "mask_accuracy_small", "large": "mask_accuracy_large"},
    "mIoU": {"seen": "miou_union_seen", "unseen": "miou_union_unseen"},
}


def quality(row: str) -> float:
    """Return what recipes are chosen by: mask accuracy and mIoU, seen and unseen, averaged over seeds."""
    seeds = [ablate_regions.score(cell)[str(CHOSEN_ON)] for cell in ablate_regions.cells(*recipes()[row])]
    metrics = [metric for panel in ("mask accuracy", "mIoU") for metric in PANELS[panel].values()]
    return statistics.mean(scores[metric] for scores in seeds for metric in metrics)


def recipes() -> ablate_regions.Rows:
    """Return the rows of the single pass."""
    return {row: key for row, key in ablate_regions.make_rows().items() if key[0].kind == "SinglePassEncoder"}


def build(best: str, budget: int, seed: int) -> CascadeEncoder:
    """Return the cascade of two trained cells."""
    encoder, recipe = recipes()[best]
    checkpoint = ablate_regions.train(Cell(encoder, recipe, seed))
    crops = ablate_regions.train(Cell(CROPS, "both", seed))
    cascade = CascadeEncoder(CLIPAdapter(checkpoint), dict(encoder.options), crop_clip=crops, budget=budget)
    cascade.inherit(encoder.build(checkpoint))
    return cascade.eval()


def score(best: str, budget: int, seed: int) -> Scores:
    """Return the metrics of a cascade."""
    return ablate_regions.stored(
        f"scores/cascade-{budget}-seed{seed}", lambda: ablate_regions.evaluate_worlds(build(best, budget, seed))
    )


def milliseconds(best: str) -> dict[str, float]:
    """Return the median time of each budget, and of the crops alone (inf)."""
    encoders: dict[str, RegionEncoder] = {str(b): build(best, b, SEEDS[0]) for b in BUDGETS}
    encoders["inf"] = CROPS.build(ablate_regions.train(Cell(CROPS, "both", SEEDS[0])))
    segmenter = ablate_regions.toy_segmenter()
    for encoder in encoders.values():
        segmenter.region_encoder = encoder
        segmenter.set_vocabulary(read_vocabulary("toy"))
    return ablate_regions.milliseconds(encoders)


def draw(scores: dict[float, list[Scores]], times: dict[float, float]) -> None:
    """Draw the mean and range over seeds of every metric against time; squares are crops alone."""
    matplotlib.use("agg")
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(12, 3.6), layout="constrained")
    for axis, (title, metrics) in zip(axes, PANELS.items(), strict=True):
        for color, (label, metric) in zip(("C0", "C1"), metrics.items(), strict=True):
            for budgets, style in ((BUDGETS, "o-"), ((math.inf,), "s")):
                seeds = [[worlds[str(REPORTED_ON)][metric] for worlds in scores[budget]] for budget in budgets]
                means = [statistics.mean(values) for values in seeds]
                below = [mean - min(values) for mean, values in zip(means, seeds, strict=True)]
                above = [max(values) - mean for mean, values in zip(means, seeds, strict=True)]
                name = label if style == "o-" else f"{label}, crops alone"
                x = [times[budget] for budget in budgets]
                axis.errorbar(x, means, (below, above), fmt=style, color=color, label=name, capsize=2)
        axis.set(title=title, xlabel="ms an image", ylabel="%")
        axis.legend(fontsize="small")
    figure.savefig(FOLDER / "cascade.png", dpi=110)


def main() -> None:
    rows = recipes()
    best = max(rows, key=quality)
    print(f"best single pass on the scenes of seed {CHOSEN_ON}: {best}")
    pairs = list(itertools.product(BUDGETS, SEEDS))
    results = ablate_toy.in_parallel(score, [best] * len(pairs), *zip(*pairs, strict=True))
    scores: dict[float, list[Scores]] = {b: [] for b in BUDGETS}
    for (budget, _), result in zip(pairs, results, strict=True):
        scores[budget].append(result)
    scores[math.inf] = [ablate_regions.score(cell) for cell in ablate_regions.cells(CROPS, "both")]
    times = {float(b): ms for b, ms in ablate_regions.stored("cascade_ms", lambda: milliseconds(best)).items()}
    titles = {b: "crops alone" if b == math.inf else f"{b} crops" if b else "no crops" for b in scores}
    text = ablate_regions.table(
        "budget", {titles[b]: seeds for b, seeds in scores.items()}, {titles[b]: times[b] for b in scores}
    )
    (FOLDER / "cascade.md").write_text(text)
    draw(scores, times)
    print(text)


if __name__ == "__main__":
    main()
