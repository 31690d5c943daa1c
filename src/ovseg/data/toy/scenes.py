"""Generate scenes: two or three stuff regions under one to four things, which can overlap."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ovseg.data.toy.nouns import COLOURS, NOUNS, PATTERNS, RGB, STUFF, THINGS
from ovseg.data.toy.shapes import outline
from ovseg.data.toy.textures import Float, pattern, smooth_noise, texture

TYPICAL = 0.85  # probability of the usual colour, and of the usual pattern
SUPERSAMPLING = 3


class Region(NamedTuple):
    """The visible part of one thing or stuff, with the attributes that captions can mention."""

    noun: int  # index in NOUNS
    mask: NDArray[np.bool_]  # (H, W), never empty
    colour: str
    pattern: str  # "" for stuff
    diameter: float  # as a fraction of the scene's side; 1 for stuff


class Scene(NamedTuple):
    """One scene, partitioned into disjoint regions."""

    image: NDArray[np.uint8]  # (H, W, 3)
    regions: list[Region]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(H, W) indices in NOUNS."""
        labels = np.zeros(self.image.shape[:2], dtype=np.uint8)
        for region in self.regions:
            labels[region.mask] = region.noun
        return labels


@dataclass(frozen=True)
class _Thing:
    noun: int
    colour: str
    rgb: RGB
    second: RGB
    pattern: str
    centre: tuple[float, float]  # x, y in pixels
    radius: float  # pixels
    angle: float
    aspect: float


def scene_rng(seed: int, index: int, split: str, stream: int = 0) -> np.random.Generator:
    """Return the random generator of one scene, independent of all others."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index, stream])


def make_scene(seed: int, index: int, size: int = 128, split: str = "train2017", mixed: bool = True) -> Scene:
    """Generate scene number `index` of a split, which depends on the arguments alone.

    Args:
        size: side of the scene in pixels.
        mixed: whether several unseen nouns may occur. If false, there is at most one unseen noun among the things and
            one among the stuff, so that each catch-all label covers the area of a single noun like any other label.
    """
    rng = scene_rng(seed, index, split)
    canvas, owner, ground = _ground(rng, size, mixed)
    canvas *= 1.0 + 0.14 * smooth_noise(rng, size, 2, 2)[..., None]
    things = _things(rng, size, mixed)
    for number, thing in enumerate(things, start=len(ground)):
        _draw(canvas, owner, number, thing, rng)
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.0, 0.7)) * size / 128))
    noise = rng.standard_normal((size, size, 3), dtype=np.float32) * rng.uniform(1.0, 6.0)
    image = np.clip(np.asarray(picture, dtype=np.float32) + noise, 0, 255).astype(np.uint8)

    looks = [(noun, colour, "", 1.0) for noun, colour in ground]
    looks += [(t.noun, t.colour, t.pattern, 2 * t.radius / size) for t in things]
    masks = [owner == number for number in range(len(looks))]
    return Scene(
        image, [Region(n, mask, c, p, d) for (n, c, p, d), mask in zip(looks, masks, strict=True) if mask.any()]
    )


def _ground(rng: np.random.Generator, size: int, mixed: bool) -> tuple[Float, NDArray[np.uint8], list[tuple[int, str]]]:
    """Return the canvas (H, W, 3), the region of each pixel (H, W), and noun and colour word of each region."""
    spare = rng.choice([noun for noun in STUFF if not NOUNS[noun].seen])
    pool = [noun for noun in STUFF if mixed or noun == spare or NOUNS[noun].seen]
    nouns = [int(noun) for noun in rng.choice(pool, size=rng.choice([2, 3], p=[0.6, 0.4]), replace=False)]
    nouns.sort(key=lambda noun: NOUNS[noun].name != "sky")  # the sky is at the top
    owner = np.zeros((size, size), dtype=np.uint8)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    for number in range(1, len(nouns)):
        tilt = rng.normal(0, 0.3) if number == 1 else rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.4)
        height = float(np.cos(tilt)) * y + float(np.sin(tilt)) * x
        height += smooth_noise(rng, size, 5, 5) * rng.uniform(0.1, 0.3) + smooth_noise(rng, size, 24, 24) * 0.03
        below = owner == number - 1
        owner[below & (height > np.quantile(height[below], rng.uniform(0.35, 0.6)))] = number
    canvas = np.empty((size, size, 3), dtype=np.float32)
    ground = []
    for number, noun in enumerate(nouns):
        looks = NOUNS[noun].looks
        colour, rgb = looks[0] if rng.random() < TYPICAL else looks[1]
        ground.append((noun, colour))
        mask = owner == number
        canvas[mask] = _surface(rng, noun, rgb, mask)
    return canvas, owner, ground


def _surface(rng: np.random.Generator, noun: int, rgb: RGB, mask: NDArray[np.bool_]) -> Float:
    """Return the colours (P, 3) of the P pixels of a stuff region, taken from a random part of its texture."""
    mix, shade = texture(NOUNS[noun].name)
    size = mask.shape[0]
    steps = np.arange(size) * (128 / size * rng.uniform(0.75, 1.15))
    top, left = rng.integers(0, mix.shape[0] - int(steps[-1]) - 1, 2)
    y, x = np.nonzero(mask)
    rows = (top + steps.astype(int))[y]
    columns = (left + steps.astype(int)[:: rng.choice([-1, 1])])[x]
    share, bright = mix[rows, columns][:, None], shade[rows, columns][:, None]
    base = (np.asarray(rgb) * rng.uniform(0.9, 1.08) + rng.normal(0, 5, 3)).astype(np.float32)
    surface: Float = (base + share * (np.asarray(NOUNS[noun].accent, dtype=np.float32) - base)) * (1 + bright)
    return surface


def _things(rng: np.random.Generator, size: int, mixed: bool) -> list[_Thing]:
    """Place one to four things, back to front, none mostly hidden by another."""
    things: list[_Thing] = []
    for _ in range(rng.choice([1, 2, 3, 4], p=[0.2, 0.35, 0.3, 0.15])):
        repeat = bool(things) and rng.random() < 0.25
        unseen = {t.noun for t in things if not NOUNS[t.noun].seen}
        pool = [noun for noun in THINGS if mixed or not unseen or noun in unseen or NOUNS[noun].seen]
        noun = things[-1].noun if repeat else int(rng.choice(pool))
        radius = size * float(np.exp(rng.uniform(np.log(0.1), np.log(0.25))))
        if repeat and rng.random() < 0.7:  # several things of a noun often look alike
            colour, kind = things[-1].colour, things[-1].pattern
            radius = things[-1].radius * float(rng.uniform(0.8, 1.2))
        else:
            colour, kind = _look(rng, noun)
        for _ in range(12):
            x, y = rng.uniform(0.75 * radius, size - 0.75 * radius, 2)
            gaps = [np.hypot(x - t.centre[0], y - t.centre[1]) / (radius + t.radius) for t in things]
            if all(gap > 0.68 for gap in gaps):
                rgb, second = _paint(rng, colour)
                angle = rng.uniform(-0.6, 0.6) if rng.random() < 0.9 else rng.uniform(-np.pi, np.pi)
                aspect = float(np.exp(rng.normal(0, 0.05)))
                things.append(_Thing(noun, colour, rgb, second, kind, (x, y), radius, float(angle), aspect))
                break
    return things


def _look(rng: np.random.Generator, noun: int) -> tuple[str, str]:
    """Draw a colour and a pattern for a thing, usually its typical ones."""
    typical = [colour for colour, _ in NOUNS[noun].looks]
    colour = rng.choice(typical if rng.random() < TYPICAL else list(COLOURS))
    kind = NOUNS[noun].pattern if rng.random() < TYPICAL else rng.choice(PATTERNS)
    return str(colour), str(kind)


def _paint(rng: np.random.Generator, colour: str) -> tuple[RGB, RGB]:
    """Draw a shade of a named colour, and the lighter or darker second colour of the pattern."""
    first = np.clip(np.asarray(COLOURS[colour]) + rng.normal(0, 9, 3), 0, 255)
    bright = first @ (0.3, 0.59, 0.11) > 150
    second = first * 0.58 if bright else first + (255 - first) * 0.62
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


def _draw(canvas: Float, owner: NDArray[np.uint8], number: int, thing: _Thing, rng: np.random.Generator) -> None:
    """Paint a thing and its shadow on the canvas, and assign its pixels to region `number`."""
    size = canvas.shape[0]
    reach = 1.45 * thing.radius
    x0, y0 = (max(int(c - reach), 0) for c in thing.centre)
    x1, y1 = (min(int(c + reach) + 1, size) for c in thing.centre)
    centre = np.subtract(thing.centre, (x0, y0))
    turn = np.array([[np.cos(thing.angle), np.sin(thing.angle)], [-np.sin(thing.angle), np.cos(thing.angle)]])
    stretch = thing.radius * np.array([thing.aspect, 1 / thing.aspect])
    shape = outline(NOUNS[thing.noun].name)

    def raster(filled: tuple[NDArray[np.float64], ...], empty: tuple[NDArray[np.float64], ...]) -> Image.Image:
        sheet = Image.new("L", ((x1 - x0) * SUPERSAMPLING, (y1 - y0) * SUPERSAMPLING))
        pen = ImageDraw.Draw(sheet)
        for polygons, value in ((filled, 255), (empty, 0)):
            for polygon in polygons:
                pen.polygon((((polygon * stretch) @ turn + centre) * SUPERSAMPLING).ravel().tolist(), fill=value)
        return sheet.reduce(SUPERSAMPLING)

    cover = raster((shape.body,), shape.holes)
    alpha = np.asarray(cover, dtype=np.float32)[..., None] / 255
    soft = np.asarray(cover.filter(ImageFilter.GaussianBlur(0.13 * thing.radius)), dtype=np.float32)[..., None] / 255
    patch = canvas[y0:y1, x0:x1]
    drop = max(int(0.12 * thing.radius), 1)
    shadow = np.zeros_like(soft)
    shadow[drop:, drop:] = soft[:-drop, :-drop]
    patch *= 1 - 0.42 * shadow * (1 - alpha)

    y, x = np.mgrid[: y1 - y0, : x1 - x0].astype(np.float32)
    x, y = x - float(centre[0]), y - float(centre[1])
    light = np.clip(-(x + y) / thing.radius, -1.2, 1.2)
    u = (float(turn[0, 0]) * x + float(turn[0, 1]) * y) / float(stretch[0])
    v = (float(turn[1, 0]) * x + float(turn[1, 1]) * y) / float(stretch[1])
    share = pattern(thing.pattern, u, v, rng.uniform(2.2, 3.2), rng.uniform(0, 2 * np.pi))
    if shape.details:
        share = np.maximum(share, np.asarray(raster(shape.details, ()), dtype=np.float32) / 255)
    first, second = np.asarray(thing.rgb, dtype=np.float32), np.asarray(thing.second, dtype=np.float32)
    shade = (1 + 0.11 * light[..., None]) * (0.62 + 0.38 * np.clip(1.9 * soft - 0.7, 0, 1))  # lit side, dark rim
    colour = (first + share[..., None] * (second - first)) * shade
    patch += alpha * (colour - patch)
    owner[y0:y1, x0:x1][alpha[..., 0] > 0.5] = number
