"""Write example pairs of a store to an HTML page."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ovseg import rle
from ovseg.data.pairs.read import read_pairs
from ovseg.data.pairs.store import read_manifest
from ovseg.data.pairs.table import Pairs
from ovseg.images import read_image
from ovseg.structures import InputError, RegionTextPair

SIDE = 240  # pixels, longer side of a picture
TINT = np.array([255, 40, 90])

_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2em; }}
main {{ display: flex; flex-wrap: wrap; gap: 1em; }}
figure {{ margin: 0; width: {side}px; }}
figcaption {{ overflow-wrap: anywhere; }}
small {{ color: #666; }}
</style>
<h1>{title}</h1>
<p>Sorted by similarity and spread evenly from the most to the least similar pair.</p>
<main>
{figures}
</main>
"""
_FIGURE = """<figure><img src="data:image/jpeg;base64,{picture}" alt="{noun}">
<figcaption><b>{noun}</b><br><small>similarity {similarity:.3f}, margin {margin:.3f}, proposal {score:.2f}<br>{file}
</small></figcaption></figure>"""


def write_page(
    path: str | Path, images: str | Path | None, out: str | Path, noun: str | None = None, count: int = 60
) -> int:
    """Write a page of pairs, with their masks drawn over the images.

    Args:
        path: the store.
        images: the folder that its file names are relative to; defaults to the folder that was mined.
        out: the HTML file; it embeds the pictures.
        noun: show only pairs of this noun.
        count: maximum number of pairs, spread evenly from the most to the least similar.

    Returns:
        The number of pairs shown.

    Raises:
        InputError: there is no pair of the noun, or an image is missing or its size has changed.
    """
    pairs = read_pairs(path)
    if (folder := images or (read_manifest(Path(path)) or {}).get("images")) is None:
        raise InputError(
            f"the image folder of {path} is not known; give --images the folder that its file names are relative to"
        )
    indices = np.arange(len(pairs))
    if noun is not None:
        indices = indices[pairs.column("noun").to_numpy(zero_copy_only=False) == noun]
        if not len(indices):
            raise InputError(
                f"{path} has no pair of the noun {noun!r}; run `ovseg pairs stats {path}` to list frequent nouns"
            )
    examples = _evenly_spaced(pairs.take(indices), count)
    figures = [_figure(pair, Path(folder) / pair.file_name) for pair in examples]
    title = f"{len(examples)} of {len(indices):,} pairs of {'all nouns' if noun is None else repr(noun)} in {path}"
    page = _PAGE.format(title=html.escape(title), side=SIDE, figures="\n".join(figures))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(page, encoding="utf-8")
    return len(examples)


def _evenly_spaced(pairs: Pairs, count: int) -> Pairs:
    """Return at most `count` pairs, evenly spaced in the order of similarity."""
    order = np.argsort(-pairs.column("similarity").to_numpy(), kind="stable")
    return pairs.take(order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))])


def _figure(pair: RegionTextPair, image: Path) -> str:
    picture = io.BytesIO()
    draw_region(pair, image).save(picture, "JPEG", quality=85)
    return _FIGURE.format(
        picture=base64.b64encode(picture.getvalue()).decode("ascii"),
        noun=html.escape(pair.noun, quote=True),
        similarity=pair.similarity,
        margin=pair.margin,
        score=pair.proposal_score,
        file=html.escape(pair.file_name),
    )


def draw_region(pair: RegionTextPair, path: Path) -> Image.Image:
    """Return a thumbnail of the image with the region tinted and the rest darkened; a released crop is only shrunk.

    Raises:
        InputError: the image is missing, cannot be read, or its size has changed.
    """
    image = read_image(path)
    if not pair.counts:
        image.thumbnail((SIDE, SIDE))
        return image
    if (image.height, image.width) != pair.size:
        raise InputError(
            f"{path} is {image.width} x {image.height} pixels but was mined at {pair.size[1]} x {pair.size[0]}; "
            "give the image folder that the pairs were mined from"
        )
    pixels, mask = np.asarray(image), rle.decode([pair.counts], pair.size)[0].numpy()
    tinted = np.where(mask[..., None], 0.5 * pixels + 0.5 * TINT, 0.7 * pixels)
    picture = Image.fromarray(tinted.astype(np.uint8))
    picture.thumbnail((SIDE, SIDE))
    return picture
