"""Masked regions compared with the released implementation (golden g2)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ovseg.ops import CLIP_MEAN, crop_regions, expand_boxes, masks_to_boxes
from tests.parity import goldens

G2 = goldens.arrays("g2_crops")
IMAGE = G2["image"].float()
MEAN = tuple(255 * value for value in CLIP_MEAN)
BLACK = (0.0, 0.0, 0.0)
CHOSEN = [0, 1, 2, 6, 7]  # the masks of variant D
VARIANTS = [
    ("A", MEAN, 1.0, 0.5, range(9)),
    ("B", BLACK, 1.0, 0.4, range(9)),
    ("C", MEAN, 1.5, 0.5, range(9)),
    ("D", BLACK, 0.7, 0.5, CHOSEN),
]


@pytest.mark.parametrize(("variant", "fill", "ratio", "threshold", "chosen"), VARIANTS)
def test_crops_equal_the_release(
    variant: str, fill: tuple[float, float, float], ratio: float, threshold: float, chosen: list[int]
) -> None:
    masks = G2["mask_prob"][list(chosen)] > threshold
    regions, region_masks, valid = crop_regions(IMAGE, masks, 224, fill, ratio)
    boxes = masks_to_boxes(masks)
    assert torch.equal(valid, G2[f"{variant}_valid"])
    assert torch.equal(boxes[valid].int(), G2[f"{variant}_bbox"])
    assert torch.equal(expand_boxes(boxes, ratio, *IMAGE.shape[1:])[valid].int(), G2[f"{variant}_crop_box_ltrb"])
    assert torch.equal(region_masks[valid], goldens.unpack(G2[f"{variant}_masks_packed"], -1, 224, 224))
    goldens.close("regions, 0 to 255", regions[valid][..., ::8, ::8], G2[f"{variant}_unnorm_s8"], 0, 1e-3)


def test_normalised_regions_equal_the_release() -> None:
    regions, _, valid = crop_regions(IMAGE, G2["mask_prob"] > 0.5, 224, MEAN)
    mean, std = torch.tensor(MEAN), 255 * torch.tensor((0.26862954, 0.26130258, 0.27577711))
    normalised = (regions[valid] - mean[:, None, None]) / std[:, None, None]
    goldens.close("regions, normalised", normalised[..., ::4, ::4], G2["A_regions_s4"], 0, 2e-5)
    goldens.close("regions, normalised", normalised[0], G2["A_region0_full"], 0, 2e-5)


def test_empty_masks_keep_a_row_of_plain_fill() -> None:
    masks = torch.zeros(3, 60, 84, dtype=torch.bool)
    masks[1, 5:9, 7:20] = True
    regions, region_masks, valid = crop_regions(IMAGE, masks, 8, MEAN)
    assert valid.tolist() == [False, True, False]
    torch.testing.assert_close(regions[0], torch.tensor(MEAN)[:, None, None].expand(3, 8, 8))
    assert not region_masks[0].any() and bool(region_masks[1].all())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_thin_images(shape: tuple[int, int]) -> None:
    image = torch.rand(3, *shape)
    regions, region_masks, valid = crop_regions(image, torch.ones(1, *shape, dtype=torch.bool), 4)
    assert valid.all() and region_masks.all() and bool(regions.isfinite().all())
    if shape == (1, 1):
        torch.testing.assert_close(regions[0], image.expand(3, 4, 4))


@pytest.mark.parametrize(("at_once", "ratio"), [(2**24, 1.0), (2000, 1.3), (1, 0.8)])
def test_regions_equal_those_that_torch_resizes_one_by_one(
    at_once: int, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes of all shapes, cut together, in parts, and alone."""
    monkeypatch.setattr("ovseg.cropping.TABLE_VALUES", 3 * at_once)
    generator = torch.Generator().manual_seed(0)
    image, masks = torch.rand(3, 50, 70, generator=generator), torch.zeros(40, 50, 70, dtype=torch.bool)
    for mask in masks[1:]:
        x0, y0 = (int(torch.randint(0, side - 1, (), generator=generator)) for side in (70, 50))
        height, width = torch.randint(1, 70, (2,), generator=generator).tolist()
        part = mask[y0 : y0 + height, x0 : x0 + width]
        part[:] = torch.rand(part.shape, generator=generator) < 0.7
    regions, region_masks, valid = crop_regions(image, masks, 24, BLACK, ratio)
    for index, (x0, y0, x1, y1) in enumerate(expand_boxes(masks_to_boxes(masks), ratio, 50, 70).tolist()):
        assert bool(valid[index]) == (x1 > x0 and y1 > y0)
        if valid[index]:
            box = masks[index, y0:y1, x0:x1]
            pixels = (image[:, y0:y1, x0:x1] * box)[None]
            expected = F.interpolate(pixels, (24, 24), mode="bicubic")[0]
            torch.testing.assert_close(regions[index], expected, rtol=0, atol=1e-5)
            assert torch.equal(region_masks[index], F.interpolate(box[None, None].float(), (24, 24))[0, 0] > 0)
        else:
            assert not regions[index].any() and not region_masks[index].any()


def test_no_masks() -> None:
    regions, region_masks, valid = crop_regions(IMAGE, torch.zeros(0, 60, 84, dtype=torch.bool), 4)
    assert regions.shape == (0, 3, 4, 4) and region_masks.shape == (0, 4, 4) and valid.shape == (0,)


def test_boxes_by_hand() -> None:
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 6] = True
    assert masks_to_boxes(masks).tolist() == [[2, 1, 6, 3], [6, 4, 7, 5], [0, 0, 0, 0]]
    assert expand_boxes(torch.tensor([[2, 1, 6, 3]]), 2.0, 5, 7).tolist() == [[0, 0, 7, 4]]
