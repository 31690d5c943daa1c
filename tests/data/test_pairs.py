"""Tests of the store: round trips, resuming, filters, statistics, and refusals of folders that are no store."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ovseg import rle
from ovseg.data.pairs import PairStore, ShardLog, pair_statistics, read_columns, read_pairs, write_pairs
from ovseg.data.pairs.page import write_page
from ovseg.structures import InputError, RegionTextPair

NO_FAULTS = ShardLog(1, [])


def pair(index: int, noun: str = "dog", similarity: float = 0.25) -> RegionTextPair:
    mask = torch.zeros(1, 6, 8, dtype=torch.bool)
    mask[:, 1:3, 2 : 3 + index % 5] = True
    return RegionTextPair(
        image_id=index // 2,
        file_name=f"train/{index // 2}.jpg",
        size=(6, 8),
        counts=rle.encode(mask)[0],
        box=(2, 1, 3 + index % 5, 3),
        noun=noun,
        caption_id=10_000_000_000 + index,
        similarity=similarity,
        margin=0.1,
        proposal_score=1.0,
    )


def test_pairs_survive_a_round_trip_over_several_shards(tmp_path: Path) -> None:
    pairs, folder = [pair(index) for index in range(23)], tmp_path / "new" / "pairs"
    store = PairStore(folder, {"seed": 3})
    assert store.begin(3) == [0, 1, 2] and not store.complete
    for shard in (2, 0, 1):  # in any order
        store.write(shard, pairs[10 * shard : 10 * shard + 10], NO_FAULTS)
    assert store.complete
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["pairs-00000.parquet", "pairs-00001.parquet", "pairs-00002.parquet", "store.json"]
    stored = read_pairs(folder)
    assert list(stored) == pairs
    assert (len(stored), stored[-1], list(stored[3:6])) == (23, pairs[-1], pairs[3:6])
    assert stored.provenance == {"seed": 3}
    assert json.loads(pq.read_schema(folder / names[0]).metadata[b"ovseg_settings"]) == {"seed": 3}  # in every shard
    with pytest.raises(IndexError):
        stored[23]


def test_columns_can_be_read_without_the_masks(tmp_path: Path) -> None:
    write_pairs(tmp_path, [pair(0), pair(1, "cat")])
    table = read_columns(tmp_path, ["noun", "similarity"])
    assert table.to_pydict() == {"noun": ["dog", "cat"], "similarity": [0.25, 0.25]}
    assert pq.read_metadata(tmp_path / "pairs-00000.parquet").num_row_groups == 1


def test_masks_can_be_read_by_row_group(tmp_path: Path) -> None:
    pairs = [pair(index) for index in range(1001)]
    write_pairs(tmp_path, pairs)
    file = pq.ParquetFile(tmp_path / "pairs-00000.parquet")
    assert file.num_row_groups == 2
    assert file.read_row_group(1, columns=["counts"]).to_pydict() == {"counts": [pairs[1000].counts]}


def test_an_incomplete_store_resumes_with_its_missing_shards(tmp_path: Path) -> None:
    first = PairStore(tmp_path, {"seed": 3})
    first.begin(3)
    first.write(1, [pair(1)], NO_FAULTS)
    (tmp_path / ".pairs-00002.parquet.tmp").write_text("partial file of a killed process")
    with pytest.raises(
        InputError, match=r"incomplete: 2 of 3 shards are missing .*rerun the same `ovseg mine` command"
    ):
        read_pairs(tmp_path)

    resumed = PairStore(tmp_path, {"seed": 3})
    assert resumed.begin(3) == [0, 2]
    assert not list(tmp_path.glob(".*"))
    for shard in (0, 2):
        resumed.write(shard, [pair(shard)], NO_FAULTS)
    assert list(read_pairs(tmp_path)) == [pair(0), pair(1), pair(2)]


def test_different_settings_are_refused_and_listed(tmp_path: Path) -> None:
    store = PairStore(tmp_path, {"seed": 3, "words": None, "clip": "a" * 64, "same": 0.5})
    store.begin(3)
    store.write(0, [pair(0)], NO_FAULTS)
    before = (tmp_path / "store.json").read_bytes()
    with pytest.raises(InputError) as refused:
        PairStore(tmp_path, {"seed": 4, "clip": "b" * 64, "same": 0.5, "new": 1})
    differences = "seed was 3 and is now 4, clip has changed, new was None and is now 1"
    assert f"different settings: {differences}; choose" in str(refused.value)
    with pytest.raises(InputError, match="begun with 3 shards and would now have 4: the images or captions"):
        PairStore(tmp_path, {"seed": 3, "words": None, "clip": "a" * 64, "same": 0.5}).begin(4)
    assert (tmp_path / "store.json").read_bytes() == before


def test_a_store_without_shards_does_not_make_the_next_run_refuse(tmp_path: Path) -> None:
    PairStore(tmp_path, {"seed": 3}).begin(3)  # and the run was refused for another reason
    store = PairStore(tmp_path, {"seed": 4})
    assert store.begin(2) == [0, 1]
    for shard in (0, 1):
        store.write(shard, [pair(shard)], NO_FAULTS)
    assert read_pairs(tmp_path).provenance == {"seed": 4}


def test_write_pairs_never_overwrites_a_store(tmp_path: Path) -> None:
    write_pairs(tmp_path, [pair(0), pair(1)])
    with pytest.raises(InputError, match="already contains pairs"):
        write_pairs(tmp_path, [pair(2)])
    assert list(read_pairs(tmp_path)) == [pair(0), pair(1)]


def test_an_empty_region_raises_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the region of 'dog' in train/0\.jpg is empty"):
        write_pairs(tmp_path, [pair(0)._replace(box=(0, 0, 0, 0))])


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Fail writes beyond this file size, in bytes, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_only_the_current_shard(tmp_path: Path) -> None:
    store = PairStore(tmp_path, {})
    store.begin(2)
    store.write(0, [pair(0)], NO_FAULTS)
    with files_of_at_most(1000), pytest.raises(InputError) as refused:
        store.write(1, [pair(1)], NO_FAULTS)
    assert f"{tmp_path}/pairs-00001.parquet cannot be written (File too large); free disk space" in str(refused.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pairs-00000.parquet", "store.json"]
    store.write(1, [pair(1)], NO_FAULTS)
    assert list(read_pairs(tmp_path)) == [pair(0), pair(1)]


def test_unreadable_images_are_logged_and_counted(tmp_path: Path) -> None:
    store = PairStore(tmp_path, {})
    store.begin(2)
    store.write(0, [pair(0)], ShardLog(3, ["a.jpg is damaged"]))
    store.write(1, [pair(2)], ShardLog(3, ["b.jpg is damaged"]))
    assert store.finish() == ["a.jpg is damaged", "b.jpg is damaged"]
    assert (tmp_path / "log.txt").read_text() == "a.jpg is damaged\nb.jpg is damaged\n"
    stats = pair_statistics(tmp_path)
    assert (stats.images, stats.images_without_pairs, stats.images_unreadable) == (2, 2, 2)


def test_filter_by_similarity_and_noun(tmp_path: Path) -> None:
    rows = [("dog", 0.1), ("cat", 0.3), ("dog", 0.5), ("dog", 0.4), ("cat", 0.2), ("kite", 0.15)]
    write_pairs(tmp_path, [pair(index, *row) for index, row in enumerate(rows)])
    pairs = read_pairs(tmp_path)

    def filtered(min_similarity: float | None, max_per_noun: int | None) -> list[tuple[str, float]]:
        return [(one.noun, one.similarity) for one in pairs.filter(min_similarity, max_per_noun)]

    assert filtered(None, None) == rows
    assert filtered(0.2, None) == [("cat", 0.3), ("dog", 0.5), ("dog", 0.4), ("cat", 0.2)]
    assert filtered(None, 1) == [("cat", 0.3), ("dog", 0.5), ("kite", 0.15)]
    assert filtered(0.15, 2) == [("cat", 0.3), ("dog", 0.5), ("dog", 0.4), ("cat", 0.2), ("kite", 0.15)]
    assert filtered(0.9, 2) == []


def test_statistics_by_hand(tmp_path: Path) -> None:
    write_pairs(tmp_path, [pair(0, "dog", 0.1), pair(1, "cat", 0.2), pair(2, "dog", 0.6)])
    stats = pair_statistics(tmp_path, most_frequent=1)
    assert (stats.pairs, stats.unique_nouns, stats.images, stats.images_without_pairs) == (3, 2, 2, 0)
    assert stats.most_frequent == {"dog": 2}
    assert stats.similarity == pytest.approx([0.11, 0.15, 0.2, 0.4, 0.56])
    assert stats.pairs_per_image[2] == 1.5


def test_a_pair_takes_less_than_a_kilobyte(tmp_path: Path) -> None:
    y, x = torch.meshgrid(torch.arange(480), torch.arange(640), indexing="ij")
    discs = torch.stack([(y - 240) ** 2 + (x - 320) ** 2 < (60 + index) ** 2 for index in range(20)])
    write_pairs(tmp_path, [pair(0)._replace(size=(480, 640), counts=counts) for counts in rle.encode(discs)])
    assert (tmp_path / "pairs-00000.parquet").stat().st_size < 20 * 1024


def test_the_error_for_a_missing_store_names_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    for _ in range(2):  # a missing folder, then an empty one
        with pytest.raises(InputError) as error:
            read_pairs(folder)
        command = f"run `ovseg mine --config conf/mine.yaml --out {folder}`"
        assert str(error.value) == f"pairs not found in {folder}; {command}"
        folder.mkdir(exist_ok=True)


def test_a_store_begun_before_region_encoders_were_recorded_is_refused(tmp_path: Path) -> None:
    """The user cannot restore settings that only the older version had."""
    write_pairs(tmp_path / "pairs", [pair(0)], {"clip": "a", "clip_batch": 256})
    with pytest.raises(InputError, match="was begun by an older version of ovseg, which records other settings"):
        PairStore(tmp_path / "pairs", {"clip": "a", "region_encoder": "ovseg.models.CropEncoder"})


def test_folders_that_are_no_store_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "empty", [])
    with pytest.raises(InputError, match="contains no pairs"):
        read_pairs(tmp_path / "empty")
    folder = tmp_path / "pairs"
    write_pairs(folder, [pair(0)])
    shard = folder / "pairs-00000.parquet"
    shard.write_text("not Parquet")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(folder)
    pq.write_table(pa.table({"title": ["a dog"]}), shard)
    with pytest.raises(InputError, match="does not contain pairs in this version's format"):
        read_pairs(folder)
    (folder / "store.json").write_text(json.dumps({"ovseg_schema": 1}))
    with pytest.raises(InputError, match=r"does not contain pairs in this version's format \(schema 1, not 2\)"):
        read_pairs(folder)
    for shards in ("x", -1, 10**11, None):
        (folder / "store.json").write_text(json.dumps({"ovseg_schema": 2, "shards": shards, "settings": {}}))
        with pytest.raises(
            InputError,
            match=r"store\.json is damaged: it has an invalid number of shards, .*; delete .* again",
        ):
            read_pairs(folder)
    (folder / "store.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"store\.json cannot be read"):
        read_pairs(folder)
    (folder / "store.json").write_text("[")
    with pytest.raises(InputError, match=r"store\.json cannot be read"):
        read_pairs(folder)
    (folder / "store.json").unlink()  # versions before 2 wrote none
    with pytest.raises(InputError, match="contains pairs of an older version of ovseg"):
        PairStore(folder, {})


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ({"shards": "2"}, "it has an invalid number of shards, '2'"),
        ({"shards": True}, "it has an invalid number of shards, True"),
        ({"shards": 1}, "it has 1 shards, but pairs-00001.parquet is there too"),
        ({"settings": None}, "its settings are missing"),
        ({"images": 3}, "its image folder is 3"),
    ],
    ids=str,
)
def test_a_damaged_store_json_is_refused(damage: dict[str, object], fault: str, tmp_path: Path) -> None:
    store = PairStore(tmp_path, {})
    store.begin(2)
    for shard in (0, 1):
        store.write(shard, [pair(shard)], NO_FAULTS)
    content = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**content, **damage}))
    for use in (read_pairs, pair_statistics, lambda folder: PairStore(folder, {})):
        with pytest.raises(InputError) as error:
            use(tmp_path)
        assert str(error.value) == f"{tmp_path}/store.json is damaged: {fault}; delete {tmp_path} and mine again"


@pytest.mark.parametrize(
    "log", [{"images": "1", "faults": []}, {"images": 1, "faults": 3}, {"images": -1, "faults": []}]
)
def test_a_shard_with_a_damaged_log_is_refused(log: dict[str, object], tmp_path: Path) -> None:
    write_pairs(tmp_path, [pair(0)])
    shard = tmp_path / "pairs-00000.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"ovseg_log": json.dumps(log)}), shard)
    with pytest.raises(InputError, match=r"pairs-00000\.parquet cannot be read \(its log is damaged\)"):
        pair_statistics(tmp_path)


def test_show_refuses_damaged_masks_wrong_folders_and_files_that_are_no_page(tmp_path: Path) -> None:
    images, store, page = tmp_path / "images", tmp_path / "pairs", tmp_path / "page.html"
    (images / "train").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(images / "train" / "0.jpg")
    write_pairs(store, [pair(0)])
    with pytest.raises(InputError, match=r"there is no image folder .*none; give --images the folder"):
        write_page(store, tmp_path / "none", page)
    with pytest.raises(InputError, match=r"the image .*0\.jpg does not exist; give --images"):
        write_page(store, store, page)
    assert not page.exists()
    write_page(store, images, page)
    write_page(store, images, page)  # its own page may be replaced
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for target, sentence in ((notes, "notes.txt is not a page of `ovseg pairs show`"), (images, "is a folder; give")):
        with pytest.raises(InputError, match=sentence):
            write_page(store, images, target)
    assert notes.read_text() == "mine"
    for number, garbage in enumerate((b"garbage", b"\xff\x00", b"00000")):
        damaged = tmp_path / f"damaged{number}"
        write_pairs(damaged, [pair(0)._replace(counts=garbage)])
        with pytest.raises(InputError, match=r"the mask of 'dog' in .*0\.jpg is damaged \(run lengths"):
            write_page(damaged, images, page)
