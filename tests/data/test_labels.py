"""Tests of label files in every format, value by value."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from ovseg.data.labels import Coding, LabelFiles, coding_of, read_ade20k_full, read_label_map, read_png
from ovseg.structures import IGNORE_INDEX, WIDE_IGNORE_INDEX, InputError, Vocabulary


def label_files(path: Path, coding: Coding, size: tuple[int, int] = (1, 2)) -> LabelFiles:
    """Return the reader of one label file, with an image of `size` (H, W) next to it."""
    image = path.with_name("image.jpg")
    Image.new("RGB", size[::-1]).save(image)
    return LabelFiles({image: path}, coding, "words")


def read(path: Path, coding: Coding, size: tuple[int, int] = (1, 2)) -> list[list[int]]:
    labels = label_files(path, coding, size)
    indices: list[list[int]] = labels(labels.images[0], size).tolist()
    return indices


def save(path: Path, values: list[list[int]], dtype: type = np.uint8) -> Path:
    Image.fromarray(np.array(values, dtype)).save(path)
    return path


def words(count: int) -> Vocabulary:
    return Vocabulary(tuple(f"word {number}" for number in range(count)))


def test_palettes_are_read_as_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 15, 255]], np.uint8), mode="P")
    image.putpalette([value for index in range(256) for value in (index * 7 % 256, 200, index)])
    image.save(tmp_path / "x.png")
    assert read_png(tmp_path / "x.png").tolist() == [[0, 15, 255]]
    assert read(tmp_path / "x.png", Coding(range(1, 21), {0, 255}), (1, 3)) == [[255, 14, 255]]


def test_sixteen_bit_labels_ignore_65535(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", [[255, 846], [65535, 0]], np.uint16)
    labels = label_files(path, coding_of(words(847), "words"), (2, 2))
    assert labels.ignore_index == WIDE_IGNORE_INDEX
    assert labels(labels.images[0], (2, 2)).tolist() == [[255, 846], [WIDE_IGNORE_INDEX, 0]]
    save(path, [[847, 0], [1, 2]], np.uint16)
    with pytest.raises(InputError, match=r"x\.png has the value 847, which is not a class of words"):
        read(path, coding_of(words(847), "words"), (2, 2))


def test_255_is_a_class_from_256_classes_on(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", [[254, 255]])
    assert read(path, coding_of(words(255), "words")) == [[254, IGNORE_INDEX]]
    assert read(path, coding_of(words(256), "words")) == [[254, 255]]


def test_values_below_the_offset_are_unlabelled(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", [[0, 2]])
    assert read(path, coding_of(words(2), "words", offset=1)) == [[IGNORE_INDEX, 1]]
    with pytest.raises(InputError, match="hold 0 to 65,534; correct label_offset"):
        read(path, coding_of(words(2), "words", offset=-1))
    with pytest.raises(InputError, match="have the values 0 to 65,535"):
        read(path, coding_of(words(65536), "words"))


def test_ade20k_object_ids_are_decoded_from_colours(tmp_path: Path) -> None:
    # id 2978 = 11 * 256 + 162 has red 110 … 119; red 250 … 255 is the last block; blue distinguishes instances
    pixels = np.array([[[110, 162, 9], [119, 162, 0], [0, 3, 1]], [[250, 255, 2], [255, 255, 2], [0, 0, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x_seg.png")
    assert read_ade20k_full(tmp_path / "x_seg.png").tolist() == [[2978, 2978, 3], [6655, 6655, 0]]
    indices = read(tmp_path / "x_seg.png", Coding([3, 2978], range(26 * 256), read_ade20k_full), (2, 3))
    assert indices == [[1, 1, 0], [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]]
    with pytest.raises(InputError, match=r"grey\.png is not an RGB image; use the \*_seg\.png files as downloaded"):
        read_ade20k_full(save(tmp_path / "grey.png", [[1]]))


def test_matlab_label_maps_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    savemat(path, {"LabelMap": np.array([[0, 459], [1, 256]], np.uint16)}, do_compression=True)
    assert read_label_map(path).tolist() == [[0, 459], [1, 256]]
    wide = Coding(range(1, 460), {0}, read_label_map)
    assert read(path, wide, (2, 2)) == [[WIDE_IGNORE_INDEX, 458], [0, 255]]
    subset = Coding([256, 459], range(460), read_label_map)
    assert read(path, subset, (2, 2)) == [[IGNORE_INDEX, 1], [IGNORE_INDEX, 0]]
    savemat(path, {"LabelMap": np.array([[0, 460], [1, 256]], np.uint16)})
    with pytest.raises(InputError, match=r"x\.mat has the value 460"):
        read(path, wide, (2, 2))


@pytest.mark.parametrize("damage", ["other", "cut", "text", "empty", "missing"])
def test_damaged_label_maps_are_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    savemat(path, {"Other" if damage == "other" else "LabelMap": np.zeros((40, 50), np.uint16)}, do_compression=True)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:150], "text": b"a" * 400, "empty": b""}.get(damage, content))
    if damage == "missing":
        path.unlink()
    with pytest.raises(InputError, match=r"x\.mat has no readable LabelMap .*; unpack trainval\.tar\.gz again"):
        read_label_map(path)


@pytest.mark.parametrize(
    ("mode", "fault"), [("RGB", "3 channels of uint8"), ("LA", "2 channels of uint8"), ("F", "1 channels of float32")]
)
def test_images_that_are_no_labels_are_refused(mode: str, fault: str, tmp_path: Path) -> None:
    Image.new(mode, (2, 1)).save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match=rf"x\.tiff has {fault}; give labels with one channel of integers"):
        read(tmp_path / "x.tiff", coding_of(words(2), "words"))


@pytest.mark.parametrize("value", [-1, 70000])
def test_values_out_of_range_are_refused(value: int, tmp_path: Path) -> None:
    path = save(tmp_path / "x.tiff", [[1, value]], np.int32)
    with pytest.raises(InputError, match=rf"x\.tiff has the value {value}, which is not a class"):
        read(path, coding_of(words(300), "words"))


def test_label_sizes_are_compared_with_upright_images(tmp_path: Path) -> None:
    """The images are grey, 16-bit, CMYK, and rotated by their EXIF entry."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.new("L", (3, 2)).save(tmp_path / "grey.png")
    Image.fromarray(np.zeros((2, 3), np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (3, 2)).save(tmp_path / "cmyk.jpg")
    Image.new("RGB", (2, 3)).save(tmp_path / "rotated.jpg", exif=exif)
    label = save(tmp_path / "label.png", [[0, 1, 0], [1, 0, 1]])
    images = [tmp_path / name for name in ("grey.png", "deep.png", "cmyk.jpg", "rotated.jpg")]
    labels = LabelFiles(dict.fromkeys(images, label), coding_of(words(2), "words"), "words")
    assert [labels.fault(image) for image in images] == [None] * 4
    Image.new("RGB", (3, 2)).save(tmp_path / "rotated.jpg", exif=exif)
    assert labels.fault(images[3]) == f"{label} is 3 x 2 pixels but {images[3]} is 2 x 3; give the labels of this image"


def test_faults_of_the_first_files_are_reported_together(tmp_path: Path) -> None:
    images = []
    for number in range(60):
        images.append(tmp_path / f"{number}.jpg")
        Image.new("RGB", (2, 1)).save(images[-1])
    good, bad = save(tmp_path / "good.png", [[0, 1]]), save(tmp_path / "bad.png", [[0, 7]])
    files = dict.fromkeys(images, good)
    images[4].write_bytes(images[4].read_bytes()[:-200])
    for number in (8, 10, 12, 14):
        files[images[number]] = bad
    with pytest.raises(InputError) as caught:
        LabelFiles(files, coding_of(words(2), "words"), "words")
    faults = str(caught.value).split("; ")
    assert faults[0].startswith(f"{images[4]} cannot be used")
    assert sum(fault.startswith(f"{bad} has the value 7") for fault in faults) == 2
    assert faults[-1] == "and 2 more of the 30 checked"


def test_files_are_checked_in_parallel(tmp_path: Path) -> None:
    barrier = Barrier(2)

    def read_concurrently(path: Path) -> NDArray[Any]:
        barrier.wait(timeout=10)  # raises unless another thread reads at the same time
        return read_png(path)

    images = [tmp_path / f"{number}.jpg" for number in range(2)]
    for image in images:
        Image.new("RGB", (2, 1)).save(image)
    label = save(tmp_path / "label.png", [[0, 1]])
    LabelFiles(dict.fromkeys(images, label), Coding([0, 1], [], read_concurrently), "words")


def test_only_the_first_process_checks_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label, read = save(tmp_path / "bad.png", [[0, 7]]), []

    def recording_read(path: Path) -> NDArray[Any]:
        read.append(path)
        return read_png(path)

    coding = Coding([0, 1], [], recording_read)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    labels = label_files(label, coding)
    assert read == []
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    with pytest.raises(InputError, match=r"bad\.png has the value 7"):
        label_files(label, coding)
    assert read == [label]
    assert labels.fault(labels.images[0]) is not None  # other processes find the fault when they read the file
