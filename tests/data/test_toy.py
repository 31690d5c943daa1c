"""Tests of the toy world: reproducible bytes, consistent labels and captions that can be parsed."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ovseg.data.captions.nouns import SpacyNounExtractor
from ovseg.data.toy import NOUNS, TRAINING_CLASSES, make_scene, toy_words, write_toy
from ovseg.data.toy.folder import scene_captions
from ovseg.data.toy.shapes import outline
from ovseg.structures import InputError
from tests.data.test_pairs import files_of_at_most


def hashes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "world"
    write_toy(out, scenes=12, seed=3)
    return out


def read_regions(world: Path, split: str) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Return noun and mask of every region by the stem of its image."""
    coco = COCO(world / "annotations" / f"regions_{split}.json")
    return {
        Path(image["file_name"]).stem: [
            (entry["category_id"] - 1, coco.annToMask(entry).astype(bool)) for entry in coco.imgToAnns[number]
        ]
        for number, image in coco.imgs.items()
    }


def read_labels(world: Path, split: str) -> dict[str, np.ndarray]:
    return {
        path.stem: np.asarray(Image.open(path)) for path in sorted((world / "stuffthingmaps" / split).glob("*.png"))
    }


def test_same_seed_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    write_toy(tmp_path / "same", scenes=12, seed=3)
    write_toy(tmp_path / "other", scenes=12, seed=4)
    assert hashes(tmp_path / "same") == hashes(world)
    images = {name: digest for name, digest in hashes(tmp_path / "other").items() if name.endswith(".jpg")}
    assert not set(images.values()) & set(hashes(world).values())


def test_a_smaller_world_is_the_beginning_of_a_larger_one(world: Path, tmp_path: Path) -> None:
    write_toy(tmp_path / "few", scenes=4, seed=3, val_scenes=2)
    few, many = hashes(tmp_path / "few"), hashes(world)
    pictures = [name for name in few if name.endswith((".jpg", ".png"))]
    assert len(pictures) == 12
    assert all(few[name] == many[name] for name in pictures)
    for name in ("captions_train2017", "regions_train2017"):
        short, long = (
            json.loads((root / "annotations" / f"{name}.json").read_text()) for root in (tmp_path / "few", world)
        )
        assert short["annotations"] == long["annotations"][: len(short["annotations"])]


def test_training_labels_replace_only_unseen_nouns_by_catch_alls(world: Path) -> None:
    labels, regions = read_labels(world, "train2017"), read_regions(world, "train2017")
    assert len(labels) == len(regions) == 12
    catch_alls = set()
    for stem, label in labels.items():
        assert label.dtype == np.uint8
        for noun, mask in regions[stem]:
            if NOUNS[noun].seen:
                expected = NOUNS[noun].name
            else:
                expected = "other ground" if NOUNS[noun].stuff else "other thing"
                catch_alls.add(expected)
            assert {TRAINING_CLASSES[value] for value in label[mask]} == {expected}
    assert catch_alls == {"other thing", "other ground"}


def test_a_catch_all_label_covers_one_noun_per_training_scene(world: Path) -> None:
    for regions in read_regions(world, "train2017").values():
        unseen = {noun for noun, _ in regions if not NOUNS[noun].seen}
        assert sum(NOUNS[noun].stuff for noun in unseen) <= 1
        assert sum(not NOUNS[noun].stuff for noun in unseen) <= 1


def test_benchmark_regions_partition_the_label_map(world: Path) -> None:
    labels, regions = read_labels(world, "val2017"), read_regions(world, "val2017")
    assert labels
    for stem, label in labels.items():
        painted = np.full(label.shape, 255)
        for noun, mask in regions[stem]:
            assert (painted[mask] == 255).all()  # regions are disjoint
            painted[mask] = noun
        assert (painted == label).all()


def test_vocabulary_files_agree_with_the_nouns() -> None:
    folder = resources.files("ovseg.data") / "vocabularies"
    full, training = (json.loads((folder / name).read_text()) for name in ("toy.json", "toy_train.json"))
    assert full["classes"] == [noun.name for noun in NOUNS]
    assert full["synonyms"] == [list(noun.synonyms) for noun in NOUNS]
    assert full["seen"] == [int(noun.seen) for noun in NOUNS]
    assert sum(full["seen"]) == 16
    assert training["classes"] == list(TRAINING_CLASSES)
    assert [vocabulary["dataset_ids"][-1] for vocabulary in (full, training)] == [24, 18]


def test_pycocotools_reads_the_captions(world: Path) -> None:
    coco = COCO(world / "annotations" / "captions_train2017.json")
    assert sorted(coco.imgs) == list(range(1, 13))
    assert all(2 <= len(coco.imgToAnns[number]) <= 3 for number in coco.imgs)
    for image in coco.imgs.values():
        assert Image.open(world / "train2017" / image["file_name"]).size == (image["width"], image["height"])


def test_a_complete_world_is_not_written_again(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    write_toy(world, scenes=12, seed=3)
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before
    assert "nothing to do" in capsys.readouterr().out


def test_folders_with_other_content_are_refused(world: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="not a toy world"):
        write_toy(tmp_path, scenes=2)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(InputError, match="a toy world with other settings"):
        write_toy(world, scenes=13, seed=3)
    with pytest.raises(InputError, match="at least 1 scene"):
        write_toy(tmp_path / "none", scenes=0)


def test_an_interrupted_world_is_written_from_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "world"
    with monkeypatch.context() as patch:
        patch.setattr("ovseg.data.toy.folder.scene_captions", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_toy(out, scenes=2)
    assert not out.exists()
    write_toy(out, scenes=2)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    assert len(list((out / "train2017").iterdir())) == 2


@pytest.mark.parametrize("size", [32, 96, 320])
def test_regions_cover_a_scene_of_any_size(size: int) -> None:
    scene = make_scene(0, 0, size)
    assert scene.image.shape == (size, size, 3)
    assert (np.sum([region.mask for region in scene.regions], axis=0) == 1).all()


def test_things_usually_have_their_typical_look() -> None:
    things = [r for i in range(150) for r in make_scene(1, i, 32).regions if not NOUNS[r.noun].stuff]
    colours = [region.colour in dict(NOUNS[region.noun].looks) for region in things]
    patterns = [region.pattern == NOUNS[region.noun].pattern for region in things]
    assert 0.82 < np.mean(colours) < 0.94  # 85 % plus chance agreement
    assert 0.82 < np.mean(patterns) < 0.94
    assert {region.noun for region in things} == {index for index, noun in enumerate(NOUNS) if not noun.stuff}


@pytest.mark.parametrize("name", [noun.name for noun in NOUNS if not noun.stuff])
def test_outlines_fill_the_unit_disc(name: str) -> None:
    shape = outline(name)
    for polygon in (shape.body, *shape.holes):
        assert np.hypot(*polygon.T).max() < 1.4
    run_lengths = coco_mask.frPyObjects([((shape.body + 1.5) * 50).ravel().tolist()], 150, 150)
    assert 0.15 < coco_mask.area(run_lengths)[0] / (np.pi * 50**2) < 1.0


def test_noun_extraction_recalls_the_nouns_of_captions() -> None:
    singular = {word: word for noun in NOUNS for word in noun.synonyms}
    singular |= {plural: noun.words[i] for noun in NOUNS for i, plural in enumerate(noun.plurals)}
    singular |= {"bricks": "brick", "planks": "plank", "pebbles": "pebble", "stones": "stone"}
    captions = [text for i in range(60) for text in scene_captions(make_scene(0, i, 32), 0, i, "train2017")]
    expected = [
        {singular[word] for word in re.findall("[a-z]+", text.lower()) if word in singular} for text in captions
    ]
    extracted = [set(nouns) for nouns in SpacyNounExtractor().extract(captions)]
    recalled = sum(len(words & nouns) for words, nouns in zip(expected, extracted, strict=True))
    assert recalled / sum(map(len, expected)) > 0.95
    additional = [nouns - words for words, nouns in zip(expected, extracted, strict=True)]
    assert np.mean([bool(nouns) for nouns in additional]) < 0.3  # absent things and a few colours


def test_captions_usually_mention_what_is_present() -> None:
    words = {word: index for index, noun in enumerate(NOUNS) for word in noun.synonyms}
    correct = []
    for index in range(60):
        scene = make_scene(0, index, 32)
        present = {region.noun for region in scene.regions}
        for text in scene_captions(scene, 0, index, "train2017"):
            correct += [words[word] in present for word in re.findall("[a-z]+", text.lower()) if word in words]
    assert 0.93 < np.mean(correct) < 1.0


def test_toy_words_contain_every_word_of_captions_and_prompts() -> None:
    known = set(toy_words())
    captions = [text for i in range(200) for text in scene_captions(make_scene(2, i, 32), 2, i, "x")]
    assert {word for text in captions for word in re.findall("[a-z]+", text.lower())} <= known
    prompts = "this is a photo of the small medium large thing in scene there other ground"
    assert set(re.findall("[a-z]+", prompts)) <= known


def test_a_full_disk_leaves_nothing_of_a_toy_world(tmp_path: Path) -> None:
    out = tmp_path / "world"
    with files_of_at_most(1000), pytest.raises(InputError) as error:
        write_toy(out, scenes=1)
    assert str(error.value).startswith(f"{out} cannot be written (File too large); free disk space")
    assert list(tmp_path.iterdir()) == []
