"""Masks from files reach the batches of `test`, `sweep` and `segment`: each image gets its own, pixel by pixel."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ovseg import rle
from ovseg.data.benchmarks import ADE20K150DataModule, ADE20K847DataModule, PascalVOC20DataModule, SegmentationBenchmark
from ovseg.data.images import ImagesDataModule
from ovseg.data.masks import LabelMaps
from ovseg.structures import EvalBatch, InputError
from tests.data import layouts
from tests.data.worlds import write_pair
from tests.stages import refusal

CORNER, COLUMN = torch.zeros(2, 2, 3, dtype=torch.bool)  # masks of images of 2 x 3 pixels
CORNER[1, 2] = COLUMN[:, 0] = True


def result(image_id: int, mask: Tensor, **more: object) -> dict[str, Any]:
    """A result in COCO's format."""
    size = list(mask.shape)
    return {"image_id": image_id, "segmentation": {"size": size, "counts": rle.encode(mask[None])[0].decode()}, **more}


def write_instances(path: Path, names: Sequence[str], annotations: list[dict[str, Any]]) -> Path:
    """A COCO file in which the images of these names have the ids 0, 1, …"""
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def masks_of(batch: EvalBatch) -> tuple[str, list[list[list[bool]]], list[float]]:
    """The file name of a batch's only image, its masks and their scores."""
    assert batch.masks is not None and batch.mask_scores is not None
    ((name,), (masks,), (scores,)) = batch.names, batch.masks, batch.mask_scores
    assert masks.shape == (len(scores), *batch.sizes[0]) and masks.dtype == torch.bool
    return Path(name).name, masks.tolist(), scores.tolist()


def test_images_are_matched_with_a_coco_file_by_name(tmp_path: Path) -> None:
    layouts.ade20k_150(tmp_path, *[[[1, 2, 3], [4, 5, 6]]] * 3)
    names = ["validation/ADE_val_00000003.jpg", "ADE_val_00000001.jpg", "elsewhere.jpg"]  # the second image has none
    annotations = [result(0, CORNER), result(1, COLUMN, score=0.25), result(0, ~COLUMN), result(2, ~CORNER)]
    masks = write_instances(tmp_path / "masks.json", names, annotations)
    batches = list(ADE20K150DataModule(str(tmp_path), masks=masks).test_dataloader())
    assert [masks_of(batch) for batch in batches] == [
        ("ADE_val_00000001.jpg", [COLUMN.tolist()], [0.25]),
        ("ADE_val_00000002.jpg", [], []),
        ("ADE_val_00000003.jpg", [CORNER.tolist(), (~COLUMN).tolist()], [1, 1]),
    ]
    assert [batch.labels[0].tolist() for batch in batches] == [[[0, 1, 2], [3, 4, 5]]] * 3

    plain = ADE20K150DataModule(str(tmp_path))
    assert all(batch.masks is None and batch.mask_scores is None for batch in plain.test_dataloader())


def test_images_are_matched_with_a_list_of_results_by_number(tmp_path: Path) -> None:
    for name in ("000000000139.jpg", "7.png"):
        Image.new("RGB", (3, 2)).save(tmp_path / name)
    (tmp_path / "sam.json").write_text(json.dumps([result(139, CORNER, predicted_iou=0.5), result(7, COLUMN)]))
    batches = ImagesDataModule(str(tmp_path), "cat, sofa", masks=tmp_path / "sam.json").predict_dataloader()
    assert [masks_of(batch) for batch in batches] == [
        ("000000000139.jpg", [CORNER.tolist()], [0.5]),
        ("7.png", [COLUMN.tolist()], [1]),
    ]
    Image.new("RGB", (3, 2)).save(tmp_path / "2007_000033.jpg")
    with pytest.raises(InputError, match=r"2007_000033\.jpg cannot be matched with .*sam\.json, a list of results"):
        ImagesDataModule(str(tmp_path), "cat", masks=tmp_path / "sam.json")


def test_label_maps_need_not_cover_all_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.pascal_voc(tmp_path, [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]])
    areas = np.array([[0, 0, 1], [255, 1, 1]])
    layouts.grey(tmp_path / "maps" / "2007_000001.png", areas.tolist())
    with caplog.at_level(logging.WARNING):
        data = PascalVOC20DataModule(str(tmp_path), masks=LabelMaps(tmp_path / "maps", "thing, stuff"))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'maps'} has no masks for 1 of the 2 images"
    ]
    assert [masks_of(batch) for batch in data.test_dataloader()] == [
        ("2007_000000.jpg", [], []),
        ("2007_000001.jpg", [(areas == 0).tolist(), (areas == 1).tolist()], [1, 1]),
    ]


def test_ground_truth_of_ones_own_data_may_be_the_masks(tmp_path: Path) -> None:
    folders = tmp_path / "images", tmp_path / "labels"
    values = np.array([[0, 2, 2], [255, 0, 2]])
    write_pair(*folders, "x", values)
    own = LabelMaps(folders[1], "wall, sky, tree")
    data = SegmentationBenchmark(str(folders[0]), str(folders[1]), "wall, sky, tree", masks=own)
    (batch,) = data.val_dataloader()
    assert masks_of(batch) == ("x.jpg", [(values == 0).tolist(), (values == 2).tolist()], [1, 1])


def test_masks_are_reduced_with_the_images_and_labels_of_ade20k_847(tmp_path: Path) -> None:
    """600 x 900 pixels become 512 x 768: masks whose area is a class stay the area of that class."""
    wall, building = np.full((300, 300), 2978), np.full((300, 300), 312)
    ids = np.block([[wall, building, wall * 0], [building, wall, wall]])
    ids[100:107, 100:107] = 312  # odd edges, which nearest neighbour has to treat like those of labels
    layouts.ade20k_847(tmp_path, ids.tolist())
    areas = [result(0, torch.from_numpy(ids == value)) for value in (2978, 312)]
    masks = write_instances(tmp_path / "masks.json", ["ADE_val_00000001.jpg"], areas)
    (batch,) = ADE20K847DataModule(str(tmp_path), masks=masks).test_dataloader()
    assert batch.masks is not None and batch.masks[0].shape == (2, 512, 768)
    assert torch.equal(batch.masks[0], torch.stack([batch.labels[0] == 0, batch.labels[0] == 1]))
    (full,) = ADE20K847DataModule(str(tmp_path), masks=masks, protocol="full").test_dataloader()
    assert full.masks is not None and torch.equal(full.masks[0][0], torch.from_numpy(ids == 2978))


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg")
    masks = write_instances(tmp_path / "masks.json", ["a.jpg"], [result(0, CORNER)])
    (batch,) = ImagesDataModule(str(tmp_path), "cat", masks=masks).predict_dataloader()
    assert (
        batch.images == [] and "a.jpg is 4 x 2 pixels but its masks are 3 x 2; give the masks file" in batch.faults[0]
    )


def test_masks_of_no_image_or_of_two_are_refused_before_work_starts(tmp_path: Path) -> None:
    for place in ("one/a.jpg", "two/a.jpg", "b.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (3, 2)).save(tmp_path / place)
    masks = write_instances(tmp_path / "masks.json", ["one/a.jpg", "two/a.jpg", "c.jpg"], [result(0, CORNER)])
    with pytest.raises(
        InputError, match=r"masks\.json has masks for none of the 1 images \(the first is .*b\.jpg\); give"
    ):
        ImagesDataModule(str(tmp_path), "cat", masks=masks)
    with pytest.raises(InputError, match=r"masks\.json lists 2 images called a\.jpg; give them different names"):
        ImagesDataModule(str(tmp_path / "one"), "cat", masks=masks)
    (tmp_path / "maps").mkdir()
    with pytest.raises(InputError, match="maps has masks for none of the 1 images"):
        ImagesDataModule(str(tmp_path), "cat", masks=LabelMaps(tmp_path / "maps", "sky, sea"))
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; give the folder of the label maps"):
        ImagesDataModule(str(tmp_path), "cat", masks=LabelMaps(tmp_path / "nowhere", "sky, sea"))
    for name in ("7.jpg", "07.png"):
        Image.new("RGB", (3, 2)).save(tmp_path / "one" / name)
    (tmp_path / "one" / "a.jpg").unlink()
    (tmp_path / "sam.json").write_text(json.dumps([result(7, CORNER)]))
    with pytest.raises(InputError, match=r"07\.png and .*7\.jpg would get the same masks from .*sam\.json; rename one"):
        ImagesDataModule(str(tmp_path / "one"), "cat", masks=tmp_path / "sam.json")


def test_the_command_line_takes_masks_for_images_and_benchmarks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal shows that the flag reached the datamodule, before any network was built."""
    layouts.pascal_voc(tmp_path, [[1, 2, 3], [4, 5, 6]])
    masks = write_instances(tmp_path / "masks.json", ["other.jpg"], [result(0, CORNER)])
    run = ("--trainer.default_root_dir", tmp_path / "run")
    benchmark = ("--data", "ovseg.data.PascalVOC20DataModule", "--data.root", tmp_path, "--data.masks", masks)
    test = ("test", "--model", "ovseg.tasks.SegmentationTask", "--model.segmenter", "toy", *benchmark, *run)
    assert "masks.json has masks for none of the 1 images" in refusal(capsys, *test)
    photo = tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_000000.jpg"
    maps = json.dumps({"folder": str(tmp_path / "nowhere"), "vocabulary": "sky, sea"})
    segment = ("segment", "--model", "toy", "--images", photo, "--vocabulary", "cat, sofa", "--data.masks", maps)
    assert f"there is no folder {tmp_path}/nowhere" in refusal(capsys, *segment, "--out", tmp_path / "out", *run)
