"""Render the report as one self-contained HTML file, without scripts or links."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from PIL import Image

from ovseg.callbacks.findings import GROUPS, METRICS, ClassRow, Findings, per_cent

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .6rem 0 }
th, td { text-align: right; padding: .15rem .7rem; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
th:first-child, td:first-child, .text { text-align: left }
.bar { display: inline-block; width: 16rem; background: #eee; text-align: left }
.bar i { display: block; height: .8rem; background: #3b78b8 }
.unseen .bar i { background: #d08a2e }
figure { margin: 1rem 0 } figure img { max-width: 49%; vertical-align: top }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto }
"""
MAX_WIDTH = 1000  # pixels, of a picture
Rows = Iterable[Sequence[str]]


class Example(NamedTuple):
    """One image of the report."""

    title: str
    iou: float
    pictures: Sequence[Image.Image]  # overlays of the labels and of the prediction


def page(findings: Findings, examples: Iterable[Example], config: str) -> str:
    """Return the HTML of the whole report; `config` is included verbatim."""
    counts = f"{findings.images:,} images, {len(findings.classes)} classes: {findings.classes_in_labels} in labels, "
    counts += f"{findings.classes_in_labels_or_predictions} in labels or predictions"
    speed = f"{findings.images_per_second:.2f} images/s, peak memory {findings.peak_memory_mib:,.0f} MiB per process, "
    parts = [
        f"<h1>{escape(findings.title)}</h1>",
        f"<p>{counts}.<br>{speed}{findings.processes} × {escape(findings.device)}.</p>",
        "<h2>Metrics in %</h2>",
        _metrics(findings),
        "<h2>Images</h2><p>Labels on the left, predictions on the right. IoU is averaged over an image's classes.</p>",
        *map(_figure, examples),
        "<h2>Confusions</h2><p>Pixels of one class that were predicted as another.</p>",
        _table(
            ("label", "prediction", "pixels", "% of the label"),
            [
                (escape(row.label), escape(row.predicted), f"{row.pixels:,}", per_cent(row.share))
                for row in findings.confusions
            ],
        ),
        "<h2>Classes</h2><p>Sorted by IoU, in %. Classes unseen in training are orange.</p>",
        _classes(findings.classes),
        f"<h2>Run</h2><pre>{escape(findings.command)}</pre>",
        _table(
            ("", ""),
            [
                (escape(str(name)), escape(str(value)))
                for name, value in {**findings.settings, **findings.versions}.items()
            ],
        ),
        f"<pre>{escape(config)}</pre>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(findings.title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _metrics(findings: Findings) -> str:
    """Return a table with a row per metric, and columns for seen and unseen classes if they are known."""
    metrics = findings.metrics
    groups = [group for group in GROUPS if any(name.endswith(f"_{group}") for name in metrics)]
    rows = [
        (title, *(per_cent(metrics.get(f"{name}{group}")) for group in ("", *(f"_{g}" for g in groups))), definition)
        for name, (title, definition) in METRICS.items()
        if name in metrics
    ]
    return _table(("", "all", *groups, "definition"), rows)


def _figure(example: Example) -> str:
    pictures = "".join(f'<img alt="" src="data:image/jpeg;base64,{_jpeg(picture)}">' for picture in example.pictures)
    caption = f"{escape(example.title)}, IoU {per_cent(example.iou)} %"
    return f"<figure><figcaption>{caption}</figcaption>{pictures}</figure>"


def _jpeg(picture: Image.Image) -> str:
    """Return a JPEG in base64, reduced to the width of the page."""
    picture = picture.copy()
    picture.thumbnail((MAX_WIDTH, 4 * MAX_WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _classes(classes: Sequence[ClassRow]) -> str:
    """Return a table of the classes in the labels by descending IoU, followed by a list of the absent classes."""
    present = sorted((row for row in classes if not math.isnan(row.iou)), key=lambda row: -row.iou)
    lines = "".join(
        f'<tr class="{"unseen" if row.seen is False else ""}"><td>{escape(row.name)}</td>'
        f'<td><span class="bar"><i style="width:{100 * row.iou:.1f}%"></i></span></td>'
        + "".join(f"<td>{cell}</td>" for cell in map(per_cent, (row.iou, row.accuracy, row.mask_accuracy)))
        + f"<td>{row.regions:,}</td><td>{row.pixels:,}</td><td>{row.predicted:,}</td></tr>"
        for row in present
    )
    head = ("class", "", "IoU", "accuracy", "mask accuracy", "regions", "pixels", "predicted")
    absent = f"<p>Not in the labels: {escape(', '.join(row.name for row in classes if math.isnan(row.iou)))}.</p>"
    table = f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{lines}</table>"
    return table + (absent if len(present) < len(classes) else "")


def _table(head: Sequence[str], rows: Rows) -> str:
    """Return an HTML table; the cells are HTML."""
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{''.join(lines)}</table>"
