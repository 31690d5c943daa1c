"""Tests of reading images, their size limit, and the datamodule of plain images."""

from __future__ import annotations

import os
import resource
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from ovseg.data.base import ShardSampler
from ovseg.data.images import ImagesDataModule, find_images
from ovseg.data.labels import read_png
from ovseg.images import open_image, read_image, resize_short_side, short_side_size, to_tensor
from ovseg.structures import InputError


def colour(image: Image.Image, x: int = 0, y: int = 0) -> Any:
    return image.getpixel((x, y))


def test_greyscale_becomes_three_equal_channels() -> None:
    assert colour(read_image(Image.new("L", (2, 2), 90))) == (90, 90, 90)


def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    Image.fromarray(values).save(tmp_path / "deep.tif")
    expected = np.round(values / 257)[..., None].repeat(3, -1)
    wide, big_endian = Image.fromarray(values.astype(np.int32)), values.astype(">u2")
    for source in (tmp_path / "deep.png", tmp_path / "deep.tif", values, big_endian, wide):
        assert (np.asarray(read_image(source)) == expected).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red, green, blue = colour(read_image(tmp_path / "print.jpg"), 8, 8)
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    image.convert(mode).save(tmp_path / "logo.png")
    read = read_image(tmp_path / "logo.png")
    assert (colour(read, 0), colour(read, 1)) == ((0, 0, 0), (255, 255, 255))


def test_palette_indices_become_colours() -> None:
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert colour(read_image(image)) == (200, 100, 50)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise
    image.save(tmp_path / "phone.png", exif=exif)
    read = read_image(tmp_path / "phone.png")
    assert read.size == (8, 16)
    assert (colour(read, 4, 2), colour(read, 4, 14)) == ((255,) * 3, (0,) * 3)


@pytest.mark.parametrize(
    "array",
    [
        np.full((2, 3), 128, np.uint8),
        np.full((2, 3, 1), 128, np.uint8),
        np.full((2, 3, 3), 128 / 255),
        np.full((2, 3), 128 * 257, np.uint16),
    ],
)
def test_arrays_of_different_shapes_and_dtypes_give_the_same_image(array: np.ndarray) -> None:
    assert (np.asarray(read_image(array)) == np.full((2, 3, 3), 128)).all()


def test_extreme_sizes_raise_no_warning(tmp_path: Path) -> None:
    Image.new("1", (8000, 8000)).save(tmp_path / "large.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "large.png").size == (8000, 8000)
        assert [batch.sizes for batch in ImagesDataModule(str(tmp_path), "cat", (8, 32)).predict_dataloader()] == [
            [(1, 1)],
            [(8000, 8000)],
        ]


def huge_png(path: Path, side: int = 20_000) -> Path:
    """Write a black PNG by hand, because Pillow would allocate the whole image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))  # one bit per pixel
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def sized_bmp(path: Path, width: int, height: int) -> Path:
    """Write a BMP whose header declares width × height pixels."""
    Image.new("RGB", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", width, height)
    path.write_bytes(content)
    return path


def test_a_small_file_with_a_huge_image_is_refused_before_decoding(tmp_path: Path) -> None:
    path = huge_png(tmp_path / "bomb.png")
    assert path.stat().st_size < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"bomb\.png has 20,000 x 20,000 pixels, more than 100 megapixels; resize it"):
        read_image(path)
    with pytest.raises(InputError, match=r"bomb\.png has 20,000 x 20,000 pixels"):
        read_png(path)
    # in KiB; one byte per pixel would take 381 MiB, and RGB 1,144 MiB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200 * 1024


def test_the_size_limit_replaces_pillows_and_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(width: int, height: int) -> tuple[int, int]:
        with open_image(sized_bmp(tmp_path / "large.bmp", width, height)) as image:
            return image.size

    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns from 89 megapixels on, and raises from 179 on
        assert opened(10_000, 10_000) == (10_000, 10_000)
        with pytest.raises(InputError, match=r"large\.bmp has 10,000 x 10,001 pixels, more than 100 megapixels"):
            opened(10_000, 10_001)
        monkeypatch.setenv("OVSEG_MAX_MEGAPIXELS", "400")
        assert opened(20_000, 20_000) == (20_000, 20_000)
        with pytest.raises(InputError, match="more than 400 megapixels; resize it, or set OVSEG_MAX_MEGAPIXELS"):
            opened(20_001, 20_000)
        monkeypatch.setenv("OVSEG_MAX_MEGAPIXELS", "0.0001")
        with pytest.raises(InputError, match=r"more than 0\.0001 megapixels"):
            opened(11, 10)
    assert before == Image.MAX_IMAGE_PIXELS
    for wrong in ("many", "-1", "nan"):
        monkeypatch.setenv("OVSEG_MAX_MEGAPIXELS", wrong)
        with pytest.raises(InputError, match=f"OVSEG_MAX_MEGAPIXELS is '{wrong}'; give a number of megapixels"):
            opened(1, 1)


def test_threads_read_concurrently_without_changing_pillows_limit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    before, barrier = Image.MAX_IMAGE_PIXELS, threading.Barrier(2, timeout=20)

    def read(_: int) -> tuple[int | None, bool]:
        with open_image(tmp_path / "x.png") as image:
            barrier.wait()  # both threads have the file open
            during = Image.MAX_IMAGE_PIXELS
            barrier.wait()
            return during, bool((np.asarray(image) == noise).all())

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(read, range(2))) == [(before, True)] * 2
    assert before == Image.MAX_IMAGE_PIXELS


def test_other_formats_are_refused_whatever_the_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Pillow's default formats PostScript starts Ghostscript, for which a script stands in here."""
    marker, script = tmp_path / "ran", tmp_path / "bin" / "gs"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # makes Pillow search for it again
    path = tmp_path / "x.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\n%%EOF\n")
    with pytest.raises(InputError, match=r"x\.png is not an image"):
        read_image(path)
    assert not marker.exists()
    with pytest.raises(OSError), Image.open(path) as image:  # noqa: PT011 (the script draws nothing)
        image.load()
    assert marker.exists()  # Pillow's default runs it
    for kind in ("PCX", "TGA", "ICO", "SGI", "PDF"):
        Image.new("RGB", (16, 16)).save(path, kind)
        with pytest.raises(InputError, match=r"x\.png is not an image"):
            read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "MPO"])
def test_image_formats_are_read_whatever_the_file_name(kind: str, tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (16, 8), colour) for colour in ("red", "blue"))
    several = {"save_all": True, "append_images": [second]} if kind in ("GIF", "MPO", "TIFF", "WEBP", "PNG") else {}
    first.save(tmp_path / "x.dat", kind, **several)
    with open_image(tmp_path / "x.dat") as image:
        assert (image.format, image.size) == (kind, (16, 8))
    red, green, blue = colour(read_image(tmp_path / "x.dat"), 8, 4)
    assert red > 240 and max(green, blue) < 15


def test_files_and_arrays_that_are_no_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for suffix in ("jpg", "png"):
        Image.fromarray(noise).save(tmp_path / f"intact.{suffix}")
        content = (tmp_path / f"intact.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    for name in ("notes.jpg", "empty.png", "cut.jpg", "cut.png", "missing.jpg"):
        with pytest.raises(InputError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)
    for array in (np.full((2, 2), 7.0), np.full((2, 2), 7), np.full((2, 2), np.nan)):
        with pytest.raises(InputError, match=r"give uint8, uint16 or floating point"):
            read_image(array)
    with pytest.raises(InputError, match="more than 16 bits"):
        read_image(Image.new("I", (2, 2), 70000))
    with pytest.raises(InputError, match=r"shape \(2, 2, 5\)"):
        read_image(np.zeros((2, 2, 5), np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (640, 853)),  # 640 / 480 * 640 = 853.33
        ((640, 427), (959, 640)),  # 640 / 427 * 640 = 959.25
        ((100, 1000), (256, 2560)),  # the long side is limited
        ((1, 1), (640, 640)),
        ((1, 8000), (4, 2560)),  # 0.32 pixels are raised to one patch
        ((8000, 1), (2560, 4)),
    ],
)
def test_short_side_rule_by_hand(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert short_side_size(size, 640, 2560) == expected
    if max(size) < 2000:
        resized = resize_short_side(Image.new("RGB", size[::-1]), 640, 2560)
        assert (resized.height, resized.width) == expected


def test_to_tensor_scales_pixels_to_one() -> None:
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 3)
    assert tensor.dtype == torch.float32
    assert tensor[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_files_and_folders_are_expanded_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images([str(tmp_path / "b.JPG"), str(tmp_path)])] == ["b.JPG", "a.png", "b.JPG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no image"):
        find_images(str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"c\.png does not exist"):
        find_images([str(tmp_path / "c.png")])
    with pytest.raises(InputError, match="no images given"):
        find_images([])


def test_the_datamodule_yields_distinct_images_with_their_sizes(tmp_path: Path) -> None:
    for name, size in (("a.png", (40, 20)), ("b.jpg", (10, 30))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    data = ImagesDataModule([str(tmp_path), str(tmp_path / "a.png")], "cat, sofa", resize=(8, 100))
    batches = list(data.predict_dataloader())
    assert data.vocabulary.names == ("cat", "sofa")
    assert [batch.names for batch in batches] == [[str(tmp_path / "a.png")], [str(tmp_path / "b.jpg")]]
    assert [batch.sizes for batch in batches] == [[(20, 40)], [(30, 10)]]
    assert [tuple(batch.images[0].shape) for batch in batches] == [(3, 8, 16), (3, 24, 8)]
    assert [batch.labels for batch in batches] == [[], []]


def test_the_datamodule_refuses_wrong_input_when_it_is_built(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="empty"):
        ImagesDataModule(str(tmp_path), "")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.bmp")
    with pytest.raises(InputError, match=r"a\.bmp and .*a\.png would be written to the same file"):
        ImagesDataModule(str(tmp_path), "cat")


def test_a_broken_image_becomes_a_fault_of_its_batch(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    Image.new("RGB", (4, 6)).save(tmp_path / "b.png")
    broken, intact = ImagesDataModule(str(tmp_path), "cat", (8, 100)).predict_dataloader()
    assert broken[:4] == ([], [], [], []) and "a.png is not an image" in broken.faults[0]
    assert intact.names == [str(tmp_path / "b.png")] and intact.faults == ()


@pytest.mark.parametrize("samples", [0, 1, 5, 8])
def test_shards_cover_every_sample_once(samples: int) -> None:
    shards = [ShardSampler(range(samples), num_replicas=3, rank=rank, shuffle=False) for rank in range(3)]  # type: ignore[arg-type]
    assert sorted(index for shard in shards for index in shard) == list(range(samples))
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]
