"""Tests of the released pairs: crops filled outside the region, and a tab-separated table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg import rle
from ovseg.data.pairs import describe, write_page, write_pairs
from ovseg.data.pairs.datamodule import PairSampling, RegionTextDataModule
from ovseg.data.pairs.region_transform import RegionTransform
from ovseg.data.pairs.released import FILL, mask_by_colour, read_released
from ovseg.images import to_tensor
from ovseg.ops import masks_to_boxes
from ovseg.structures import InputError, RegionTextPair

SIZE = (40, 50)
NOUNS = ["bicycle", "null", "a dog's bowl", "bicycle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same pairs as a store and in the released format."""
    folder = tmp_path_factory.mktemp("released")
    generator = torch.Generator().manual_seed(0)
    (folder / "crops").mkdir()
    pairs, lines = [], ["title\tfilepath"]
    for index, noun in enumerate(NOUNS):
        pixels = torch.randint(0, 256, (*SIZE, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
        mask = torch.zeros(1, *SIZE, dtype=torch.bool)
        mask[:, 3 : 20 + 4 * index, 5:40] = torch.rand(17 + 4 * index, 35, generator=generator) > 0.4
        x0, y0, x1, y1 = masks_to_boxes(mask)[0].tolist()
        filled = np.where(mask[0, ..., None].numpy(), pixels, np.uint8(FILL))[y0:y1, x0:x1]
        Image.fromarray(filled).save(folder / "crops" / f"{index}.png")
        box = (x0, y0, x1, y1)
        pairs.append(RegionTextPair(index, f"{index}.png", SIZE, rle.encode(mask)[0], box, noun, index, 0.2, 0, 1))
        lines.append(f"{noun}\tcrops/{index}.png")
    write_pairs(folder / "pairs", pairs)
    (folder / "released.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def data(folder: Path, pairs: str, **options: Any) -> RegionTextDataModule:
    module = RegionTextDataModule(
        folder / pairs, folder, **{"transform": RegionTransform(32), "total_batch_size": 4, **options}
    )
    module.setup("fit")
    return module


def test_released_crops_give_the_same_samples_as_images_with_masks(folder: Path) -> None:
    mined_pairs, released_pairs = data(folder, "pairs").dataset, data(folder, "released.csv").dataset
    for key in range(2 * len(NOUNS)):
        mined, released = mined_pairs[key], released_pairs[key]
        assert mined.text == released.text == NOUNS[key % len(NOUNS)]
        assert torch.equal(mined.region, released.region)
        assert torch.equal(mined.region_mask, released.region_mask)


def test_released_pairs_can_be_batched_and_filtered(folder: Path) -> None:
    (batch,) = data(folder, "released.csv").train_dataloader()
    assert sorted(batch.texts) == sorted(NOUNS) and batch.regions.shape == (4, 3, 32, 32)
    filtered = data(folder, "released.csv", sampling=PairSampling(max_per_noun=1)).dataset.pairs
    assert sorted(pair.noun for pair in filtered) == sorted({*NOUNS})
    with pytest.raises(InputError, match=r"no pair in .*released\.csv has a similarity of at least 0\.1"):
        data(folder, "released.csv", sampling=PairSampling(min_similarity=0.1))


def test_the_mask_is_where_the_colour_differs_from_the_fill() -> None:
    crop = to_tensor(Image.new("RGB", (3, 2), FILL))
    crop[:, 1, 2] += torch.tensor([0, 0, 1 / 255])
    assert mask_by_colour(crop).tolist() == [[False, False, False], [False, False, True]]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("filepath,title\na.png,dog\n", "has no column 'filepath' and no column 'title'"),
        ("filepath\tcaption\na.png\tdog\n", "has no column 'title'"),
        ("filepath\ttitle\n", "contains no pairs"),
        ("", "cannot be read as a table"),
        ("filepath\ttitle\na.png\tdog\tcat\n", "cannot be read as a table"),
        ("filepath\ttitle\na.png\tdog\nb.png\t \n", "line 3 of .* has no title"),
        (
            'filepath\ttitle\na.png\tdog\nb.png\t"cat\nc.png\tsofa\n',
            "the quote in line 3 of .* is not closed in that line",
        ),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"pairs\.tsv.*{fault}|{fault}"):
        read_released(tmp_path / "pairs.tsv")


def test_a_binary_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_bytes(b"\x1f\x8bfilepath\ttitle\na.png\tdog\n")
    with pytest.raises(InputError, match=r"pairs\.tsv cannot be read as a table"):
        read_released(tmp_path / "pairs.tsv")


def test_released_pairs_can_be_described_and_shown(folder: Path, tmp_path: Path) -> None:
    lines = describe(folder / "released.csv")
    assert lines[0].startswith("4 pairs of 3 unique nouns") and not any("nan" in line for line in lines)
    assert write_page(folder / "released.csv", folder, tmp_path / "page.html") == 4
    with pytest.raises(InputError, match="give --images the folder"):
        write_page(folder / "released.csv", None, tmp_path / "page.html")


def test_missing_crops_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("filepath\ttitle\nnone/1.png\tdog\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"1 of 1 images .* the first is none/1\.png; give the folder"):
        RegionTextDataModule(tmp_path / "pairs.tsv", folder).prepare_data()
