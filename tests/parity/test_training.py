"""Training and ADE20K-847 preprocessing of images and labels against the original implementations (golden g7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ovseg.data.benchmarks.ade20k import ReducedImages
from ovseg.data.labels import Coding, LabelFiles
from ovseg.data.loading import seeded
from ovseg.data.ssd_jitter import SSDJitter
from tests.parity import goldens

DETAILS = goldens.details("g7_training")


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    return goldens.arrays("g7_training")


@pytest.mark.parametrize("case", range(len(DETAILS["color"])), ids=[case["name"] for case in DETAILS["color"]])
def test_colour_jitter(arrays: dict[str, Tensor], case: int) -> None:
    draws: dict[str, Any] = {key: value for key, value in DETAILS["color"][case].items() if key != "name"}
    jittered = SSDJitter(**draws)(Image.fromarray(arrays["color_input"].numpy()))
    allowed = 1 if draws["saturation"] is None and draws["hue"] is None else 2
    levels = torch.from_numpy(np.array(jittered)).float()
    goldens.close("colour jitter: levels of 255", levels, arrays[f"color_{case}"].float(), 0, allowed)


@pytest.mark.parametrize("grey", [10, 100, 200])
def test_colour_jitter_has_the_original_distribution(grey: int) -> None:
    image, count = Image.new("RGB", (1, 1), (grey, grey, grey)), 4000
    with seeded(grey):
        values = np.array([SSDJitter.draw()(image).getpixel((0, 0)) for _ in range(count)], np.float64)
    expected = DETAILS["constant_grey_4000_draws"][str(grey)]
    deviation = values.std()
    kurtosis = ((values - values.mean()) ** 4).mean() / deviation**4
    of_two_means = deviation * (2 / count) ** 0.5  # standard error of the difference: both are means of 4,000 draws
    of_two_deviations = deviation * ((kurtosis - 1) / (2 * count)) ** 0.5
    assert abs(values.mean() - expected["mean"]) < 4 * of_two_means
    assert abs(deviation - expected["std"]) < 4 * of_two_deviations


@pytest.mark.parametrize("case", ["tall", "wide", "small", "edge", "square"])
def test_reduction_of_ade20k_847(arrays: dict[str, Tensor], case: str, tmp_path: Path) -> None:
    labels = arrays[f"{case}_label_in"]
    pixels = arrays.get(f"{case}_image_in", torch.zeros(*labels.shape, 3, dtype=torch.uint8))
    files = tmp_path / "image.png", tmp_path / "labels.png"
    for file, values in zip(files, (pixels, labels), strict=True):
        Image.fromarray(values.numpy()).save(file)
    batch = ReducedImages(LabelFiles(dict([files]), Coding(range(1, 40), {0}), case), resize=None)[0]
    assert batch.sizes == [tuple(arrays[f"{case}_size"].tolist())]
    assert torch.equal(batch.labels[0] + 1, arrays[f"{case}_label_out"].short())
    assert batch.images[0].shape[1:] == batch.labels[0].shape
    if case == "tall":
        reduced = (batch.images[0] * 255).permute(1, 2, 0)[::7, ::7]
        goldens.close("ADE20K-847: levels of 255", reduced, arrays["tall_image_out_every7"].float(), 0, 1.001)
