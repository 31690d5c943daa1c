"""Small files that would need much memory are refused before they are unpacked."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.io import savemat
from torch import nn

from ovseg import rle
from ovseg.checkpoint import read_state
from ovseg.data.labels import read_label_map
from ovseg.data.masks import CocoMasks
from ovseg.data.pairs import read_columns, read_pairs, write_pairs
from ovseg.limits import SLACK, read_gzip
from ovseg.structures import InputError, RegionTextPair

LARGE = SLACK + 10_000_000  # bytes that compress to a few kilobytes


def test_gzipped_text_is_unpacked_up_to_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "merges.txt.gz"
    file.write_bytes(gzip.compress(b"a b\n" * (SLACK // 4)))
    assert len(read_gzip(file)) == SLACK
    file.write_bytes(gzip.compress(b"a b\n" * (SLACK // 4) + b"\n"))
    with pytest.raises(InputError, match=r"merges\.txt\.gz cannot be read \(it unpacks to more than 67,108,864"):
        read_gzip(file)
    for content in (b"no", gzip.compress(b"a" * 999)[:-9], gzip.compress(b"\xff")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"merges\.txt\.gz cannot be read"):
            read_gzip(file)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", ["state dict", "TorchScript"])
def test_weights_that_unpack_to_far_more_than_the_file_are_refused(kind: str, tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    if kind == "TorchScript":
        torch.jit.script(module).save(str(tmp_path / "good.pt"))
    else:
        torch.save(module.state_dict(), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for name in good.namelist():
            content = good.read(name)
            large = content.ljust(LARGE, b"\0") if name.endswith("data/0") else content
            bomb.writestr(name, large, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 200_000
    assert read_state(tmp_path / "good.pt").keys() == module.state_dict().keys()
    with pytest.raises(InputError, match=r"bomb\.pt is not a readable weights file \(it would unpack from .* to 77,"):
        read_state(tmp_path / "bomb.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    module = nn.Module()
    module.register_buffer("x", torch.zeros(1).expand(1_000_000))
    torch.jit.script(module).save(str(tmp_path / "x.pt"))
    assert (tmp_path / "x.pt").stat().st_size < 20_000
    with pytest.raises(InputError, match=r"a tensor of shape \(1000000,\) has only 1 values stored"):
        read_state(tmp_path / "x.pt")


def calls(size: tuple[int, int]) -> Iterator[tuple[object, ...]]:
    """Yield functions with arguments that decode a few bytes to a mask of this size."""
    (counts,) = rle.encode(torch.zeros((1, 10, 10), dtype=torch.bool))
    yield rle.decode, [counts], size
    yield rle.decode_box, counts, size, (0, 0, 1, 1)
    yield rle.from_coco, {"size": list(size), "counts": counts.decode()}
    yield rle.from_coco, {"size": list(size), "counts": [100]}
    yield rle.from_coco, [[0.0, 0.0, 9.0, 0.0, 9.0, 9.0]], size


def test_masks_are_limited_to_the_size_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for function, *arguments in calls((100_000, 100_001)):
        with pytest.raises(InputError, match="a mask has 100,001 x 100,000 pixels, more than 100 megapixels"):
            function(*arguments)  # type: ignore[operator]
    monkeypatch.setenv("OVSEG_MAX_MEGAPIXELS", "0.0001")
    for function, *arguments in calls((10, 10)):
        assert function(*arguments) is not None  # type: ignore[operator]


@pytest.mark.parametrize("far", [1e9, -1e9, float("nan"), float("inf")])
def test_polygons_far_from_the_image_are_refused(far: float) -> None:
    """Decoding traces their edges, so two distant points can request gigabytes."""
    with pytest.raises(ValueError, match="a polygon lies far outside its image of 30 x 20 pixels"):
        rle.from_coco([[0, 0, far, 0, 9, 9]], (20, 30))
    counts, size = rle.from_coco([[-5, -5, 40, -5, 40, 25, -5, 25]], (20, 30))  # a small excess is common
    assert rle.decode([counts], size).all()


def test_a_masks_file_with_absurd_sizes_is_refused_by_name(tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "file_name": "x.jpg"}]}
    annotations = [{"image_id": 1, "segmentation": {"size": [10**6, 10**6], "counts": "0"}}]
    (tmp_path / "masks.json").write_text(json.dumps({**content, "annotations": annotations}))
    with pytest.raises(InputError, match=r"masks\.json .* annotation 1 cannot be used \(a mask has 1,000,000 x"):
        CocoMasks(tmp_path / "masks.json")


@pytest.mark.parametrize("column", ["counts", "noun"])
def test_a_store_that_unpacks_to_far_too_much_is_refused(column: str, tmp_path: Path) -> None:
    """The bombs are one value of repeated bytes, and one value repeated over rows."""
    write_pairs(tmp_path, [RegionTextPair(1, "x.jpg", (2, 2), b"04", (0, 0, 2, 2), "dog", 1, 0.2, 0, 1)])
    shard = tmp_path / "pairs-00000.parquet"
    table = pq.read_table(shard)
    large = pa.array([b"0" * LARGE]) if column == "counts" else pa.array(["a" * (LARGE // 80)] * 80)
    rows = pa.concat_tables([table] * len(large))
    rows = rows.set_column(rows.column_names.index(column), rows.schema.field(column), large)
    pq.write_table(rows, shard, compression="zstd")
    assert shard.stat().st_size < 50_000
    for read in (read_pairs, lambda path: read_columns(path, [column])):
        with pytest.raises(InputError, match=r"00000\.parquet cannot be read \(it would unpack from .* to .* bytes\)"):
            read(tmp_path)
    assert not list(tmp_path.glob("*.arrow"))


def test_a_compressed_table_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv.gz").write_bytes(gzip.compress(b"filepath\ttitle\nx.jpg\tdog\n"))
    with pytest.raises(InputError, match=r"pairs\.csv\.gz "):
        read_pairs(tmp_path / "pairs.csv.gz")


def test_label_maps_are_limited_to_the_size_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"LabelMap": np.zeros((40, 50), np.uint16)}
    savemat(tmp_path / "x.mat", values, do_compression=True)
    monkeypatch.setenv("OVSEG_MAX_MEGAPIXELS", "0.002")
    assert read_label_map(tmp_path / "x.mat").shape == (40, 50)
    monkeypatch.setenv("OVSEG_MAX_MEGAPIXELS", "0.001")
    with pytest.raises(InputError, match=r"x\.mat has 50 x 40 pixels, more than 0\.001 megapixels; resize it"):
        read_label_map(tmp_path / "x.mat")
