"""Cut windows from toy scenes and caption them: the data sets of the toy's CLIP training.

Workers import this module, so it does not import Lightning.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ovseg.data.toy.captions import Style, label, sentence
from ovseg.data.toy.nouns import NOUNS
from ovseg.data.toy.scenes import Region, Scene, make_scene, scene_rng
from ovseg.structures import RegionTextBatch

SPLIT = "windows"  # scenes used nowhere else, neither for training nor for testing
LABELS = 0.60  # share of captions that are bare nouns; with adjectives in every caption, CLIP did not learn the nouns
SENTENCES = Style(attributes=0.2, absent=0.0)


class Box(NamedTuple):
    """A square window: left, top and side in pixels."""

    x: int
    y: int
    side: int


class View(NamedTuple):
    """The mix of windows: whole scenes, windows around a thing, and windows anywhere in the scene."""

    whole: float  # share of whole scenes
    around: float  # share of windows around a thing
    margin: tuple[float, float]  # range of the side of a window around a thing, relative to the thing
    part: tuple[float, float]  # range of the side of a window anywhere, relative to the scene


# close views teach CLIP the nouns; with wide views alone it would need far more of them
VIEWS = {
    "close": View(whole=0.20, around=0.45, margin=(1.3, 2.6), part=(0.25, 0.8)),
    "wide": View(whole=0.60, around=0.15, margin=(2.5, 4.0), part=(0.7, 1.0)),
}


def choose_window(rng: np.random.Generator, scene: Scene, view: View) -> Box:
    """Draw a window of a scene: the whole scene, a window around a thing, or one anywhere."""
    size = scene.image.shape[0]
    kind = rng.random()
    things = [region for region in scene.regions if not NOUNS[region.noun].stuff]
    if kind < view.whole:
        return Box(0, 0, size)
    if kind < view.whole + view.around and things:
        mask = things[rng.integers(len(things))].mask
        x, y = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        extent = max(x[-1] - x[0], y[-1] - y[0]) + 1
        side = int(np.clip(extent * rng.uniform(*view.margin), 16, size))
        slack = (side - extent) / 2
        left = (x[0] + x[-1] - side) / 2 + slack * rng.uniform(-0.6, 0.6)
        top = (y[0] + y[-1] - side) / 2 + slack * rng.uniform(-0.6, 0.6)
        return Box(int(np.clip(left, 0, size - side)), int(np.clip(top, 0, size - side)), side)
    side = int(size * rng.uniform(*view.part))
    return Box(int(rng.integers(size - side + 1)), int(rng.integers(size - side + 1)), side)


def visible_regions(scene: Scene, window: Box) -> list[Region]:
    """Return the regions that a caption of the window would mention, at least one.

    These are regions that cover more than an eighth of the window, and things of which more than half is inside and
    which cover more than a hundredth of it. If there are none, the largest region is returned.
    """
    rows, columns = slice(window.y, window.y + window.side), slice(window.x, window.x + window.side)
    candidates: list[tuple[float, Region]] = []  # share of the window, minus 1 if the region is not visible enough
    for region in scene.regions:
        inside = int(region.mask[rows, columns].sum())
        share = inside / window.side**2
        clear_thing = not NOUNS[region.noun].stuff and inside > 0.5 * region.mask.sum() and share > 0.01
        candidates.append((share if share > 0.125 or clear_thing else -1 + share, region))
    visible = [region for share, region in candidates if share > 0]
    return visible or [max(candidates, key=lambda item: item[0])[1]]


class SceneWindows(Dataset[tuple[Tensor, list[str]]]):
    """The windows of each scene, (W, 3, s, s) uint8, with their captions."""

    def __init__(self, counts: list[int], size: int, seed: int, view: View) -> None:
        self.counts, self.size, self.seed, self.view = counts, size, seed, view

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> tuple[Tensor, list[str]]:
        scene = make_scene(self.seed, index, split=SPLIT)
        picture = Image.fromarray(scene.image)
        rng = scene_rng(self.seed, index, SPLIT, stream=2)
        pixels: list[NDArray[np.uint8]] = []
        texts: list[str] = []
        for _ in range(self.counts[index]):
            window = choose_window(rng, scene, self.view)
            box = (window.x, window.y, window.x + window.side, window.y + window.side)
            cut = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
            pixels.append(np.asarray(cut).transpose(2, 0, 1))
            regions = visible_regions(scene, window)
            texts.append(label(rng, regions) if rng.random() < LABELS else sentence(rng, regions, SENTENCES))
        return torch.from_numpy(np.stack(pixels)), texts


class FlippedWindows(Dataset[tuple[Tensor, str, int]]):
    """Windows in memory, half of them mirrored, indexed by the keys of `ovseg.data.loading`.

    Args:
        pixels: (N, 3, s, s) uint8.
        texts: the distinct captions.
        text_ids: N indices into `texts`.
        seed: seed of the mirroring.
    """

    def __init__(self, pixels: Tensor, texts: list[str], text_ids: list[int], seed: int) -> None:
        self.pixels, self.texts, self.text_ids, self.seed = pixels, texts, text_ids, seed

    def __len__(self) -> int:
        return len(self.text_ids)

    def __getitem__(self, key: int) -> tuple[Tensor, str, int]:
        index = key % len(self)
        pixels, text_id = self.pixels[index], self.text_ids[index]
        mirrored = np.random.default_rng([self.seed, key]).random() < 0.5
        return pixels.flip(-1) if mirrored else pixels, self.texts[text_id], text_id


def collate_windows(items: list[tuple[Tensor, str, int]]) -> RegionTextBatch:
    """Batch windows, with masks that cover the whole window."""
    windows, texts, text_ids = zip(*items, strict=True)
    pixels = torch.stack(windows)
    masks = torch.ones(len(items), *pixels.shape[-2:], dtype=torch.bool)
    return RegionTextBatch(pixels.float() / 255, masks, list(texts), torch.tensor(text_ids))
