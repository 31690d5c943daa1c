"""Write example pairs of a store to an HTML page."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ovseg import rle
from ovseg.data.pairs.manifest import read_manifest
from ovseg.data.pairs.read import read_pairs
from ovseg.data.pairs.table import Pairs
from ovseg.images import read_image
from ovseg.structures import InputError, RegionTextPair

GENERATOR = b'<meta name="generator" content="ovseg pairs show">'  # marks pages that may be replaced
SIDE = 240  # pixels, longer side of a picture
TINT = np.array([255, 40, 90])

_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="generator" content="ovseg pairs show">
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
        InputError: there is no pair of the noun, an image is missing or its size has changed, a mask is damaged, or
            `out` is a file that is not such a page.
    """
    check_target(Path(out))
    pairs = read_pairs(path)
    if (folder := images or (read_manifest(Path(path)) or {}).get("images")) is None:
        raise InputError(
            f"the image folder of {path} is not known; give --images the folder that its file names are relative to"
        )
    if not Path(folder).is_dir():
        raise InputError(f"there is no image folder {folder}; give --images the folder that the pairs were mined from")
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


def check_target(out: Path) -> None:
    """Refuse to replace a file that is not a page of pairs.

    Raises:
        InputError: it is another file, or a folder.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; give --out a file such as {out / 'pairs.html'}")
    if out.exists():
        with out.open("rb") as file:
            if GENERATOR not in file.read(len(_PAGE)):
                raise InputError(
                    f"{out} is not a page of `ovseg pairs show`, which will not replace it; choose another --out"
                )


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
        InputError: the image is missing, cannot be read, its size has changed, or the mask is damaged.
    """
    if not path.is_file():
        raise InputError(f"the image {path} does not exist; give --images the folder that the pairs were mined from")
    image = read_image(path)
    if not pair.counts:
        image.thumbnail((SIDE, SIDE))
        return image
    if (image.height, image.width) != pair.size:
        raise InputError(
            f"{path} is {image.width} x {image.height} pixels but was mined at {pair.size[1]} x {pair.size[0]}; "
            "give --images the folder that the pairs were mined from"
        )
    try:
        mask = rle.decode_box(pair.counts, pair.size, (0, 0, image.width, image.height)).numpy()
    except ValueError as error:
        raise InputError(f"the mask of {pair.noun!r} in {path} is damaged ({error}); mine again") from error
    pixels = np.asarray(image)
    tinted = np.where(mask[..., None], 0.5 * pixels + 0.5 * TINT, 0.7 * pixels)
    picture = Image.fromarray(tinted.astype(np.uint8))
    picture.thumbnail((SIDE, SIDE))
    return picture
