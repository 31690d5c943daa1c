"""Tests of region-text batches: regions and masks are augmented together and reproducibly."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ovseg import rle
from ovseg.data.pairs import region_transform, regions, write_pairs
from ovseg.data.pairs.datamodule import PairSampling, RegionTextDataModule
from ovseg.data.pairs.region_transform import RegionTransform
from ovseg.images import read_image, to_tensor
from ovseg.ops import CLIP_MEAN, crop_regions, masks_to_boxes
from ovseg.structures import InputError, RegionTextBatch, RegionTextPair

COUNT = 11
SIZE = (24, 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for index in range(COUNT):
        if index % 2 == 0:
            pixels = torch.randint(0, 256, (*SIZE, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / f"{index // 2}.png")
        mask = torch.zeros(1, *SIZE, dtype=torch.bool)
        mask[:, 2 : 14 + index, 3:20] = torch.rand(12 + index, 17, generator=generator)[: SIZE[0] - 2] > 0.3
        x0, y0, x1, y1 = masks_to_boxes(mask)[0].tolist()
        pairs.append(
            RegionTextPair(
                index // 2,
                f"{index // 2}.png",
                SIZE,
                rle.encode(mask)[0],
                (x0, y0, x1, y1),
                f"noun{index}",
                index,
                0.2,
                0,
                1,
            )
        )
    write_pairs(tmp_path / "pairs", pairs)
    return tmp_path


def prepared_data(folder: Path, **options: Any) -> RegionTextDataModule:
    data = RegionTextDataModule(
        folder / "pairs", folder, **{"transform": RegionTransform(16), "total_batch_size": 4, **options}
    )
    data.setup("fit")
    return data


def equal_batches(a: RegionTextBatch, b: RegionTextBatch) -> bool:
    return torch.equal(a.regions, b.regions) and torch.equal(a.region_masks, b.region_masks) and a.texts == b.texts


def test_batches_hold_distinct_pairs_with_their_text_ids(folder: Path) -> None:
    batches = list(prepared_data(folder).train_dataloader())
    assert [len(batch.texts) for batch in batches] == [4, 4]  # the last, short batch is dropped
    assert len({text for batch in batches for text in batch.texts}) == 8
    texts = prepared_data(folder).texts
    assert texts == sorted(f"noun{index}" for index in range(COUNT))
    assert all([texts[index] for index in batch.text_ids.tolist()] == batch.texts for batch in batches)
    assert batches[0].regions.shape == (4, 3, 16, 16)
    assert batches[0].region_masks.shape == (4, 16, 16)
    assert batches[0].region_masks.dtype == torch.bool
    (small,) = prepared_data(folder, total_batch_size=32).train_dataloader()
    assert len(small.texts) == COUNT  # a short batch is kept if it is the only one


def test_without_augmentation_regions_equal_those_of_inference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_transform, "SCALE", (1.0, 1.0))
    monkeypatch.setattr(region_transform, "RATIO", (0.1, 10.0))
    data = prepared_data(folder)
    for key, pair in enumerate(data.dataset.pairs):
        # the box is the only crop with its own area that fits, and the fallback of RandomResizedCrop is the box, too
        sample = data.dataset[key]
        image = to_tensor(Image.open(folder / pair.file_name))
        expected, expected_masks, _ = crop_regions(image, rle.decode([pair.counts], SIZE), 16)
        assert torch.allclose(sample.region, expected[0], atol=1e-6)
        assert torch.equal(sample.region_mask, expected_masks[0])


def test_the_mask_is_cropped_like_the_region() -> None:
    crop = torch.ones(3, 150, 140)
    mask = torch.zeros(1, 150, 140, dtype=torch.bool)
    mask[:, 15:90, 40:105] = True
    region, region_mask = RegionTransform().augment(crop, mask, 140)
    colour = torch.tensor(CLIP_MEAN)[:, None, None]
    foreground = ((region - colour) / (1 - colour)).mean(0) > 0.5  # closer to the image than to the fill colour
    assert (foreground == region_mask).float().mean() > 0.98  # they may differ along the border
    assert 0 < region_mask.float().mean() < 1


def test_the_mask_of_a_thin_diagonal_region_is_never_empty() -> None:
    mask = torch.zeros(1, 10, 200, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 9, 199] = True  # nothing in the centre
    _, region_mask = RegionTransform().augment(torch.rand(3, 10, 200), mask, 20)
    assert region_mask.any()


def test_order_and_augmentation_follow_seed_and_epoch(folder: Path) -> None:
    def two_epochs(**options: Any) -> list[RegionTextBatch]:
        loader = prepared_data(folder, **options).train_dataloader()
        return [*loader, *loader]

    first, repeated, in_workers, other_seed = (
        two_epochs(),
        two_epochs(),
        two_epochs(num_workers=2),
        two_epochs(seed=7),
    )
    torch.manual_seed(1)  # the process's generator has no influence
    assert all(map(equal_batches, first, repeated))
    assert all(map(equal_batches, first, in_workers))
    assert not any(map(equal_batches, first, other_seed))
    assert not any(map(equal_batches, first[:2], first[2:]))


def test_the_seed_defaults_to_that_of_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    default, seven, zero = (list(prepared_data(folder, seed=seed).train_dataloader()) for seed in (None, 7, 0))
    assert all(map(equal_batches, default, seven))
    assert not any(map(equal_batches, default, zero))


def test_pairs_of_an_image_are_consecutive_and_decode_it_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def recording_read(path: Path) -> Image.Image:
        decoded.append(path.name)
        return read_image(path)

    monkeypatch.setattr(regions, "read_image", recording_read)
    image_of = {pair.noun: pair.file_name for pair in prepared_data(folder).dataset.pairs}
    (batch,) = prepared_data(folder, total_batch_size=COUNT).train_dataloader()
    order = [image_of[text] for text in batch.texts]
    assert sorted(batch.texts) == sorted(image_of)  # each pair once
    assert [name for name, _ in groupby(order)] == decoded and len(decoded) == 6
    decoded.clear()
    (batch,) = prepared_data(folder, total_batch_size=COUNT, sampling=PairSampling(by_image=False)).train_dataloader()
    assert len(list(groupby(image_of[text] for text in batch.texts))) > 6  # drawn independently
    assert len(decoded) == 6


def test_a_sample_does_not_depend_on_the_rest_of_its_batch(folder: Path) -> None:
    def samples(by_image: bool) -> list[dict[str, tuple[Tensor, Tensor]]]:
        loader = prepared_data(
            folder, total_batch_size=COUNT, sampling=PairSampling(by_image=by_image)
        ).train_dataloader()
        return [
            {text: (batch.regions[row], batch.region_masks[row]) for row, text in enumerate(batch.texts)}
            for batch in (*loader, *loader)
        ]

    for by_image, independent in zip(samples(True), samples(False), strict=True):
        assert by_image.keys() == independent.keys()
        for text, (region, mask) in by_image.items():
            assert torch.equal(region, independent[text][0]) and torch.equal(mask, independent[text][1])


def test_augmentation_differs_between_epochs(folder: Path) -> None:
    dataset = prepared_data(folder).dataset
    assert torch.equal(dataset[3].region, dataset[3].region)
    assert not torch.equal(dataset[3].region, dataset[3 + len(dataset)].region)
    assert dataset[3].text == dataset[3 + len(dataset)].text


def test_augmentation_does_not_advance_the_generator(folder: Path) -> None:
    dataset = prepared_data(folder).dataset
    before = torch.get_rng_state()
    dataset[0]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("size", "expected"), [(None, [12, 20]), (16, [16, 16])])
def test_regions_have_clips_resolution_unless_the_transform_sets_a_size(
    folder: Path, size: int | None, expected: list[int]
) -> None:
    data, sizes = RegionTextDataModule(folder / "pairs", folder, RegionTransform(size)), []
    for resolution in (12, 20):
        data.setup("fit")
        data.configure(size=resolution)
        sizes.append(data.dataset[0].region.shape[1])
    assert sizes == expected


def test_sampling_filters_the_pairs(folder: Path) -> None:
    with pytest.raises(InputError, match=r"similarity of at least 0\.9; lower sampling\.min_similarity"):
        prepared_data(folder, sampling=PairSampling(min_similarity=0.9))
    assert len(prepared_data(folder, sampling=PairSampling(max_per_noun=1)).dataset) == COUNT


def test_numbers_below_one_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"size is 0; give at least 1"):
        RegionTransform(size=0)
    with pytest.raises(InputError, match=r"max_per_noun is 0; give at least 1"):
        PairSampling(max_per_noun=0)
    with pytest.raises(InputError, match=r"total_batch_size is 0; give at least 1"):
        prepared_data(folder, total_batch_size=0)


def test_errors_name_the_file(folder: Path) -> None:
    dataset = prepared_data(folder).dataset
    Image.new("RGB", (5, 5)).save(folder / "0.png")
    with pytest.raises(InputError, match=r"0\.png is 5 x 5 pixels but was mined at 32 x 24"):
        dataset[0]
    damaged = dataset.pairs[2]._replace(counts=b"231")
    with pytest.raises(InputError, match=r"the mask of 'noun2' in .*1\.png is damaged \(run lengths do not fit"):
        dataset._cut(damaged, Image.new("RGB", SIZE[::-1]))
    (folder / "2.png").unlink()
    prepared_data(folder)  # runs in every process; only `prepare_data`, once per machine, checks the images
    with pytest.raises(InputError, match=r"1 of 6 images .* the first is 2\.png"):
        RegionTextDataModule(folder / "pairs", folder).prepare_data()
    with pytest.raises(InputError, match=r"pairs not found in .* run `ovseg mine --config conf/mine.yaml --out "):
        RegionTextDataModule(folder / "none", folder).setup("fit")
