"""Write the tables of `python scripts/benchmark.py regions` from its JSON, for the terminal and docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Values = dict[str, Any]
MIB, GIGA = 2**20, 1e9


def tables(values: Values) -> dict[str, str]:
    """Return the Markdown of all tables that a run has numbers for, by name."""
    parts = {"run": run_of(values)}
    if "rows" in values:
        parts["rows"] = rows_of(values)
    if len({"rows", "mining", "toy", "memory"} & values.keys()) == 4:
        parts["targets"] = targets_of(values)
    if "toy" in values:
        parts["mining"] = mining_of(values["toy"]["mining"])
    if "growth" in values:
        parts["growth"] = growth_of(values["growth"])
    return parts


def run_of(values: Values) -> str:
    """Return a sentence on machine, versions and commit."""
    run, settings = values["run"], values["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    rates = values.get("rates", {})
    speed = "; ".join(f"{rate / GIGA:.0f} GFLOP/s in {precision}" for precision, rate in rates.items())
    height, width = settings["size"]
    return (
        f"`{run['command']}` at commit `{run['commit']}`: {settings['model']}, {settings['proposals']} proposals, "
        f"{settings['names']} names, {height} × {width} pixels; medians of {settings['repeats']}. {run['hardware']}, "
        f"load {run['load_at_start']:.1f} before and {run['load_at_end']:.1f} at the end; Python {run['python']}, "
        f"{versions}.{' Matrix products: ' + speed + '.' if speed else ''}"
    )


def rows_of(values: Values) -> str:
    """Return the table of all variants, each with its ratio to the baseline and to its floor."""
    header = ["", "regions", "ratio", "÷ floor", "end to end", "ratio", "÷ floor", "proposals", "CLIP's GFLOP"]
    first, lines = values["rows"][0], []
    for row in values["rows"]:
        lines.append(
            [
                row["name"],
                f"{row['encoding']:.2f} s",
                times(first["encoding"] / row["encoding"]),
                f"{row['encoding'] / row['floor']:.2f}",
                f"{row['total']:.2f} s",
                times(first["total"] / row["total"]),
                f"{row['total'] / row['total_floor']:.2f}",
                f"{row['proposals']:.2f} s",
                f"{row['flops'] / GIGA:,.0f}",
            ]
        )
    return table(header, lines)


def targets_of(values: Values) -> str:
    """Return the table of what was to be reached and what was."""
    rows = {row["name"]: row for row in values["rows"]}
    first, crops, toy, mining = values["rows"][0], rows["crops"], values["toy"], values["mining"]
    lines = []
    for part, title, goals in (("encoding", "region encoding", (18, 10)), ("total", "end to end", (8, 6))):
        for side, goal in zip((384, 512), goals, strict=True):
            ratio = first[part] / single_pass(rows, side)[part]
            lines.append([f"single pass, {title}, {side}", f"{goal} ×", times(ratio), met(ratio >= goal)])
    ratio, equality = first["total"] / crops["total"], values["equality"]["crops"]
    distance = equality["largest_difference"]
    lines.append(["crops, end to end", "1.3 ×", times(ratio), met(ratio >= 1.3)])
    lines.append(["crops: largest difference of features", "1e-4", f"{distance:.0e}", met(distance <= 1e-4)])
    lines.append(["crops: equal pixels", "", f"{100 * equality['equal_pixels']:.3f} %", ""])
    share = crops["clip"] / crops["floor"]
    lines.append(["crops: CLIP's time ÷ floor", "at most 1.15", f"{share:.2f}", met(share <= 1.15)])
    if (bf16 := rows.get("crops, bf16")) is not None:
        ratio, share = first["total"] / bf16["total"], toy["bf16"]["equal_pixels"]
        lines.append(["crops in bf16, end to end", "2.5 ×", times(ratio), met(ratio >= 2.5)])
        lines.append(
            [f"… equal pixels, {toy['bf16']['scenes']} toy scenes", "99.5 %", percent(share), met(share >= 0.995)]
        )
    ratio = mining["seconds"]["baseline"] / mining["seconds"]["single pass"]
    lines.append(["mining, images a second", "8 ×", times(ratio), met(ratio >= 8)])
    few, many = values["memory"][0], values["memory"][-1]
    extra = (many["peak"] - many["masks"]) - (few["peak"] - few["masks"])
    title = f"memory besides masks, ViT-L/14, {few['proposals']} → {many['proposals']:,} proposals"
    growth = " → ".join(f"{(row['peak'] - row['masks']) / MIB:,.0f} MiB" for row in (few, many))
    lines.append([title, "grow by under 5 % of the masks", growth, met(extra < 0.05 * (many["masks"] - few["masks"]))])
    return table(["what", "at least", "measured", "met"], lines)


def mining_of(mining: Values) -> str:
    """Return how the pairs mined with both encoders compare."""
    crops, one_pass = (percent(mining["right"][name]) for name in ("crops", "single pass"))
    header = ["toy scenes", "pairs", "same region", "regions overlap by half (IoU)", "right: crops", "single pass"]
    row = [str(mining["images"]), str(mining["pairs"]), percent(mining["same"]), percent(mining["overlap"])]
    return table(header, [[*row, crops, one_pass]])


def growth_of(growth: Values) -> str:
    """Return three tables: seconds by number of proposals, by number of classes and by image size."""
    proposals = [
        [f"{row['count']:,}", f"{row['single pass']:.2f} s", f"{row['crops']:.2f} s" if "crops" in row else ""]
        for row in growth["proposals"]
    ]
    classes = [[str(row["count"]), f"{row['labels']:.2f} s"] for row in growth["classes"]]
    pixels = [
        [" × ".join(map(str, row["size"])), *(f"{row[part]:.2f} s" for part in ("proposals", "single pass", "labels"))]
        for row in growth["pixels"]
    ]
    return "\n\n".join(
        (
            table(["proposals", "single pass", "crops"], proposals),
            table(["classes", "labels of 100 proposals"], classes),
            table(["pixels", "proposal network", "single pass", "labels"], pixels),
        )
    )


def single_pass(rows: dict[str, Values], short_side: int) -> Values:
    """Return the row of the single pass with region tokens in all blocks."""
    return next(row for name, row in rows.items() if f" {short_side} ×" in name and name.endswith("branch_block 1"))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def times(ratio: float) -> str:
    """Return a ratio with a digit after the point below 10."""
    return f"{ratio:.1f} ×" if ratio < 9.95 else f"{ratio:.0f} ×"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"
