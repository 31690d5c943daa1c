"""Generate the surfaces of the toy world: textures of stuff and patterns of things."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

Float = NDArray[np.float32]
# (n, n) share of the accent colour in [0, 1], (n, n) relative brightness around 0
Texture = tuple[NDArray[np.floating], NDArray[np.floating]]


def smooth_noise(rng: np.random.Generator, n: int, rows: int, columns: int) -> Float:
    """Return bicubic noise in [-1, 1] of rows × columns cells, (n, n)."""
    cells = rng.uniform(-1, 1, (max(rows, 2), max(columns, 2))).astype(np.float32)
    return np.asarray(Image.fromarray(cells).resize((n, n), Image.Resampling.BICUBIC), dtype=np.float32)


def _grass(rng: np.random.Generator, n: int, x: Float, y: Float) -> Texture:
    blades = smooth_noise(rng, n, n // 7, n // 2)
    patches = smooth_noise(rng, n, 9, 9)
    return np.clip(blades * 1.1 + 0.1, 0, 0.8), 0.10 * patches + 0.12 * np.clip(-blades, 0, 1)


def _sand(rng: np.random.Generator, n: int, x: Float, y: Float) -> Texture:
    ripples = 0.5 + 0.5 * np.sin(2 * np.pi * (y + 5 * smooth_noise(rng, n, 9, 5)) / 11)
    grain = rng.normal(0, 1, (n, n)).astype(np.float32)
    return 0.55 * ripples**2, 0.055 * grain


def _water(rng: np.random.Generator, n: int, x: Float, y: Float) -> Texture:
    phase = 2 * np.pi * (y + 4 * smooth_noise(rng, n, 12, 10)) / 9
    crests = np.clip(0.5 + 0.5 * np.sin(phase), 0, 1) ** 5 * np.clip(0.55 + 0.9 * smooth_noise(rng, n, 30, 12), 0, 1)
    return np.clip(crests, 0, 0.85), 0.14 * smooth_noise(rng, n, 6, 4) + 0.06 * np.sin(phase)


def _wood(rng: np.random.Generator, n: int, x: Float, y: Float) -> Texture:
    plank = (y // 21).astype(int)
    grain = np.clip(0.7 * smooth_noise(rng, n, n // 2, n // 34), 0, 0.5)
    planks = plank.max() + 1
    seam = (y % 21 < 1.6) | (np.abs(x - rng.integers(0, n, planks)[plank]) < 1.0)
    return np.clip(grain + 0.9 * seam, 0, 0.9), rng.uniform(-0.14, 0.14, planks)[plank]


def _snow(rng: np.random.Generator, n: int, x: Float, y: Float) -> Texture:
    drifts = np.clip(0.25 + 0.6 * smooth_noise(rng, n, 12, 6), 0, 0.8)
    sparkle = (rng.random((n, n)) < 0.012) * 0.1
    return drifts, sparkle + 0.015 * smooth_noise(rng, n, n // 3, n // 3)


def _sky(rng: np.random.Generator, n: int, x: Float, y: Float) -> Texture:
    clouds = smooth_noise(rng, n, 14, 7) + 0.45 * smooth_noise(rng, n, 30, 16) + 0.2 * smooth_noise(rng, n, 60, 40)
    return np.clip(clouds * 1.3 - 0.25, 0, 0.92), 0.05 * smooth_noise(rng, n, 4, 4)


def _brick(rng: np.random.Generator, n: int, x: Float, y: Float) -> Texture:
    row = (y // 10).astype(int)
    along = x + 10 * (row % 2)
    mortar = (y % 10 < 1.7) | (along % 20 < 1.7)
    shade = rng.uniform(-0.22, 0.16, (row.max() + 1, int(along.max() // 20) + 1))
    return np.where(mortar, 0.9, 0.0), np.where(mortar, 0.0, shade[row, (along // 20).astype(int)])


def _gravel(rng: np.random.Generator, n: int, x: Float, y: Float) -> Texture:
    step = 7.0
    corners = np.stack(np.meshgrid(np.arange(-1, n / step + 1), np.arange(-1, n / step + 1)), axis=-1).reshape(-1, 2)
    stones = (corners + rng.uniform(0.1, 0.9, corners.shape)) * step
    distance, nearest = cKDTree(stones).query(np.stack([x, y], axis=-1), k=2)
    gap = np.clip(1.0 - (distance[..., 1] - distance[..., 0]) / 2.0, 0, 1)
    bright = rng.uniform(-0.24, 0.26, len(stones))[nearest[..., 0]]
    return 0.85 * gap, bright - 0.012 * distance[..., 0] ** 2


_TEXTURES: dict[str, Callable[[np.random.Generator, int, Float, Float], Texture]] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "wood": _wood,
    "snow": _snow,
    "sky": _sky,
    "brick": _brick,
    "gravel": _gravel,
}


@cache
def texture(name: str) -> tuple[Float, Float]:
    """Return the texture of stuff, 384 × 384 pixels, of which each scene shows a different part.

    The texture is the same in every run; scenes choose at random where to cut, flip and scale it.
    """
    n = 384
    y, x = np.mgrid[:n, :n].astype(np.float32)
    mix, shade = _TEXTURES[name](np.random.default_rng(sum(name.encode())), n, x, y)
    return np.ascontiguousarray(mix, dtype=np.float32), np.ascontiguousarray(shade, dtype=np.float32)


def pattern(name: str, u: Float, v: Float, frequency: float, phase: float) -> Float:
    """Return the share of a thing's second colour, in [0, 1], at coordinates u, v in about [-1, 1]; edges are soft."""
    step = np.pi * frequency
    if name == "plain":
        wave = np.full_like(u, -1.0)
    elif name == "gradient":
        wave = 0.24 * v
    elif name == "striped":
        wave = np.sin(step * (u + 0.45 * v) + phase)
    elif name == "checkered":
        wave = 2.2 * np.sin(0.8 * step * u + phase) * np.sin(0.8 * step * v + phase)
    else:
        wave = np.abs(2 * np.cos(step * u + phase) * np.cos(step * v + phase)) - 0.9
    share: Float = np.clip(0.5 + 2.5 * wave, 0, 1)
    return share
