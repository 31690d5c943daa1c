"""The published benchmarks as downloaded, in miniature: label maps value by value, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovseg.data.benchmarks import (
    ADE20K150DataModule,
    ADE20K847DataModule,
    Benchmark,
    COCOStuff171DataModule,
    PascalContext59DataModule,
    PascalContext459DataModule,
    PascalVOC20bDataModule,
    PascalVOC20DataModule,
    PascalVOC21DataModule,
    find_benchmarks,
)
from ovseg.images import read_image, to_tensor
from ovseg.structures import InputError
from tests.data import layouts

_, W = 255, 65535  # unlabelled


def labels(data: Benchmark) -> list[list[list[int]]]:
    """As they reach the task, one batch an image."""
    batches = list(data.test_dataloader())
    assert all(batch.sizes == [tuple(batch.labels[0].shape)] for batch in batches)
    assert [batch.names for batch in batches] == [[str(image)] for image in data.labels.images]
    return [batch.labels[0].tolist() for batch in batches]


def test_ade20k_150(tmp_path: Path) -> None:
    layouts.ade20k_150(tmp_path, [[0, 1, 2], [150, 1, 0]], [[3, 3, 3], [3, 3, 3]])
    data = ADE20K150DataModule(str(tmp_path), resize=(6, 24))
    assert labels(data) == [[[_, 0, 1], [149, 0, _]], [[2, 2, 2], [2, 2, 2]]]
    assert next(iter(data.test_dataloader())).images[0].shape == (3, 6, 9)
    assert data.vocabulary.names[149] == "flag" and data.vocabulary.ignore_index == _
    layouts.ade20k_150(tmp_path, [[151, 1, 2], [150, 1, 0]])
    with pytest.raises(
        InputError, match=r"validation.ADE_val_00000001\.png has the value 151, which is not a class of ade20k_150"
    ):
        ADE20K150DataModule(str(tmp_path))


def test_ade20k_847(tmp_path: Path) -> None:
    # 2978 is wall, the first class; 312 building, the second; 0 and 5 are objects outside the vocabulary
    layouts.ade20k_847(tmp_path, [[2978, 312, 0], [5, 6000, 2978]], [[312, 312, 312], [312, 312, 312]])
    data = ADE20K847DataModule(str(tmp_path), protocol="full")
    assert labels(data) == [[[1, 1, 1], [1, 1, 1]], [[0, 1, W], [W, W, 0]]]  # home_or_hotel comes before urban
    assert data.vocabulary.ignore_index == W and data.vocabulary.names[:2] == ("wall", "building, edifice")
    (seg,) = tmp_path.rglob("ADE_val_00000002_seg.png")
    seg.unlink()
    with pytest.raises(InputError, match=r"1 of 2 files have no label in .*: .*ADE_val_00000002\.jpg"):
        ADE20K847DataModule(str(tmp_path))


def test_every_class_of_ade20k_847_has_its_index(tmp_path: Path) -> None:
    from ovseg.data.vocabulary import read_dataset_ids

    ids = read_dataset_ids("ade20k_847")
    assert ids is not None
    layouts.ade20k_847(tmp_path, [ids])
    assert labels(ADE20K847DataModule(str(tmp_path), protocol="full")) == [[list(range(847))]]


def test_ade20k_847_is_reduced_before_the_network_and_the_score(tmp_path: Path) -> None:
    # blocks of 300 pixels: 600 x 900 become 512 x 768, blocks of 256; the network sees these at 640 x 960
    wall, building = np.full((300, 300), 2978), np.full((300, 300), 312)
    layouts.ade20k_847(tmp_path, np.block([[wall, building, wall * 0], [building, wall, wall]]).tolist())
    (scene,) = tmp_path.rglob("*.jpg")
    data = ADE20K847DataModule(str(tmp_path), resize=(640, 2560))
    (batch,) = data.test_dataloader()
    assert batch.sizes == [(512, 768)] and batch.images[0].shape == (3, 640, 960)
    expected = torch.tensor([[0, 1, W], [1, 0, 0]]).repeat_interleave(256, 0).repeat_interleave(256, 1)
    assert torch.equal(batch.labels[0], expected.int())
    seen = F.interpolate(to_tensor(read_image(scene))[None], (512, 768), mode="bilinear", align_corners=False)
    seen = F.interpolate(seen, (640, 960), mode="bilinear", align_corners=False)[0]
    assert (batch.images[0] - seen).abs().max() < 2.5 / 255  # rounded to bytes twice; not so if seen at full size

    (full,) = ADE20K847DataModule(str(tmp_path), resize=(640, 2560), protocol="full").test_dataloader()
    assert full.sizes == [(600, 900)] and full.images[0].shape == (3, 640, 960)
    assert (full.images[0] - seen).abs().max() > 0.1
    with pytest.raises(InputError, match=r"data\.protocol is 'paper'; give release or full"):
        ADE20K847DataModule(str(tmp_path), protocol="paper")  # type: ignore[arg-type]


def test_small_images_of_ade20k_847_stay_as_they_are(tmp_path: Path) -> None:
    layouts.ade20k_847(tmp_path, [[2978, 312, 0], [312, 2978, 2978]])
    (batch,) = ADE20K847DataModule(str(tmp_path), resize=(4, 16)).test_dataloader()
    assert batch.images[0].shape == (3, 4, 6) and batch.sizes == [(2, 3)]
    assert batch.labels[0].tolist() == [[0, 1, W], [1, 0, 0]]


@pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationClassAug"])
def test_pascal_voc_in_its_three_forms(folder: str, tmp_path: Path) -> None:
    layouts.pascal_voc(tmp_path, [[0, 1, 20], [255, 15, 0]], folder=folder)
    assert labels(PascalVOC20DataModule(str(tmp_path))) == [[[_, 0, 19], [_, 14, _]]]
    assert labels(PascalVOC21DataModule(str(tmp_path))) == [[[0, 1, 20], [_, 15, 0]]]
    rest = PascalVOC20bDataModule(str(tmp_path))
    assert labels(rest) == [[[20, 0, 19], [_, 14, 20]]]
    assert (len(rest.vocabulary), len(rest.vocabulary.scored_names)) == (59, 21)


@pytest.mark.parametrize("split", ["pascalcontext_val.txt", "ImageSets/Main/val.txt"])
def test_pascal_context(split: str, tmp_path: Path) -> None:
    # of the 459, accordion is 1, aeroplane 2, bicycle 23, unknown 431; aeroplane and bicycle are the first of the 59
    layouts.pascal_context(tmp_path, [[0, 1, 2], [23, 431, 459]], split=split)
    every = PascalContext459DataModule(str(tmp_path))
    assert labels(every) == [[[W, 0, 1], [22, 430, 458]]]
    assert every.vocabulary.names[430] == "unknown" and every.locations["split"].name == Path(split).name
    assert labels(PascalContext59DataModule(str(tmp_path))) == [[[_, _, 0], [1, _, _]]]


def test_a_list_of_pascal_context_goes_before_that_of_voc(tmp_path: Path) -> None:
    layouts.pascal_context(tmp_path, [[2, 2, 2], [2, 2, 2]], split="ImageSets/Main/val.txt")
    layouts.write_list(tmp_path / "VOCdevkit/VOC2010/pascalcontext_val.txt", [])
    with pytest.raises(InputError, match=r"pascalcontext_val\.txt lists no images; unpack VOCtrainval_03-May-2010"):
        PascalContext59DataModule(str(tmp_path))


def test_coco_stuff(tmp_path: Path) -> None:
    # id 13, the twelfth that is used, is stop sign; id 182 the last; ids 12 and 183 are none
    layouts.coco_stuff(tmp_path, [[0, 12, 181], [255, 0, 0]])
    data = COCOStuff171DataModule(str(tmp_path))
    assert labels(data) == [[[0, 11, 170], [_, 0, 0]]]
    assert (data.vocabulary.names[11], data.vocabulary.names[170]) == ("stop sign", "wood")
    for value in (11, 182):
        layouts.coco_stuff(tmp_path, [[0, 12, 181], [255, value, 0]])
        with pytest.raises(
            InputError, match=f"has the value {value}, which is not a class of coco_stuff_171; use .* as downloaded"
        ):
            COCOStuff171DataModule(str(tmp_path))


def test_prepared_coco_stuff_is_read_under_its_own_name(tmp_path: Path) -> None:
    values = [[0, 11, 170], [255, 0, 0]]
    layouts.coco_stuff(tmp_path, values, folder="stuffthingmaps_detectron2", images="images/val2017")
    assert labels(COCOStuff171DataModule(str(tmp_path / "coco"))) == [values]


def test_prepared_pascal_context_is_not_trusted(tmp_path: Path) -> None:
    layouts.pascal_context(tmp_path, [[2, 2, 2], [2, 2, 2]])
    voc = tmp_path / "VOCdevkit" / "VOC2010"
    (voc / "annotations_detectron2" / "pc59_val").mkdir(parents=True)
    (voc / "trainval").rename(voc / "elsewhere")
    with pytest.raises(InputError, match=r"pascal_context_59 has no labels \(.*VOC2010.trainval\); unpack .* \*\.mat"):
        PascalContext59DataModule(str(tmp_path))


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_root_may_be_the_benchmark_or_hold_it(below: str, tmp_path: Path) -> None:
    layouts.pascal_voc(tmp_path, [[1, 2, 3], [4, 5, 6]])
    assert labels(PascalVOC20DataModule(str(tmp_path / below))) == [[[0, 1, 2], [3, 4, 5]]]


@pytest.mark.parametrize("name", find_benchmarks())
def test_a_wrong_root_says_what_is_missing_where_and_where_it_comes_from(name: str, tmp_path: Path) -> None:
    benchmark = find_benchmarks()[name]
    with pytest.raises(InputError) as caught:
        benchmark(str(tmp_path / "nowhere"))
    sentence = str(caught.value)
    home, *others = benchmark.layout.homes
    assert sentence.startswith(f"{name} has no images ({tmp_path / 'nowhere' / home / benchmark.layout.images[0]}")
    assert all(str(tmp_path / "nowhere" / place) in sentence for place in others)
    assert sentence.endswith(benchmark.layout.source)


def test_missing_and_empty_parts_are_named(tmp_path: Path) -> None:
    layouts.pascal_voc(tmp_path, [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]])
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    (voc / "SegmentationClass" / "2007_000001.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 files have no label in .*SegmentationClass: .*001\.jpg"):
        PascalVOC20DataModule(str(tmp_path))
    (voc / "JPEGImages" / "2007_000000.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 2 files have no image in .*JPEGImages: .*000\.png; unpack"):
        PascalVOC20DataModule(str(tmp_path))
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match=r"val\.txt is not a text file in UTF-8; unpack VOCtrainval"):
        PascalVOC20DataModule(str(tmp_path))
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(InputError, match=r"pascal_voc_20 has no split \(.*Segmentation.val\.txt\); unpack VOCtrainval"):
        PascalVOC20DataModule(str(tmp_path))
    (tmp_path / "ADE20K_2021_17_01/images/ADE/validation").mkdir(parents=True)
    with pytest.raises(InputError, match=r"validation has no images; unpack ADE20K_2021_17_01\.zip"):
        ADE20K847DataModule(str(tmp_path))
    for part in ("images", "annotations"):
        (tmp_path / "ADEChallengeData2016" / part / "validation").mkdir(parents=True)
    with pytest.raises(InputError, match=r"validation has no images; unpack ADEChallengeData2016\.zip"):
        ADE20K150DataModule(str(tmp_path))


def test_names_may_be_others_of_the_same_classes(tmp_path: Path) -> None:
    layouts.pascal_voc(tmp_path, [[0, 1, 20], [255, 15, 0]])
    own = PascalVOC20DataModule(str(tmp_path)).vocabulary
    words = tmp_path / "words.txt"
    words.write_text("".join(f"my {name}; {name}\n" for name in own.names))
    data = PascalVOC20DataModule(str(tmp_path), vocabulary=str(words))
    assert labels(data) == [[[_, 0, 19], [_, 14, _]]]
    assert data.vocabulary.synonyms[0] == ("my aeroplane", "aeroplane") and data.vocabulary.seen == own.seen
    more = PascalVOC20DataModule(str(tmp_path), synonyms=True).vocabulary
    assert (own.synonyms[0], more.synonyms[1]) == (("aeroplane",), ("bicycle", "bicycles", "bike", "bikes"))
    with pytest.raises(InputError, match="cat, dog names 2 classes but pascal_voc_20 has 20; name each of"):
        PascalVOC20DataModule(str(tmp_path), vocabulary="cat, dog")
