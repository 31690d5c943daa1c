"""Outlines of the toy world's things: polygons in the square from -1 to 1, with y pointing down."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]  # (P, 2) x, y


class Outline(NamedTuple):
    """A filled body with holes; details are drawn on it in a second colour."""

    body: Polygon
    holes: tuple[Polygon, ...] = ()
    details: tuple[Polygon, ...] = ()


def _polar(radius: NDArray[np.float64] | float, angle: NDArray[np.float64]) -> Polygon:
    """Return points at angles measured clockwise from straight up."""
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _disc(radius: float, x: float = 0.0, y: float = 0.0) -> Polygon:
    centre: Polygon = np.array([x, y])
    return centre + _polar(radius, np.linspace(0, 2 * np.pi, 48, endpoint=False))


def _regular(corners: int, radius: float = 1.0, start: float = 0.0) -> Polygon:
    return _polar(radius, start + np.arange(corners) * 2 * np.pi / corners)


def _star() -> Polygon:
    return _polar(np.where(np.arange(10) % 2 == 0, 1.05, 0.45), np.arange(10) * np.pi / 5)


def _cross() -> Polygon:
    arm = np.array([(-1, -1), (-1, -3), (1, -3)]) / 3.1
    turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([arm, arm @ turn, arm @ turn @ turn, arm @ turn @ turn @ turn])


def _quad(half: float, top: float, bottom: float) -> Polygon:
    return np.array([(-half, top), (half, top), (half, bottom), (-half, bottom)])


def _flower() -> Polygon:
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    return _polar(0.56 + 0.44 * np.abs(np.cos(2.5 * angle)) ** 0.7, angle)


def _drop() -> Polygon:
    angle = np.linspace(0.0, 2 * np.pi, 60, endpoint=False)
    return np.stack([0.66 * np.sin(angle) * np.sin(angle / 2) ** 1.3, -np.cos(angle)], axis=1) * (1.1, 1.0)


def _leaf() -> Polygon:
    along = np.linspace(-1, 1, 24)
    half = 0.52 * (1 - along**2) ** 0.9
    blade = np.concatenate([np.stack([half, along], 1), np.stack([-half, along], 1)[-2:0:-1]])
    return np.concatenate([blade[:23], _quad(0.05, 0.9, 1.25)[[1, 2, 3, 0]], blade[24:]])


def _heart() -> Polygon:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(angle) ** 3
    y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return np.stack([x, -y - 2.5], axis=1) / 15.5


def _gear() -> Polygon:
    teeth = 8
    step = 2 * np.pi / teeth
    angle = (np.arange(teeth)[:, None] * step + np.array([-0.3, -0.2, 0.2, 0.3]) * step).ravel()
    return _polar(np.tile([0.74, 1.0, 1.0, 0.74], teeth), angle)


@cache
def outline(name: str) -> Outline:
    """Return the outline of a thing, which roughly fills the unit disc.

    Raises:
        KeyError: the name is not that of a thing.
    """
    return {
        "circle": lambda: Outline(_disc(0.92)),
        "square": lambda: Outline(_regular(4, 1.13, np.pi / 4)),
        "triangle": lambda: Outline(_regular(3, 1.12) + np.array([0, 0.2])),
        "star": lambda: Outline(_star()),
        "cross": lambda: Outline(_cross()),
        "diamond": lambda: Outline(np.array([(0, -1.1), (0.68, 0), (0, 1.1), (-0.68, 0)])),
        "flower": lambda: Outline(_flower(), details=(_disc(0.3),)),
        "drop": lambda: Outline(_drop()),
        "leaf": lambda: Outline(_leaf(), details=(_quad(0.04, -0.8, 1.2),)),
        "hexagon": lambda: Outline(_regular(6, 1.0, np.pi / 6)),
        "heart": lambda: Outline(_heart()),
        "ring": lambda: Outline(_disc(0.98), holes=(_disc(0.55),)),
        "moon": lambda: Outline(_disc(1.0), holes=(_disc(0.84, 0.5, -0.14),)),
        "arrow": lambda: Outline(
            np.array([(-1.05, -0.28), (0.1, -0.28), (0.1, -0.8), (1.05, 0), (0.1, 0.8), (0.1, 0.28), (-1.05, 0.28)])
        ),
        "gear": lambda: Outline(_gear(), holes=(_disc(0.3),)),
        "bolt": lambda: Outline(
            np.array([(0.1, -1.1), (-0.62, 0.16), (-0.1, 0.16), (-0.3, 1.1), (0.62, -0.3), (0.06, -0.3), (0.5, -1.1)])
        ),
    }[name]()
