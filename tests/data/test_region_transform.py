"""Tests that the fast region transform equals the plain functions of torch, torchvision and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2.functional import resized_crop

from ovseg.data.loading import seeded
from ovseg.data.pairs.region_transform import RATIO, SCALE, RegionTransform, resize_bicubic
from ovseg.ops import CLIP_MEAN
from ovseg.structures import InputError

SIDES = [(1, 1), (2, 3), (7, 90), (33, 16), (64, 64), (151, 207), (700, 31)]


def reference_augment(crop: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Compute the same augmentation with torchvision: fill the whole box, then crop and resize both."""
    top, left, height, width = RandomResizedCrop.get_params(crop, list(SCALE), list(RATIO))
    if not mask[:, top : top + height, left : left + width].any():
        top, left, (height, width) = 0, 0, mask.shape[1:]
    filled = torch.where(mask, crop, torch.tensor(CLIP_MEAN)[:, None, None])
    window, square = (top, left, height, width), [size, size]
    region = resized_crop(filled, *window, square, InterpolationMode.BICUBIC, antialias=False)
    return region, resized_crop(mask.float(), *window, square, InterpolationMode.NEAREST, antialias=False)[0] > 0


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("size", [16, 224])
def test_augmentation_equals_torchvisions(sides: tuple[int, int], size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    crop = torch.rand(3, *sides, generator=generator)
    for key, share in enumerate((0.5, 0.001, 1.0)):
        mask = torch.rand(1, *sides, generator=generator) < share
        with seeded(0, key):
            expected, expected_mask = reference_augment(crop, mask, size)
        with seeded(0, key):
            region, region_mask = RegionTransform().augment(crop, mask, size)
        assert torch.allclose(region, expected, rtol=0, atol=2e-6)
        assert torch.equal(region_mask, expected_mask)


@pytest.mark.parametrize("sides", SIDES)
def test_release_resize_equals_pillows(sides: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (*sides, 3), generator=generator, dtype=torch.uint8).numpy()
    mask = torch.rand(1, *sides, generator=generator) < 0.5
    mask[0, sides[0] // 2] = True
    transform = RegionTransform(resize="release")
    with seeded(1):
        filled = Image.fromarray(np.where(mask[0, :, :, None], levels, np.array([124, 116, 103], np.uint8)))
        # the release's own transform of the stored crop
        expected = RandomResizedCrop(224, SCALE, RATIO, InterpolationMode.BICUBIC)(filled)
    with seeded(1):
        region, region_mask = transform.augment(torch.from_numpy(levels).permute(2, 0, 1).float() / 255, mask, 224)
    assert torch.equal((region * 255).round().byte(), torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    with seeded(1):
        assert torch.equal(region_mask, RegionTransform().augment(torch.zeros(3, *sides), mask, 224)[1])


def test_release_resize_antialiases_and_inference_resize_does_not() -> None:
    stripes = (torch.arange(448) % 2).float().expand(3, 448, 448)  # one pixel wide
    mask = torch.ones(1, 448, 448, dtype=torch.bool)
    contrast = {
        resize: RegionTransform(resize=resize).augment(stripes, mask, 64)[0].std().item()
        for resize in ("inference", "release")
    }
    assert contrast["release"] < 0.05 < 0.3 < contrast["inference"]
    with pytest.raises(InputError, match=r"transform\.resize is 'pil'; give inference or release"):
        RegionTransform(resize="pil")  # type: ignore[arg-type]


@pytest.mark.parametrize("sides", SIDES)
def test_bicubic_resize_equals_torchs(sides: tuple[int, int]) -> None:
    image = torch.rand(4, *sides, generator=torch.Generator().manual_seed(0))
    for size in (1, 5, 64, 336):
        expected = F.interpolate(image[None], (size, size), mode="bicubic", align_corners=False)[0]
        assert torch.allclose(resize_bicubic(image, size), expected, rtol=0, atol=2e-6)
