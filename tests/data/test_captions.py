"""Tests of captioned images read from COCO's formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg import rle
from ovseg.data.captions.datamodule import CaptionDataModule
from ovseg.data.captions.nouns import MAX_CAPTION, SpacyNounExtractor
from ovseg.data.captions.shards import ShardBatches, Shards
from ovseg.data.masks import LabelMaps
from ovseg.structures import InputError

CAPTIONS = [  # (id, image, text), not sorted by id
    (12, 3, "Two dogs on the grass"),
    (10, 3, "A DOG and a cat "),
    (11, 5, "a photo of it"),
    (13, 8, "a kite"),
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for image_id in (3, 5, 8):
        Image.new("RGB", (30, 20), (image_id, 0, 255)).save(tmp_path / f"{image_id}.png")
    write_captions(tmp_path / "captions.json")
    return tmp_path


def write_captions(path: Path, captions: Sequence[tuple[int, int, Any]] = CAPTIONS) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (3, 5, 8)]
    annotations = [{"id": i, "image_id": image, "caption": text} for i, image, text in captions]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


def prepared_data(folder: Path, **options: Any) -> CaptionDataModule:
    data = CaptionDataModule(folder, folder / "captions.json", short_side=10, **options)
    data.prepare_data()
    data.setup("predict")
    return data


def test_nouns_are_unique_per_image_and_carry_the_id_of_their_first_caption(folder: Path) -> None:
    first, second = prepared_data(folder, captions_per_image=None, batch_size=1).predict_dataloader()
    assert first.nouns == [["dog", "cat", "grass"]]
    assert first.caption_ids == [[10, 10, 12]]
    assert (first.names, first.image_ids, first.sizes, first.masks) == (["3.png"], [3], [(20, 30)], None)
    assert first.images[0].shape == (3, 10, 15)
    assert torch.allclose(first.images[0][:, 0, 0], torch.tensor([3 / 255, 0, 1]))
    assert (second.nouns, second.image_ids) == ([["kite"]], [8])  # image 5 has no noun left


def test_captions_per_image_takes_the_first_by_id(folder: Path) -> None:
    data = prepared_data(folder, captions_per_image=1, batch_size=2)
    (batch,) = data.predict_dataloader()
    assert batch.nouns == [["dog", "cat"], ["kite"]]
    assert [tuple(image.shape) for image in batch.images] == [(3, 10, 15)] * 2
    assert data.statistics() == {"images": 2, "unique_nouns": 3, "candidates": 3, "without_noun": 1}


def test_workers_do_not_change_batches(folder: Path) -> None:
    in_process, in_worker = (list(prepared_data(folder, num_workers=n).predict_dataloader()) for n in (0, 1))
    assert [batch.names for batch in in_process] == [batch.names for batch in in_worker]
    assert all(torch.equal(a.images[0], b.images[0]) for a, b in zip(in_process, in_worker, strict=True))


def test_nouns_are_cached_per_extractor_and_captions(folder: Path) -> None:
    class Counting(SpacyNounExtractor):
        calls = 0

        def extract(self, captions: Sequence[str]) -> list[list[str]]:
            self.calls += 1
            return super().extract(captions)

    extractor = Counting()
    for _ in range(2):
        prepared_data(folder, nouns=extractor)
    assert extractor.calls == 1
    prepared_data(folder, nouns=extractor, captions_per_image=2)
    assert extractor.calls == 2
    other = Counting(stop_nouns=["cat"])
    assert prepared_data(folder, nouns=other).dataset.samples[0].nouns == ["dog"]
    assert other.calls == 1


def test_masks_from_a_coco_file_replace_proposals(folder: Path) -> None:
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[:, 5:9, 3:20] = True
    annotations = [
        {"id": 1, "image_id": 3, "segmentation": {"size": [20, 30], "counts": rle.encode(mask)[0].decode()}},
        {"id": 2, "image_id": 3, "segmentation": [[10, 2, 20, 2, 20, 12, 10, 12]]},
    ]
    captions = json.loads((folder / "captions.json").read_text())
    (folder / "masks.json").write_text(json.dumps({"images": captions["images"], "annotations": annotations}))
    first, second = prepared_data(folder, masks=folder / "masks.json").predict_dataloader()
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[2:12, 10:20] = True
    assert torch.equal(first.masks[0], torch.stack([mask[0], expected]))
    assert second.masks[0].shape == (0, 20, 30)

    assert first.mask_scores[0].tolist() == [1, 1] and not first.labelled

    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(folder / "3.png")
    first, second = prepared_data(folder, masks=folder / "masks.json").predict_dataloader()
    assert first.images == [] and second.faults == ()
    assert "3.png is 20 x 30 pixels but its masks are 30 x 20" in first.faults[0]


def test_masks_may_be_a_list_of_results(folder: Path) -> None:
    """SAM's users have lists of run lengths, compressed or not, without image entries."""
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 5:9, 3:20] = masks[1, :, 29] = True
    results = [
        {"image_id": 8, "segmentation": {"size": [20, 30], "counts": rle.encode(masks)[0].decode()}, "score": 0.5},
        {"image_id": 8, "segmentation": {"size": [20, 30], "counts": [580, 20]}, "predicted_iou": 0.75},
    ]
    (folder / "masks.json").write_text(json.dumps(results))
    first, second = prepared_data(folder, masks=folder / "masks.json").predict_dataloader()
    assert first.masks[0].shape == (0, 20, 30) and first.nouns == [["dog", "cat"]]
    assert torch.equal(second.masks[0], masks)
    assert second.mask_scores[0].tolist() == [0.5, 0.75]


def test_without_captions_masks_are_paired_with_their_labels(folder: Path) -> None:
    images = json.loads((folder / "captions.json").read_text())["images"]
    square = [[10, 2, 20, 2, 20, 12, 10, 12]]
    annotations = [{"id": n, "image_id": 5, "category_id": n % 2, "segmentation": square} for n in range(3)]
    categories = [{"id": 0, "name": "dog"}, {"id": 1, "name": "grass"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "masks.json").write_text(json.dumps(content))
    data = CaptionDataModule(folder, masks=folder / "masks.json", short_side=10)
    data.prepare_data()
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch.names for batch in batches] == [["3.png"], ["5.png"], ["8.png"]]
    assert all(batch.labelled for batch in batches)
    assert [batch.nouns for batch in batches] == [[[]], [["dog", "grass", "dog"]], [[]]]
    assert (batches[1].caption_ids, batches[1].masks[0].shape) == ([[-1, -1, -1]], (3, 20, 30))


def test_label_maps_give_one_mask_per_class(folder: Path) -> None:
    values = np.full((20, 30), 255, np.uint8)
    values[:5], values[5:9, :7] = 1, 0
    (folder / "images").mkdir()
    for stem in ("000000000003", "000000000008"):
        Image.new("RGB", (30, 20)).save(folder / "images" / f"{stem}.jpg")
        Image.fromarray(values).save(folder / f"{stem}.png")
    for path in ("3.png", "5.png", "8.png"):
        (folder / path).unlink()
    masks = LabelMaps(folder, "dog, grass")
    data = CaptionDataModule(folder / "images", masks=masks, short_side=10)
    data.prepare_data()
    data.setup("predict")
    first, second = data.predict_dataloader()
    assert (first.image_ids, second.image_ids) == ([3], [8])
    assert first.nouns == [["dog", "grass"]]
    assert torch.equal(first.masks[0], torch.from_numpy(np.stack([values == 0, values == 1])))

    before = data.settings()
    (folder / "000000000008.png").rename(folder / "000000000009.png")  # the same number of files under other names
    assert data.settings()["masks"] != before["masks"]


def test_batches_report_broken_images_as_faults(folder: Path) -> None:
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    (batch,) = prepared_data(folder, batch_size=2).predict_dataloader()
    assert batch.names == ["8.png"] and len(batch.images) == 1 and batch.nouns == [["kite"]]
    assert len(batch.faults) == 1 and "3.png cannot be used" in batch.faults[0]


def test_each_shard_belongs_to_one_process() -> None:
    shards = Shards(images=11, shard_images=4, batch_size=3)
    assert len(shards) == 3
    assert [list(map(list, shards.batches(shard))) for shard in range(3)] == [
        [[0, 1, 2], [3]],
        [[4, 5, 6], [7]],
        [[8, 9, 10]],
    ]
    for world in (1, 2, 5):
        shares = [list(ShardBatches(shards, [0, 2], rank, world)) for rank in range(world)]
        assert sorted(index for share in shares for batch in share for index in batch.images) == [0, 1, 2, 3, 8, 9, 10]
        for share in shares:  # a shard's batches are consecutive, and its last one is marked
            assert [batch.shard for batch in share if batch.ends_shard] == list(dict.fromkeys(b.shard for b in share))


MASKS = {
    "[]": "no images or no annotations",
    '{"annotations": [{}]}': "no images or no annotations",
    "[{}]": "annotation 1 lacks 'image_id'",
    '[{"image_id": 1, "segmentation": {"size": [1, 1], "counts": [0, 1]}, "score": -0.5}]': "its score is -0.5, not a",
    '[{"image_id": 1, "segmentation": {"size": [1, 1], "counts": [0, 1]}, "score": NaN}]': "its score is nan, not a",
    '[{"image_id": "x", "segmentation": []}]': "image_id 'x' is not an integer",
    '[{"image_id": 3, "segmentation": [[1, 2, 3, 4, 5, 6]]}]': "polygons need the image's height and width",
    '[{"image_id": 3, "segmentation": {"size": [2, 2], "counts": "~~~"}}]': "annotation 1",
    '[{"image_id": 3, "segmentation": 5}]': "neither polygons nor run lengths",
    '{"images": [{"id": 3}], "annotations": [{}]}': "an image or category lacks 'file_name'",
    '{"images": [{"id": 3, "file_name": "a"}], "annotations": [{"image_id": 4}]}': "image 4, which is not listed",
}


@pytest.mark.parametrize("content", MASKS)
def test_files_without_masks_are_refused(folder: Path, content: str) -> None:
    (folder / "masks.json").write_text(content)
    with pytest.raises(InputError) as error:
        prepared_data(folder, masks=folder / "masks.json")
    assert MASKS[content] in str(error.value) and f"{folder}/masks.json" in str(error.value)


def test_masks_without_names_need_captions(folder: Path) -> None:
    (folder / "masks.json").write_text('[{"image_id": 3, "segmentation": {"size": [2, 2], "counts": [0, 4]}}]')
    data = CaptionDataModule(folder, masks=folder / "masks.json")
    with pytest.raises(InputError, match=r"no images with named categories; give --data\.captions"):
        data.setup("predict")
    with pytest.raises(InputError, match=r"give --data\.captions a COCO captions file, or --data\.masks"):
        CaptionDataModule(folder)


def test_settings_depend_on_file_contents_not_on_paths(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("moved") / "captions.json"
    moved.write_bytes((folder / "captions.json").read_bytes())
    first = CaptionDataModule(folder, folder / "captions.json").settings()
    assert CaptionDataModule(folder, moved, num_workers=3).settings() == first
    moved.write_text(moved.read_text() + " ")
    second = CaptionDataModule(folder, moved, captions_per_image=5).settings()
    assert {name for name in first if first[name] != second[name]} == {"captions", "captions_per_image"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("no json", "is not JSON"),
        ("[1, 2]", "no images or no annotations"),
        ('{"images": [], "annotations": []}', "no images or no annotations"),
        ('{"images": [{"id": 3, "file_name": "3.png"}], "annotations": [{"id": 1, "image_id": 3}]}', "lacks"),
        (
            '{"images": [{"id": 3, "file_name": "3.png"}], "annotations": [{"id": 1, "image_id": 4, "caption": ""}]}',
            "image 4, which is not listed",
        ),
        (
            '{"images": [{"id": 3, "file_name": "3.png"}], "annotations": [{"id": 1, "image_id": 3, "caption": null}]}',
            "the caption of annotation 1 is not a string",
        ),
        ('{"images": "3.png", "annotations": [{"id": 1, "image_id": 3, "caption": ""}]}', "an image lacks file_name"),
        ('{"images": [3], "annotations": [{"id": 1, "image_id": 3, "caption": ""}]}', "an image lacks file_name"),
        (
            '{"images": [{"id": 3, "file_name": "3.png"}], "annotations": [{"id": 1, "image_id": [3], "caption": ""}]}',
            r"annotation 1 refers to image \[3\], which is not listed",
        ),
        (
            '{"images": [{"id": 3, "file_name": "3.png"}], "annotations": [{"id": "a", "image_id": 3, "caption": ""}]}',
            "the annotation id 'a' is a duplicate or not an integer",
        ),
        (
            '{"images": [{"id": 3, "file_name": "3.png"}], "annotations": '
            '[{"id": 1, "image_id": 3, "caption": ""}, {"id": 1, "image_id": 3, "caption": ""}]}',
            "the annotation id 1 is a duplicate",
        ),
    ],
)
def test_files_that_are_no_coco_captions_are_refused(folder: Path, content: str | None, message: str) -> None:
    (folder / "captions.json").unlink()
    if content is not None:
        (folder / "captions.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        prepared_data(folder)
    assert str(folder / "captions.json") in str(error.value)


def test_missing_images_are_refused_before_nouns_are_extracted(folder: Path) -> None:
    (folder / "5.png").unlink()
    (folder / "8.png").unlink()
    with pytest.raises(InputError, match=r"2 images .* the first is 5\.png"):
        prepared_data(folder)
    assert not (folder / "cache").exists()


def test_captions_without_nouns_are_refused(folder: Path) -> None:
    write_captions(folder / "captions.json", [(1, 3, ""), (2, 5, "  ")])
    with pytest.raises(InputError, match=r"no caption .* contains a noun"):
        prepared_data(folder)


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        ([(1, "a.png"), (1, "b.png")], "images 'a.png' and 'b.png' have the same id 1"),
        ([(1, "a.png"), (2, "a.png")], "image 'a.png' is listed with the ids 1 and 2"),
        ([(1, "")], "the file_name of image 1 is empty"),
        ([("1", "a.png")], "the id of image 'a.png' is '1', not an integer"),
        ([(None, "a.png")], "the id of image 'a.png' is None, not an integer"),
    ],
    ids=str,
)
def test_images_with_wrong_ids_are_refused(images: list[tuple[Any, str]], fault: str, folder: Path) -> None:
    """Their captions would belong to another image."""
    captions = folder / "captions.json"
    listed = [{"id": number, "file_name": name} for number, name in images]
    annotations = [{"id": 1, "image_id": images[0][0], "caption": "a dog"}]
    captions.write_text(json.dumps({"images": listed, "annotations": annotations}))
    with pytest.raises(InputError) as error:
        prepared_data(folder)
    assert f"{captions} is not a COCO captions file: {fault}; give a file" in str(error.value)


def test_an_image_that_is_listed_twice_is_read_once(folder: Path) -> None:
    content = json.loads((folder / "captions.json").read_text())
    (folder / "captions.json").write_text(json.dumps({**content, "images": 2 * content["images"]}))
    assert [sample.file_name for sample in prepared_data(folder).dataset.samples] == ["3.png", "8.png"]


def test_a_caption_of_a_million_characters_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    nouns = SpacyNounExtractor().extract(
        ["a dog" + " " * 2_000_000 + "and a cat", "a kite. " + "!" * 2_000_000 + " a cat"]
    )
    assert nouns == [["dog", "cat"], ["kite"]]
    assert caplog.messages == [f"1 caption was cut to {MAX_CAPTION} characters"]
