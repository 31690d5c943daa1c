"""Tests of toy windows: captions mention what a window shows, reproducibly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovseg.data.toy import NOUNS, Region, Scene, make_scene, toy_words
from ovseg.data.toy.captions import PREFIXES, label
from ovseg.data.toy.cutting import VIEWS, Box, choose_window, visible_regions
from ovseg.data.toy.windows import ToyWindowsDataModule
from ovseg.structures import InputError

GRASS = [noun.name for noun in NOUNS].index("grass")


def circle_on_grass() -> Scene:
    """Return a 64 × 64 scene with a 16 × 16 block labelled as a circle, 8 pixels from the left and the top."""
    circle = np.zeros((64, 64), dtype=bool)
    circle[8:24, 8:24] = True
    regions = [Region(0, circle, "red", "dotted", 0.25), Region(GRASS, ~circle, "green", "", 1.0)]
    return Scene(np.zeros((64, 64, 3), dtype=np.uint8), regions)


@pytest.mark.parametrize(
    ("window", "nouns"),
    [
        (Box(0, 0, 64), [0, GRASS]),  # the circle covers a sixteenth of the window but is complete
        (Box(8, 8, 16), [0]),
        (Box(32, 32, 32), [GRASS]),
        (Box(20, 8, 32), [GRASS]),  # a quarter of the circle
        (Box(22, 22, 2), [0]),  # a small part of the circle, but nothing else is visible
    ],
)
def test_visible_regions_are_large_or_complete(window: Box, nouns: list[int]) -> None:
    assert [region.noun for region in visible_regions(circle_on_grass(), window)] == nouns


@pytest.mark.parametrize(("view", "smallest"), [("close", 16), ("wide", 40)])
def test_windows_are_whole_around_things_or_anywhere(view: str, smallest: int) -> None:
    scene, rng = circle_on_grass(), np.random.default_rng(0)
    windows = [choose_window(rng, scene, VIEWS[view]) for _ in range(600)]
    assert all(0 <= w.x <= 64 - w.side and 0 <= w.y <= 64 - w.side for w in windows)
    assert np.mean([w.side == 64 for w in windows]) == pytest.approx(VIEWS[view].whole, abs=0.06)
    assert smallest <= min(w.side for w in windows) <= smallest + 2
    contains_circle = [w.x <= 8 and w.y <= 8 and w.x + w.side >= 24 and w.y + w.side >= 24 for w in windows]
    assert np.mean(contains_circle) > 0.60


def test_labels_are_prompts_with_one_or_two_nouns() -> None:
    regions, rng = circle_on_grass().regions, np.random.default_rng(0)
    texts = {label(rng, regions) for _ in range(300)}
    words = {word for index in (0, GRASS) for word in NOUNS[index].synonyms}
    phrases = [*words, *(f"{a} and {b}" for a in words for b in words)]
    assert texts <= {prefix.format(phrase) for prefix in PREFIXES for phrase in phrases}
    assert len(texts) > 30


def windows(num_workers: int = 0, seed: int = 0) -> ToyWindowsDataModule:
    data = ToyWindowsDataModule(scenes=4, windows=30, size=24, total_batch_size=10, seed=seed, num_workers=num_workers)
    data.setup("fit")
    return data


def test_batches_are_reproducible_and_do_not_depend_on_workers() -> None:
    in_process, in_workers = (list(windows(workers).train_dataloader()) for workers in (0, 2))
    assert len(in_process) == 3
    for first, second in zip(in_process, in_workers, strict=True):
        assert first.regions.shape == (10, 3, 24, 24)
        assert first.regions.dtype == torch.float32
        assert 0 <= first.regions.min() < first.regions.max() <= 1
        assert first.region_masks.shape == (10, 24, 24)
        assert first.region_masks.dtype == torch.bool
        assert first.region_masks.all()
        assert torch.equal(first.regions, second.regions)
        assert first.texts == second.texts == [windows().texts[index] for index in first.text_ids.tolist()]
    assert windows(seed=1).train_dataloader().dataset[0][1] != windows().train_dataloader().dataset[0][1]


def test_mirroring_depends_on_the_epoch() -> None:
    data = windows().train_dataloader().dataset
    unchanged = [torch.equal(data[key][0], data[key + len(data)][0]) for key in range(len(data))]
    mirrored = [torch.equal(data[key][0], data[key + len(data)][0].flip(-1)) for key in range(len(data))]
    assert all(same != flipped for same, flipped in zip(unchanged, mirrored, strict=True))
    assert 5 < sum(mirrored) < 25


def test_some_windows_are_whole_scenes() -> None:
    data = ToyWindowsDataModule(scenes=6, windows=60, size=128, num_workers=0)
    data.setup("fit")
    pixels = {window.numpy().tobytes() for window in data.train_dataloader().dataset.pixels}
    scenes = [make_scene(0, index, split="windows").image.transpose(2, 0, 1).tobytes() for index in range(6)]
    assert len(pixels & set(scenes)) >= 3


def test_captions_consist_of_toy_words() -> None:
    known = set(toy_words())
    assert all(set(text.lower().replace(",", "").replace(".", "").split()) <= known for text in windows().data.texts)


def test_more_scenes_than_windows_are_refused() -> None:
    with pytest.raises(InputError, match="at least one window per scene"):
        ToyWindowsDataModule(scenes=10, windows=9)
