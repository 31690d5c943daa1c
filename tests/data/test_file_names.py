"""Tests that files which name images cannot read images outside their folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ovseg import rle
from ovseg.data.captions.datamodule import CaptionDataModule
from ovseg.data.pairs import write_page, write_pairs
from ovseg.data.pairs.datamodule import RegionTextDataModule
from ovseg.data.partners import by_list
from ovseg.structures import InputError, RegionTextPair

SIZE = (20, 30)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder with images, next to a private image outside it."""
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images" / "part").mkdir(parents=True)
    for name in ("images/a..b.jpg", "images/part/c.jpg", "private.jpg", "images/\\x.jpg", "images/C:x.jpg"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / name)
    return tmp_path / "images"


def mask() -> tuple[bytes, ...]:
    return tuple(rle.encode(torch.ones(1, *SIZE, dtype=torch.bool)))


def captions(images: Path, name: str) -> Path:
    file = images.parent / "captions.json"
    annotations = [{"id": 1, "image_id": 1, "caption": "a dog"}]
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": name}], "annotations": annotations}))
    CaptionDataModule(images, file).prepare_data()
    return file


def instances(images: Path, name: str) -> Path:
    file = images.parent / "instances.json"
    segmentation = {"size": SIZE, "counts": mask()[0].decode()}
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}]
    content = {"images": [{"id": 1, "file_name": name}], "categories": [{"id": 1, "name": "dog"}]}
    file.write_text(json.dumps({**content, "annotations": annotations}))
    CaptionDataModule(images, masks=file).setup("predict")
    return file


def store(images: Path, name: str) -> Path:
    folder = images.parent / "pairs"
    pair = RegionTextPair(1, name, SIZE, mask()[0], (0, 0, 30, 20), "dog", 1, 0.2, 0, 1)
    if not folder.exists():
        write_pairs(folder, [pair])
    RegionTextDataModule(folder, images).prepare_data()
    return folder / "pairs-00000.parquet"


def page(images: Path, name: str) -> Path:
    folder = images.parent / "pairs"
    pair = RegionTextPair(1, name, SIZE, mask()[0], (0, 0, 30, 20), "dog", 1, 0.2, 0, 1)
    write_pairs(folder, [pair])
    write_page(folder, images, images.parent / "page.html")
    return folder / "pairs-00000.parquet"


def table(images: Path, name: str) -> Path:
    file = images.parent / "table.csv"
    file.write_text(f"filepath\ttitle\n{name}\tdog\n")
    RegionTextDataModule(file, images).prepare_data()
    return file


def split(images: Path, name: str) -> Path:
    file = images.parent / "val.txt"
    file.write_text(name.removesuffix(".jpg"))
    by_list(file, images, images, ".jpg", "unpack it again")
    return file


READERS = [captions, instances, store, page, table, split]  # each writes a file that names an image, and reads it


@pytest.mark.parametrize("reader", READERS)
def test_names_that_leave_the_folder_are_refused(reader: Callable[[Path, str], Path], images: Path) -> None:
    files = {captions: "captions.json", instances: "instances.json", table: "table.csv", split: "val.txt"}
    name = images.parent / "private.jpg"
    file = images.parent / files.get(reader, "pairs/pairs-00000.parquet")
    with pytest.raises(InputError) as error:
        reader(images, str(name))
    assert str(error.value).startswith(f"{file} names the image '{str(name).removesuffix('.jpg')}")
    assert str(error.value).endswith("; write names relative to that folder, with / and without '..'")
    assert not (images.parent / "page.html").exists()


@pytest.mark.parametrize(
    "name", ["../private.jpg", "part/../../private.jpg", "part/../part/c.jpg", "\\x.jpg", "C:x.jpg"]
)
def test_every_way_out_of_the_folder_is_refused(name: str, images: Path) -> None:
    for reader in (captions, table, split):
        with pytest.raises(InputError, match="which may be outside the image folder"):
            reader(images, name)


def test_a_store_is_refused_on_every_read(images: Path) -> None:
    for _ in range(2):  # the first read could leave a mapped copy
        with pytest.raises(InputError, match="which may be outside the image folder"):
            store(images, "../private.jpg")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a..b.jpg", "part/c.jpg", "linked/c.jpg"])
def test_names_inside_the_folder_and_links_are_allowed(
    reader: Callable[[Path, str], Path], name: str, images: Path
) -> None:
    elsewhere = (images / "part").rename(images.parent / "elsewhere")
    for link in ("part", "linked"):
        (images / link).symlink_to(elsewhere)
    assert reader(images, name).is_file()


def test_names_too_long_for_a_file_are_refused(images: Path) -> None:
    for name in ("x" * 256, "part/" + "\N{DOG}" * 64, "x" * 5000):
        with pytest.raises(
            InputError, match=r"captions\.json names the image '.*'…, which is longer than a file name can be"
        ):
            captions(images, name)


def test_deeply_nested_json_is_refused(images: Path) -> None:
    file = images.parent / "captions.json"
    file.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"captions\.json is not JSON"):
        CaptionDataModule(images, file).prepare_data()
