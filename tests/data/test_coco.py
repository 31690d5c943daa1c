"""Tests of the COCO-Stuff training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ovseg.data.coco_stuff import COCOStuffDataModule
from ovseg.data.transforms import SegmentationTransform
from ovseg.structures import IGNORE_INDEX, EvalBatch, InputError, SegmentationBatch
from tests.data.worlds import write_coco


def datamodule(root: Path, **changes: Any) -> COCOStuffDataModule:
    settings: dict[str, Any] = {
        "transform": SegmentationTransform(16, [16, 20], 64),
        "total_batch_size": 2,
        "num_workers": 0,
        "val_short_side": 8,
    }
    data = COCOStuffDataModule(str(root), **(settings | changes))
    data.setup("fit")
    return data


def test_dataset_ids_become_class_indices(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = datamodule(tmp_path)
    batches: list[EvalBatch] = list(data.val_dataloader())
    assert len(batches) == 2
    assert batches[0].names == [str(tmp_path / "val2017" / "000000000000.jpg")]
    assert batches[0].sizes == [(16, 24)]
    assert batches[0].images[0].shape == (3, 8, 12)
    # id 1, person; id 13, the twelfth id in use; id 182, the last; unlabelled
    assert batches[0].labels[0][0].unique_consecutive().tolist() == [0, 11, 170, IGNORE_INDEX]
    names = data.vocabulary.names
    assert (names[0], names[11]) == ("person", "stop sign")


def test_training_batches_have_crops_with_known_labels(tmp_path: Path) -> None:
    write_coco(tmp_path)
    batches: list[SegmentationBatch] = list(datamodule(tmp_path).train_dataloader())
    assert len(batches) == 3
    for batch in batches:
        assert batch.images.shape == (2, 3, 16, 16)
        assert set(batch.labels.unique().tolist()) <= {0, 11, 170, IGNORE_INDEX}


def test_augmentation_does_not_depend_on_workers(tmp_path: Path) -> None:
    write_coco(tmp_path, train=4)
    in_process, in_workers = (list(datamodule(tmp_path, num_workers=n).train_dataloader()) for n in (0, 2))
    for first, second in zip(in_process, in_workers, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
    other_seed = next(iter(datamodule(tmp_path, seed=1).train_dataloader()))
    assert not torch.equal(in_process[0].images, other_seed.images)


def test_images_can_be_in_the_subfolder_images(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "images").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).rename(tmp_path / "images" / split)
    assert len(datamodule(tmp_path).train_dataset) == 6


def test_validation_images_can_be_held_out_from_training(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = datamodule(tmp_path, val_split=2)
    assert [path.stem[-1] for path in data.train_dataset.images] == ["0", "1", "2", "3"]
    assert [path.stem[-1] for path in data.val_dataset.paths] == ["4", "5"]
    for number in (0, 6):
        with pytest.raises(InputError, match=f"holds back {number} of the 6 images"):
            datamodule(tmp_path, val_split=number)


def test_validation_needs_no_training_images(tmp_path: Path) -> None:
    write_coco(tmp_path, train=0)
    data = COCOStuffDataModule(str(tmp_path))
    data.setup("validate")
    assert len(data.val_dataset) == 2


def test_detectron2_labels_are_read_from_their_own_folder_only(tmp_path: Path) -> None:
    write_coco(tmp_path, values=(0, 11, 170, 255))
    with pytest.raises(
        InputError, match=r"\.png has the value 11, which is not a class of coco_stuff_171; use .* as downloaded"
    ):
        datamodule(tmp_path)
    (tmp_path / "stuffthingmaps").rename(tmp_path / "stuffthingmaps_detectron2")
    labels = next(iter(datamodule(tmp_path).val_dataloader())).labels[0]
    assert labels[0].unique_consecutive().tolist() == [0, 11, 170, IGNORE_INDEX]


def test_images_and_labels_without_partners_are_counted_and_named(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for number in (3, 1):
        (tmp_path / f"stuffthingmaps/train2017/{number:012}.png").unlink()
    with pytest.raises(InputError, match=r"2 of 6 files have no label in .*: .*000000000001\.jpg, .*\.jpg; "):
        datamodule(tmp_path)
    for number in (3, 1, 0):
        (tmp_path / f"train2017/{number:012}.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 4 files have no image in .*: .*000000000000\.png; "):
        datamodule(tmp_path)


def test_the_error_for_missing_folders_names_the_downloads(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train2017 and no .*stuffthingmaps.train2017; unpack train2017\.zip"):
        datamodule(tmp_path)
