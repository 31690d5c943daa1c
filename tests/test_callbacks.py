"""Tests of label maps, overlays and the seeding of training steps."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ovseg.callbacks import StepSeed
from ovseg.callbacks.pictures import OVERLAY_SIDES, label_image, overlay, palette

QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}


# Pictures


def test_labels_survive_a_round_trip_in_eight_bits(tmp_path: Path) -> None:
    labels = np.array([[0, 3], [255, 7]])
    label_image(labels, 256).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        assert np.array_equal(np.asarray(image.convert("RGB")), palette(256)[labels])


def test_labels_survive_a_round_trip_in_sixteen_bits(tmp_path: Path) -> None:
    labels = np.array([[0, 3], [846, 300]])
    label_image(labels, 847).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert np.array_equal(np.asarray(image), labels)


def test_colours_of_24_classes_are_distinguishable() -> None:
    colours = palette(24).astype(int)
    assert min(np.abs(first - second).sum() for first, second in combinations(colours, 2)) >= 60


def test_colours_do_not_depend_on_the_number_of_classes() -> None:
    assert np.array_equal(palette(200)[:24], palette(24))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (512, 512)),
        ((64, 128), (256, 512)),
        ((800, 1000), (800, 1000)),
        ((8000, 4000), (1600, 800)),
        ((1, 3000), (1, 1600)),
    ],
)
def test_overlays_have_a_viewable_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert OVERLAY_SIDES == (512, 1600)
    labels = np.zeros(size[::-1], dtype=np.int64)
    picture = overlay(Image.new("RGB", size), labels, ["sky"])
    assert picture.height == max(expected[1], 38)  # one line of the legend
    assert 60 <= picture.width - expected[0] <= 250


def test_the_legend_lists_the_classes_present_by_area() -> None:
    labels = np.array([[2] * 60 + [0] * 40] * 100)
    picture = overlay(Image.new("RGB", (100, 100), "white"), labels, ["a cat", "a dog", "the sky"])
    column = np.asarray(picture)[:, 512 + 20]  # runs through the legend's coloured squares
    colours = [tuple(row) for row in column if tuple(row) not in ((255, 255, 255), (0, 0, 0))]
    assert list(dict.fromkeys(colours)) == [tuple(palette(3)[2]), tuple(palette(3)[0])]


def test_overlays_blend_the_image_with_the_class_colours() -> None:
    labels = np.array([[0] * 300 + [1] * 300] * 600)
    picture = np.asarray(overlay(Image.new("RGB", (600, 600), (100, 100, 100)), labels, ["left", "right"]))
    for column, index in ((10, 0), (590, 1)):
        expected = 0.45 * 100 + 0.55 * palette(2)[index].astype(float)
        assert np.abs(picture[300, column] - expected).max() <= 1


# Random numbers


class Drawing(L.LightningModule):
    """Records the random numbers that its steps draw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.drawn: list[float] = []

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        self.drawn.append(float(torch.rand(())))
        return self.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_the_numbers_a_step_draws_do_not_depend_on_earlier_draws() -> None:
    def drawn(before: int, seed: int = 0) -> list[float]:
        L.seed_everything(seed)
        torch.rand(before)
        module = Drawing()
        trainer = L.Trainer(**QUIET, max_steps=3, enable_checkpointing=False, callbacks=[StepSeed()])
        trainer.fit(module, DataLoader(range(8)))  # type: ignore[arg-type]
        return module.drawn

    first = drawn(0)
    assert len(set(first)) == 3
    assert drawn(5) == first
    assert drawn(0, seed=1) != first
