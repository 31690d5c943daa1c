"""The store gives back what was put in, and refuses what is not a store."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ovseg import rle
from ovseg.data.pairs import PairStoreWriter, pair_statistics, read_pairs, write_pairs
from ovseg.structures import InputError, RegionTextPair


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


def test_read_gives_what_was_written_over_shards(tmp_path: Path) -> None:
    pairs = [pair(index) for index in range(23)]
    with PairStoreWriter(tmp_path / "new" / "pairs", {"seed": "3"}, shard_pairs=10) as store:
        store.add(pairs[:4])
        store.add(iter(pairs[4:]))
    assert sorted(file.name for file in (tmp_path / "new" / "pairs").iterdir()) == [
        "complete.json",
        *(f"pairs-0000{shard}.parquet" for shard in range(3)),
    ]
    stored = read_pairs(tmp_path / "new" / "pairs")
    assert list(stored) == pairs
    assert (len(stored), stored[-1], list(stored[3:6])) == (23, pairs[-1], pairs[3:6])
    assert stored.provenance == {"seed": "3"}
    with pytest.raises(IndexError):
        stored[23]


def test_a_store_is_not_overwritten_unasked(tmp_path: Path) -> None:
    with PairStoreWriter(tmp_path, shard_pairs=1) as store:
        store.add([pair(0), pair(1)])
    with pytest.raises(InputError, match="already holds pairs"):
        write_pairs(tmp_path, [pair(2)])
    with PairStoreWriter(tmp_path, overwrite=True) as store:
        store.add([pair(2)])
    assert list(read_pairs(tmp_path)) == [pair(2)]


def test_an_error_leaves_an_unfinished_store_which_is_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the region of 'dog' in train/1\.jpg is empty"):  # noqa: SIM117
        with PairStoreWriter(tmp_path, shard_pairs=2) as store:
            store.add([pair(0), pair(1), pair(2), pair(3)._replace(box=(0, 0, 0, 0))])
    assert [file.name for file in tmp_path.iterdir()] == ["pairs-00000.parquet"]
    with pytest.raises(InputError, match="unfinished: mining was interrupted; run `ovseg mine"):
        read_pairs(tmp_path)
    write_pairs(tmp_path, [pair(2)])
    assert list(read_pairs(tmp_path)) == [pair(2)]


def test_filter_by_similarity_and_noun(tmp_path: Path) -> None:
    rows = [("dog", 0.1), ("cat", 0.3), ("dog", 0.5), ("dog", 0.4), ("cat", 0.2), ("kite", 0.15)]
    write_pairs(tmp_path, [pair(index, *row) for index, row in enumerate(rows)])
    pairs = read_pairs(tmp_path)

    def kept(min_similarity: float | None, max_per_noun: int | None) -> list[tuple[str, float]]:
        return [(one.noun, one.similarity) for one in pairs.filter(min_similarity, max_per_noun)]

    assert kept(None, None) == rows
    assert kept(0.2, None) == [("cat", 0.3), ("dog", 0.5), ("dog", 0.4), ("cat", 0.2)]
    assert kept(None, 1) == [("cat", 0.3), ("dog", 0.5), ("kite", 0.15)]
    assert kept(0.15, 2) == [("cat", 0.3), ("dog", 0.5), ("dog", 0.4), ("cat", 0.2), ("kite", 0.15)]
    assert kept(0.9, 2) == []


def test_statistics(tmp_path: Path) -> None:
    write_pairs(tmp_path, [pair(0, "dog", 0.1), pair(1, "cat", 0.2), pair(2, "dog", 0.6)])
    statistics = pair_statistics(read_pairs(tmp_path), most_frequent=1)
    assert statistics.pop("mean_similarity") == pytest.approx(0.3)
    assert statistics == {"pairs": 3, "unique_nouns": 2, "images": 2, "most_frequent": {"dog": 2}}


def test_a_pair_takes_little_space(tmp_path: Path) -> None:
    y, x = torch.meshgrid(torch.arange(480), torch.arange(640), indexing="ij")
    discs = torch.stack([(y - 240) ** 2 + (x - 320) ** 2 < (60 + index) ** 2 for index in range(20)])
    write_pairs(tmp_path, [pair(0)._replace(size=(480, 640), counts=counts) for counts in rle.encode(discs)])
    assert (tmp_path / "pairs-00000.parquet").stat().st_size < 20 * 1024


def test_missing_store_names_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    for _ in range(2):  # missing, then empty
        with pytest.raises(InputError) as error:
            read_pairs(folder)
        command = f"run `ovseg mine --config conf/mine.yaml --out {folder}`"
        assert str(error.value) == f"pairs not found in {folder}; {command}"
        folder.mkdir(exist_ok=True)


def test_refuses_what_is_not_a_store(tmp_path: Path) -> None:
    shard = tmp_path / "pairs-00000.parquet"
    shard.write_text("not Parquet")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path)
    pq.write_table(pa.table({"title": ["a dog"]}), shard)
    with pytest.raises(InputError, match="does not hold pairs as this version"):
        read_pairs(tmp_path)
    shard.unlink()
    write_pairs(tmp_path, [])
    with pytest.raises(InputError, match="holds no pairs"):
        read_pairs(tmp_path)
