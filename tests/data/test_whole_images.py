"""Tests of batches of whole images: images and masks are cropped together, and a pair does not depend on its batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ovseg import rle
from ovseg.data.loading import seeded
from ovseg.data.pairs import whole_images, write_pairs
from ovseg.data.pairs.datamodule import PairSampling, RegionTextDataModule
from ovseg.data.pairs.region_transform import RegionTransform
from ovseg.data.pairs.whole_images import draw_window
from ovseg.images import read_image, to_tensor
from ovseg.ops import masks_to_boxes
from ovseg.structures import ImageTextBatch, InputError, RegionTextPair

SIZE = (60, 80)
COUNT = 14  # pairs, three per image and two of the last; the third mask of an image is its corner pixel


def pair_masks() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(COUNT, *SIZE, dtype=torch.bool)
    for index, mask in enumerate(masks):
        if index % 3 == 2:
            mask[0, 0] = True
        else:
            mask[5 : 30 + index, 10:50] = torch.rand(25 + index, 40, generator=generator) > 0.3
    return list(masks)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose red channel is the first mask, and whose green and blue channels are the coordinates."""
    masks, pairs = pair_masks(), []
    for index, mask in enumerate(masks):
        if index % 3 == 0:
            rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
            pixels = np.stack([mask.numpy() * 255, rows, columns], axis=2).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{index // 3}.png")
        x0, y0, x1, y1 = masks_to_boxes(mask[None])[0].tolist()
        counts, name = rle.encode(mask[None])[0], f"{index // 3}.png"
        pairs.append(RegionTextPair(index, name, SIZE, counts, (x0, y0, x1, y1), f"noun{index:02}", 0, 0.2, 0, 1))
    write_pairs(tmp_path / "pairs", pairs)
    return tmp_path


def prepared_data(folder: Path, total_batch_size: int = COUNT, **options: Any) -> RegionTextDataModule:
    data = RegionTextDataModule(folder / "pairs", folder, total_batch_size=total_batch_size, **options)
    data.setup("fit")
    data.configure(size=32, whole_images=True)
    return data


def by_text(batch: ImageTextBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the image and the mask of each text."""
    images = [image for image, masks in zip(batch.images, batch.masks, strict=True) for _ in masks]
    masks = [mask for masks in batch.masks for mask in masks]
    assert len(images) == len(batch.texts) == len(set(batch.texts))
    return dict(zip(batch.texts, zip(images, masks, strict=True), strict=True))


def equal(a: dict[str, tuple[Tensor, Tensor]], b: dict[str, tuple[Tensor, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, y) for text in a for x, y in zip(a[text], b[text], strict=True))


def test_a_batch_has_each_image_once_with_all_its_pairs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(whole_images, "SCALE", (1.0, 1.0))
    monkeypatch.setattr(whole_images, "read_image", lambda path: (decoded.append(path.name), read_image(path))[1])
    data = prepared_data(folder)
    (batch,) = data.train_dataloader()
    assert sorted(decoded) == [f"{index}.png" for index in range(5)]
    assert [len(masks) for masks in batch.masks] == [2 if name == "4.png" else 3 for name in decoded]
    assert [data.texts[index] for index in batch.text_ids.tolist()] == batch.texts
    for name, image in zip(decoded, batch.images, strict=True):
        assert torch.equal(image, to_tensor(Image.open(folder / name)))
    samples = by_text(batch)
    assert all(torch.equal(samples[f"noun{index:02}"][1], mask) for index, mask in enumerate(pair_masks()))
    assert samples["noun00"][1].dtype == torch.bool and batch.text_ids.dtype == torch.int64


def test_an_image_and_its_masks_are_cut_by_one_window(folder: Path) -> None:
    shapes = set()
    for batch in (*(loader := prepared_data(folder).train_dataloader()), *loader):
        for text, (image, mask) in by_text(batch).items():
            rows, columns = (image[1, :, 0] * 255).round().long(), (image[2, 0] * 255).round().long()
            expected = pair_masks()[int(text[4:])][rows][:, columns]
            assert torch.equal(mask, expected) and mask.any()
            shapes.add(tuple(mask.shape))
    assert len(shapes) > 5
    assert all(0.87 < height * width / (SIZE[0] * SIZE[1]) <= 1 for height, width in shapes)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (60, 80), (500, 37)])
def test_a_window_fits_into_the_image(size: tuple[int, int]) -> None:
    ratios = []
    for key in range(200):
        with seeded(key):
            rows, columns = draw_window(*size)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert 0 <= rows.start < rows.stop <= size[0] and 0 <= columns.start < columns.stop <= size[1]
        ratios.append(height / size[0] / (width / size[1]))
    if min(size) > 50:
        assert min(ratios) < 0.94 and max(ratios) > 1.06


def test_a_mask_outside_the_window_keeps_the_whole_image(folder: Path) -> None:
    whole = cropped = 0
    for batch in (*(loader := prepared_data(folder).train_dataloader()), *loader, *loader):
        samples = by_text(batch)
        for corner in range(2, COUNT, 3):
            (image, _), (of_neighbour, _) = samples[f"noun{corner:02}"], samples[f"noun{corner - 1:02}"]
            whole += image.shape[1:] == SIZE
            cropped += of_neighbour.shape[1:] != SIZE
    assert whole > 5 and cropped > 5


@pytest.mark.parametrize("sampling", [PairSampling(), PairSampling(by_image=False)], ids=["grouped", "drawn"])
def test_a_pair_does_not_depend_on_the_rest_of_its_batch(folder: Path, sampling: PairSampling) -> None:
    (together,) = prepared_data(folder).train_dataloader()
    parts = list(prepared_data(folder, 2, sampling=sampling).train_dataloader())
    assert [len(part.texts) for part in parts] == [2] * 7
    assert sum(len(part.images) for part in parts) < 13  # grouped whatever `by_image` says
    assert equal({text: sample for part in parts for text, sample in by_text(part).items()}, by_text(together))


def test_order_and_windows_follow_seed_and_epoch(folder: Path) -> None:
    def two_epochs(**options: Any) -> list[dict[str, tuple[Tensor, Tensor]]]:
        loader = prepared_data(folder, 7, **options).train_dataloader()
        return [by_text(batch) for batch in (*loader, *loader)]

    first, in_workers, other_seed = two_epochs(), two_epochs(num_workers=2), two_epochs(seed=7)
    assert all(map(equal, first, in_workers))
    assert not any(map(equal, first, other_seed))
    assert not equal(first[0] | first[1], first[2] | first[3])


def test_large_images_are_reduced_and_small_masks_survive(folder: Path) -> None:
    batch = prepared_data(folder, transform=RegionTransform(size=30)).dataset[2]  # its mask is one pixel
    ((image, mask),) = by_text(batch).values()
    assert image.shape[1:] == mask.shape == (30, 40) and mask.any()
    (image, mask), *_ = by_text(prepared_data(folder, transform=RegionTransform(size=30)).dataset[0]).values()
    assert ((image[0] > 0.5) == mask).float().mean() > 0.8  # reduced by other filters


def test_crops_cannot_replace_whole_images(folder: Path) -> None:
    (folder / "released.csv").write_text("filepath\ttitle\n0.png\tbicycle\n")
    data = RegionTextDataModule(folder / "released.csv", folder)
    data.setup("fit")
    with pytest.raises(InputError, match=r"released\.csv lists crops, but .* mine pairs with `ovseg mine`, or use ov"):
        data.configure(size=32, whole_images=True)
    with pytest.raises(InputError, match=r"transform\.resize is 'release', which applies to crops, .*; remove it"):
        prepared_data(folder, transform=RegionTransform(resize="release"))


def test_errors_name_the_file(folder: Path) -> None:
    dataset = prepared_data(folder).dataset
    Image.new("RGB", (5, 5)).save(folder / "0.png")
    with pytest.raises(InputError, match=r"0\.png is 5 x 5 pixels but was mined at 80 x 60"):
        dataset[0]
