"""Benchmarks of one's own: a folder of images, a folder of labels, a vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.data.benchmarks import SegmentationBenchmark
from ovseg.data.coco_stuff import COCOStuffDataModule
from ovseg.data.toy.folder import write_toy
from ovseg.structures import IGNORE_INDEX, InputError
from tests.data.worlds import write_pair


def own(root: Path, values: list[list[int]], vocabulary: str = "wall, sky, tree") -> SegmentationBenchmark:
    write_pair(root / "images", root / "labels", "x", np.array(values))
    return SegmentationBenchmark(str(root / "images"), str(root / "labels"), vocabulary, 1, resize=(6, 24))


def test_labels_at_their_own_size(tmp_path: Path) -> None:
    data = own(tmp_path, [[0, 1, 2], [3, 1, 255]])
    (batch,) = data.test_dataloader()
    assert batch.labels[0].tolist() == [[IGNORE_INDEX, 0, 1], [2, 0, IGNORE_INDEX]]
    assert batch.images[0].shape == (3, 6, 9)
    assert batch.sizes == [(2, 3)]


def test_a_vocabulary_of_one_word(tmp_path: Path) -> None:
    (batch,) = own(tmp_path, [[0, 1, 255]], "sky").test_dataloader()
    assert batch.labels[0].tolist() == [[IGNORE_INDEX, 0, IGNORE_INDEX]]


def test_a_value_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels.x\.png has the value 4, which is not a class of wall, sky, tree"):
        own(tmp_path, [[0, 4]])


def test_labels_of_another_size_or_kind_are_refused(tmp_path: Path) -> None:
    own(tmp_path, [[1, 2], [3, 3]])
    words = (str(tmp_path / "images"), str(tmp_path / "labels"), "wall, sky, tree", 1)
    Image.new("RGB", (3, 2)).save(tmp_path / "images" / "x.jpg")
    with pytest.raises(InputError, match=r"\.png is 2 x 2 pixels but .*\.jpg is 3 x 2"):
        SegmentationBenchmark(*words)
    Image.new("RGB", (3, 2)).save(tmp_path / "labels" / "x.png")
    with pytest.raises(InputError, match="has 3 channels"):
        SegmentationBenchmark(*words)
    (tmp_path / "labels" / "x.png").write_text("no")
    with pytest.raises(InputError, match=r"labels.x\.png is not an image"):
        SegmentationBenchmark(*words)


def test_missing_data_says_where_it_looked(tmp_path: Path) -> None:
    words = (str(tmp_path / "a"), str(tmp_path / "b"), "ade20k_150")
    with pytest.raises(InputError, match=r"no folder .*a and no .*b; give the folder of your images"):
        SegmentationBenchmark(*words)
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="a has no image"):
        SegmentationBenchmark(*words)


def test_label_names_may_have_a_suffix_and_lie_beside_the_images(tmp_path: Path) -> None:
    write_pair(tmp_path / "all", tmp_path / "all", "x", np.array([[1]]))
    (tmp_path / "all" / "x.png").rename(tmp_path / "all" / "x_seg.png")
    data = SegmentationBenchmark(str(tmp_path / "all"), str(tmp_path / "all"), "a, b", label_suffix="_seg.png")
    assert next(iter(data.val_dataloader())).labels[0].tolist() == [[1]]


def test_two_images_with_one_label_file_are_refused(tmp_path: Path) -> None:
    own(tmp_path, [[1]])
    Image.new("RGB", (1, 1)).save(tmp_path / "images" / "x.png")
    with pytest.raises(InputError, match=r"x\.jpg and .*x\.png would have the same label file; keep one"):
        own(tmp_path, [[1]])


def test_more_classes_than_eight_bits_hold(tmp_path: Path) -> None:
    own(tmp_path, [[1, 2]])
    Image.fromarray(np.array([[300, 65535]], np.uint16)).save(tmp_path / "labels" / "x.png")
    data = SegmentationBenchmark(str(tmp_path / "images"), str(tmp_path / "labels"), "pascal_context_459")
    assert next(iter(data.test_dataloader())).labels[0].tolist() == [[300, data.vocabulary.ignore_index]]


def test_classes_that_are_scored_as_one_have_one_value(tmp_path: Path) -> None:
    write_pair(tmp_path / "images", tmp_path / "labels", "x", np.array([[0, 20]]))
    data = SegmentationBenchmark(str(tmp_path / "images"), str(tmp_path / "labels"), "pascal_voc_20b")
    assert next(iter(data.test_dataloader())).labels[0].tolist() == [[0, 20]]
    write_pair(tmp_path / "images", tmp_path / "labels", "x", np.array([[0, 21]]))
    with pytest.raises(InputError, match="has the value 21, which is not a class of pascal_voc_20b"):
        SegmentationBenchmark(str(tmp_path / "images"), str(tmp_path / "labels"), "pascal_voc_20b")


def test_ids_are_values_plus_one(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(json.dumps({"classes": ["a", "b"], "dataset_ids": [9, 4]}))
    write_pair(tmp_path / "images", tmp_path / "labels", "x", np.array([[8, 3]]))
    data = SegmentationBenchmark(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "words.json"))
    assert next(iter(data.val_dataloader())).labels[0].tolist() == [[0, 1]]


def test_the_toy_world_is_read_as_it_is_written(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", scenes=3, val_scenes=2, size=64)
    data = SegmentationBenchmark(
        str(tmp_path / "toy/val2017"), str(tmp_path / "toy/stuffthingmaps/val2017"), "toy", resize=(32, 128)
    )
    for batch in data.test_dataloader():
        label_file = tmp_path / "toy/stuffthingmaps/val2017" / f"{Path(batch.names[0]).stem}.png"
        stored = np.asarray(Image.open(label_file))
        assert batch.images[0].shape == (3, 32, 32)
        assert (batch.labels[0].numpy() == stored).all()
    proposals = COCOStuffDataModule(str(tmp_path / "toy"), "toy_train", total_batch_size=1, num_workers=0, val_split=1)
    proposals.setup("fit")
    assert len(proposals.train_dataset) == 2


def test_proposals_do_not_train_on_more_classes_than_eight_bits_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ade20k_847 has 847 classes; proposals train on 255 at most"):
        COCOStuffDataModule(str(tmp_path), "ade20k_847")
