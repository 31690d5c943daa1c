"""Sweep prompts, resizing of regions, ensemble weight and mask threshold: `./scripts/ablate_toy.sh sweeps`.

World, adaptation and test are those of ablate_toy.py; steps finished here or there are not repeated.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import ablate_toy
from ablate_toy import OUT, PLAIN, PROMPTS, ROWS, SEEDS, WORLD

PARTS = {"miou_union": "all", "miou_union_seen": "seen", "miou_union_unseen": "unseen"}  # metrics of a sweep
FIXED = (0.9, 0.5)  # ensemble weight and mask threshold while the other is swept


def prompts() -> None:
    """Publish the table of prompt depth and sharing."""
    rows: dict[str, ablate_toy.Flags] = {f"depth {depth}": ("--model.clip.prompt_depth", depth) for depth in (1, 2, 4)}
    rows = {"depth 3": (), **rows, "depth 3, shared": ("--model.clip.shared_prompt", "true")}
    scores = dict(zip(rows, ablate_toy.scores((PROMPTS, flags) for flags in rows.values()), strict=True))
    ablate_toy.publish("mask prompts", "prompts", dict(sorted(scores.items())))


def regions() -> None:
    """Publish the table of how regions are resized in training."""
    ways: dict[str, ablate_toy.Flags] = {
        "as in inference": (),
        "as in the release": ("--data.transform.resize", "release"),
    }
    rows = {
        f"{adaptation}, {way}": (ROWS[adaptation], flags)
        for adaptation in ("mask prompts", "both at once")
        for way, flags in ways.items()
    }
    scores = ablate_toy.scores(rows.values())
    ablate_toy.publish("resizing of training regions", "regions", dict(zip(rows, scores, strict=True)))


def settings() -> None:
    """Print and save the tables of ensemble weight and mask threshold for plain and adapted CLIP."""
    adapted = ROWS["fine-tuned, then mask prompts"]
    plain, *others = ablate_toy.in_parallel(sweep, [PLAIN, *[adapted] * len(SEEDS)], [SEEDS[0], *SEEDS])
    columns = [f"{clip}: {part}" for clip in ("plain CLIP", "adapted") for part in PARTS.values()]
    lines: list[str] = []
    for index, axis in enumerate(("ensemble weight", "mask threshold")):
        lines += [f"| {axis} | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
        for setting in sorted(setting for setting in plain if setting[1 - index] == FIXED[1 - index]):
            of_seeds = [[grid[setting][part] for grid in grids] for grids in ([plain], others) for part in PARTS]
            lines.append(f"| {setting[index]} | " + " | ".join(map(ablate_toy.cell, of_seeds)) + " |")
        lines.append("")
    (OUT / "settings.md").write_text("\n".join(lines))
    print("\n".join(lines))


def sweep(adaptation: ablate_toy.Adaptation, seed: int) -> dict[tuple[float, float], dict[str, float]]:
    """Return one segmenter's mIoU in per cent by ensemble weight and mask threshold."""
    checkpoint = ablate_toy.adapt(adaptation, (), seed)
    name = "plain" if checkpoint == "toy" else Path(checkpoint).parent.name
    segmenter, folder = "toy" if checkpoint == "toy" else ablate_toy.bundled(checkpoint, name), OUT / "sweep" / name
    if not (folder / "sweep.csv").is_file():
        words = ["sweep", "--config", "conf/toy/sweep.yaml", "--model.segmenter", segmenter, "--out", folder]
        words += ["--model.ensemble_weights", "[0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]"]
        words += ["--data.images", WORLD / "val2017", "--data.labels", WORLD / "stuffthingmaps" / "val2017"]
        ablate_toy.run(*words, "--trainer.default_root_dir", folder)
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        (float(row["ensemble_weight"]), float(row["mask_threshold"])): {part: 100 * float(row[part]) for part in PARTS}
        for row in rows
    }


if __name__ == "__main__":
    try:
        ablate_toy.make_pairs()
        prompts()
        regions()
        settings()
    except KeyboardInterrupt:
        sys.exit("stopped; rerun the command to resume")
