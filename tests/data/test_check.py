"""Tests that `ovseg data check` reads every file and lists faults, and that `ovseg test` checks files first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.data.benchmarks import find_benchmarks
from ovseg.data.vocabulary import read_vocabulary
from tests.data import layouts
from tests.data.worlds import write_pair
from tests.stages import CONF, ovseg, refusal, write

Capture = pytest.CaptureFixture[str]
IN_PROCESS = ("--num_workers", 0)


def printed(capsys: Capture, *words: object) -> list[str]:
    capsys.readouterr()
    ovseg("data", "check", *words, *IN_PROCESS)
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that every benchmark was published with two images."""
    for benchmark in find_benchmarks().values():
        monkeypatch.setattr(benchmark, "layout", benchmark.layout._replace(total=2))


@pytest.mark.usefixtures("miniature")
def test_images_labels_and_classes_are_counted(tmp_path: Path, capsys: Capture) -> None:
    layouts.pascal_voc(tmp_path, [[0, 1, 20], [255, 15, 0]], [[1, 1, 1], [3, 3, 3]])
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    lines = printed(capsys, "pascal_voc_20", "--root", tmp_path)
    assert lines[:3] == [
        f"images: {voc / 'JPEGImages'}",
        f"labels: {voc / 'SegmentationClass'}",
        f"split: {voc / 'ImageSets/Segmentation/val.txt'}",
    ]
    names = read_vocabulary("pascal_voc_20").names
    absent = [name for index, name in enumerate(names) if index not in (0, 2, 14, 19)]
    assert lines[3:] == ["2 images, 2 labels, 4 of 20 classes present", f"absent: {', '.join(absent[:10])} and 6 more"]
    assert printed(capsys, "pascal_voc_20b", "--root", tmp_path)[3] == "2 images, 2 labels, 5 of 21 classes present"


def test_all_classes_can_be_present_and_several_processes_read_the_files(tmp_path: Path, capsys: Capture) -> None:
    layouts.coco_stuff(tmp_path, *([[value] * 3] * 2 for value in (0, 1)))
    (tmp_path / "words.txt").write_text("person\nbicycle\n")
    folders = {
        part: tmp_path / "coco" / folder / "val2017" for part, folder in (("images", ""), ("labels", "stuffthingmaps"))
    }
    own = write(
        tmp_path / "own.yaml",
        "class_path: ovseg.data.SegmentationBenchmark\n"
        f"init_args: {{images: {folders['images']}, labels: {folders['labels']}, vocabulary: {tmp_path}/words.txt}}",
    )
    ovseg("data", "check", own, "--num_workers", 2)
    assert capsys.readouterr().out.splitlines()[-1] == "2 images, 2 labels, 2 of 2 classes present"


@pytest.mark.usefixtures("miniature")
def test_a_packaged_config_can_be_checked_at_another_root(tmp_path: Path, capsys: Capture) -> None:
    layouts.ade20k_150(tmp_path, [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 7]])
    lines = printed(capsys, CONF / "data" / "ade20k_150.yaml", "--root", tmp_path)
    assert lines[2] == "2 images, 2 labels, 7 of 150 classes present"


def test_an_incomplete_benchmark_is_refused(tmp_path: Path, capsys: Capture) -> None:
    layouts.ade20k_847(tmp_path, [[2978, 312, 0], [5, 6000, 2978]])
    with pytest.raises(SystemExit) as stopped:
        printed(capsys, "ade20k_847", "--root", tmp_path)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "ovseg: ade20k_847 has 1 images here but 2,000 were published; unpack ADE20K_2021_17_01.zip"
    )


def test_every_fault_is_listed(tmp_path: Path, capsys: Capture) -> None:
    """There are more files than the datamodule checks at the start of a run."""
    folders = tmp_path / "images", tmp_path / "labels"
    for number in range(110):
        write_pair(*folders, f"{number:03}", np.zeros((4, 6)))
    jpeg = tmp_path / "images" / "001.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-60])
    Image.new("L", (6, 5)).save(tmp_path / "labels" / "004.png")
    Image.new("L", (6, 4), 9).save(tmp_path / "labels" / "007.png")
    own = write(
        tmp_path / "own.yaml",
        "class_path: ovseg.data.SegmentationBenchmark\n"
        f"init_args: {{images: {folders[0]}, labels: {folders[1]}, vocabulary: 'sky, sea'}}",
    )
    with pytest.raises(SystemExit) as stopped:
        ovseg("data", "check", own, *IN_PROCESS)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    faults = out.splitlines()
    assert len(faults) == 3
    assert faults[0].startswith(f"{jpeg} cannot be used (")
    assert faults[1].startswith(f"{tmp_path}/labels/004.png is 6 x 5 pixels but {tmp_path}/images/004.jpg is 6 x 4")
    assert faults[2].startswith(f"{tmp_path}/labels/007.png has the value 9, which is not a class of sky, sea")
    assert err.splitlines()[-1].startswith("ovseg: 3 of 110 images or their labels cannot be used, see above; replace")


def test_wrong_arguments_are_refused(tmp_path: Path, capsys: Capture) -> None:
    assert "required: action, benchmark; give --action and --benchmark" in refusal(capsys, "data")
    assert "required: benchmark; give --benchmark" in refusal(capsys, "data", "check")
    assert "action: Expected a Literal['check']. Got value: look" in refusal(capsys, "data", "look", "ade20k_150")
    assert "there is no benchmark 'ade20k'; choose one of ade20k_150, " in refusal(capsys, "data", "check", "ade20k")
    empty_root = refusal(capsys, "data", "check", "ade20k_150", "--root", tmp_path)
    assert empty_root.startswith(
        f"ade20k_150 has no images ({tmp_path}/ADEChallengeData2016/images/validation) and no labels"
    )
    surplus = refusal(capsys, "data", "check", "ade20k_150", "stray", "words")
    assert surplus.startswith(
        "data: unexpected stray words: `ovseg data` takes only action and benchmark without a flag; "
    )


def test_files_that_configure_no_benchmark_are_named(tmp_path: Path, capsys: Capture) -> None:
    hint = "; give the YAML file of a benchmark, such as conf/data/own.yaml, or the name of one"
    for file, report in {
        CONF / "data" / "coco_captions.yaml": "configures CaptionDataModule, which is training data, not a benchmark",
        CONF / "data" / "region_text.yaml": "configures RegionTextDataModule, which is training data, not a benchmark",
        CONF / "test.yaml": "configures a run, not a benchmark",
        write(tmp_path / "words.txt", "sky\nsea\n"): "is not the YAML file of a benchmark, which has a class_path",
        write(tmp_path / "notes.txt", "Bad: [text"): "is not a YAML file",
    }.items():
        assert refusal(capsys, "data", "check", file) == f"{file} {report}{hint}"
    empty = write(tmp_path / "own.yaml", "")
    assert refusal(capsys, "data", "check", empty).startswith(f"{empty} is empty; ")


def test_labels_without_a_class_are_refused(tmp_path: Path, capsys: Capture) -> None:
    for number in range(2):
        write_pair(tmp_path / "images", tmp_path / "labels", f"{number}", np.full((4, 6), 255))
    own = write(
        tmp_path / "own.yaml",
        "class_path: ovseg.data.SegmentationBenchmark\n"
        f"init_args: {{images: {tmp_path}/images, labels: {tmp_path}/labels, vocabulary: 'sky, sea'}}",
    )
    with pytest.raises(SystemExit) as stopped:
        printed(capsys, own)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "ovseg: no pixel of the 2 labels has a class, all are unlabelled; correct label_offset, or give other labels "
        f"than {tmp_path}/labels"
    )


def test_missing_files_are_found_before_the_model_is_built(tmp_path: Path, capsys: Capture) -> None:
    words = (
        "test",
        "--config",
        CONF / "test.yaml",
        "--data",
        CONF / "data" / "ade20k_847.yaml",
        "--data.root",
        tmp_path,
    )
    paths = ("--trainer.default_root_dir", tmp_path / "run", "--model.segmenter", tmp_path / "none")
    assert "ade20k_847 has no images (" in refusal(capsys, *words, *paths)
    layouts.ade20k_847(tmp_path, [[2978, 312, 0], [5, 6000, 2978]])
    assert f"no segmenter in {tmp_path}/none" in refusal(capsys, *words, *paths)
    assert not (tmp_path / "run").exists()
