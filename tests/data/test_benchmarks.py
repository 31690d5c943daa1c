from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.data.benchmarks import SegmentationBenchmark
from ovseg.data.coco import COCOStuffDataModule
from ovseg.data.toy.folder import write_toy
from ovseg.structures import IGNORE_INDEX, InputError
from tests.data.worlds import write_pair


def ade(root: Path, values: list[list[int]], stem: str = "ADE_val_00000001") -> SegmentationBenchmark:
    write_pair(root / "images", root / "annotations", stem, np.array(values))
    return SegmentationBenchmark(
        str(root / "images"), str(root / "annotations"), "ade20k_150", label_offset=1, resize=(6, 24)
    )


def test_labels_at_their_own_size(tmp_path: Path) -> None:
    data = ade(tmp_path, [[0, 1, 2], [150, 1, 255]])
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch.labels[0].tolist() == [[IGNORE_INDEX, 0, 1], [149, 0, IGNORE_INDEX]]
    assert batch.images[0].shape == (3, 6, 9)
    assert batch.sizes == [(2, 3)]
    assert len(data.vocabulary) == 150


def test_a_value_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    data = ade(tmp_path, [[0, 151]])
    with pytest.raises(InputError, match=r"ADE_val_00000001\.png has the value 151, no class of ade20k_150"):
        data.setup("test")


def test_labels_of_another_size_or_kind_are_refused(tmp_path: Path) -> None:
    data = ade(tmp_path, [[1, 2], [3, 4]])
    Image.new("RGB", (3, 2)).save(tmp_path / "images" / "ADE_val_00000001.jpg")
    data.setup("test")
    with pytest.raises(InputError, match=r"\.png is 2 x 2 pixels but .*\.jpg is 3 x 2"):
        list(data.test_dataloader())
    Image.new("RGB", (3, 2)).save(tmp_path / "annotations" / "ADE_val_00000001.png")
    with pytest.raises(InputError, match="has 3 channels"):
        data.setup("test")
    (tmp_path / "annotations" / "ADE_val_00000001.png").write_text("no")
    with pytest.raises(InputError, match=r"annotations.ADE_val_00000001\.png is not an image"):
        data.setup("test")


def test_missing_data_says_where_it_looked(tmp_path: Path) -> None:
    data = SegmentationBenchmark(str(tmp_path / "a"), str(tmp_path / "b"), "ade20k_150")
    with pytest.raises(InputError, match=r"no folder .*a and no .*b; unpack .*ADEChallengeData2016\.zip"):
        data.setup("test")
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="a has no image"):
        data.setup("test")


def test_label_names_may_have_a_suffix(tmp_path: Path) -> None:
    write_pair(tmp_path / "all", tmp_path / "all", "x", np.array([[1]]))
    (tmp_path / "all" / "x.png").rename(tmp_path / "seg_x.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "seg_x.png").rename(tmp_path / "labels" / "x_seg.png")
    data = SegmentationBenchmark(str(tmp_path / "all"), str(tmp_path / "labels"), "a, b", label_suffix="_seg.png")
    data.setup("test")
    assert next(iter(data.val_dataloader())).labels[0].tolist() == [[1]]


def test_more_classes_than_an_ignore_index_of_255_allows_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "images", tmp_path / "labels", "x", np.array([[1]]))
    data = SegmentationBenchmark(str(tmp_path / "images"), str(tmp_path / "labels"), "pascal_context_459")
    with pytest.raises(InputError, match="459 classes"):
        data.setup("test")


def test_ids_are_values_plus_one(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(json.dumps({"classes": ["a", "b"], "dataset_ids": [9, 4]}))
    write_pair(tmp_path / "images", tmp_path / "labels", "x", np.array([[8, 3]]))
    data = SegmentationBenchmark(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "words.json"))
    data.setup("test")
    assert next(iter(data.val_dataloader())).labels[0].tolist() == [[0, 1]]


def test_the_toy_world_is_read_as_it_is_written(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", scenes=3, val_scenes=2, size=64)
    data = SegmentationBenchmark(
        str(tmp_path / "toy/val2017"), str(tmp_path / "toy/stuffthingmaps/val2017"), "toy", resize=(32, 128)
    )
    data.setup("test")
    for batch in data.test_dataloader():
        label_file = tmp_path / "toy/stuffthingmaps/val2017" / f"{Path(batch.names[0]).stem}.png"
        stored = np.asarray(Image.open(label_file))
        assert batch.images[0].shape == (3, 32, 32)
        assert (batch.labels[0].numpy() == stored).all()
    proposals = COCOStuffDataModule(str(tmp_path / "toy"), "toy_train", batch_size=1, num_workers=0, val_split=1)
    proposals.setup("fit")
    assert len(proposals.train_dataset) == 2
