"""Whole runs of `ovseg mine`: killed and resumed, on two processes, with broken files, and `ovseg pairs`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from ovseg.data import read_pairs
from ovseg.data.pairs import write_pairs
from tests import killed, tiny
from tests.stages import CONF, REPOSITORY, ovseg, refusal

SCENES, SHARD, BATCH = 11, 4, 3  # three shards of two, two and one batches
SHARDS = [f"pairs-{shard:05d}.parquet" for shard in range(3)]
Mine = Callable[..., list[str]]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Mine:
    """Words of a command line that mines a few scenes with networks of random weights."""
    root = tmp_path_factory.mktemp("mining")
    ovseg("toy", "--out", root / "world", "--scenes", SCENES, "--val_scenes", 1)
    tiny.clip(root / "new").save_pretrained(root / "clip")
    tiny.proposer(seed=4).save_pretrained(root / "proposer")

    def words(out: Path, *more: object) -> list[str]:
        data = ["--data.images", root / "world" / "train2017", "--data.short_side", 64, "--data.batch_size", BATCH]
        captions = ["--data.captions", root / "world" / "annotations" / "captions_train2017.json", "--out", out]
        model = ["--model.clip.model", root / "clip", "--model.proposer", root / "proposer"]
        rest = ["--shard_images", SHARD, "--trainer.enable_progress_bar", "false", *more]
        return [str(word) for word in ["mine", "--config", CONF / "toy" / "mine.yaml", *model, *data, *captions, *rest]]

    return words


@pytest.fixture(scope="module")
def whole(mine: Mine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "pairs"
    assert killed.run(mine(out)) == 0
    assert len(read_pairs(out)) > SCENES
    return out


def files(store: Path) -> dict[str, bytes]:
    """All that is in a store, but for the configuration of the run and the copy that readers share."""
    return {file.name: file.read_bytes() for file in store.iterdir() if file.suffix not in (".yaml", ".arrow")}


def names(store: Path) -> list[tuple[str, str]]:
    """The files and nouns of all pairs, which do not depend on the number of threads as the last bits of floats do."""
    return [(pair.file_name, pair.noun) for pair in read_pairs(store)]


KILLS = [  # where, and the shards that are there then
    ({"batches": 1}, 0),
    ({"batches": 2}, 0),  # the first shard is mined, and not written
    ({"batches": 4}, 1),
    ({"files": 1}, None),  # `store.json` is written, and has no name
    ({"files": 3}, 1),  # the second shard is written, and has no name
]


@pytest.mark.parametrize(("moment", "shards"), KILLS, ids=str)
def test_a_killed_run_goes_on_to_the_same_bytes(
    moment: dict[str, int], shards: int | None, mine: Mine, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pairs"
    assert killed.run(mine(out), **moment) == -9
    found = {name for name in files(out) if name in SHARDS}
    assert found == set(SHARDS[: shards or 0])
    assert (out / "store.json").is_file() == (shards is not None)
    before = {name: (out / name).stat().st_mtime_ns for name in found}
    assert killed.run(mine(out)) == 0
    assert files(out) == files(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in found} == before  # not mined again


def test_a_run_killed_twice_goes_on(mine: Mine, whole: Path, tmp_path: Path) -> None:
    for batches in (3, 2):
        assert killed.run(mine(tmp_path / "pairs"), batches=batches) == -9
    assert killed.run(mine(tmp_path / "pairs")) == 0
    assert files(tmp_path / "pairs") == files(whole)


def test_a_complete_store_is_reported_and_left_alone(
    mine: Mine, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole.iterdir()}
    ovseg(*mine(whole))
    pairs = read_pairs(whole)
    nouns = len(pairs.column("noun").unique())
    assert f"{len(pairs)} pairs of {nouns} unique nouns in {SCENES} images" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in whole.iterdir()} == before


def test_other_settings_are_refused_before_any_work(
    mine: Mine, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(whole)
    words = mine(whole, "--model.mask_threshold", 0.3, "--data.captions_per_image", "null")
    sentence = refusal(capsys, *words)
    assert (
        f"{whole} already contains pairs with different settings: mask_threshold was 0.5 and is now 0.3, " in sentence
    )
    assert "captions_per_image was 1 and is now None; choose another --out" in sentence
    assert files(whole) == before


def test_two_processes_mine_what_one_does(mine: Mine, whole: Path, tmp_path: Path) -> None:
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "ovseg", *mine(tmp_path / "pairs", *ddp)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert done.stdout.count("unique nouns") == 1
    assert files(tmp_path / "pairs") == files(whole)


# Files that cannot be used


@pytest.fixture
def copied(mine: Mine, tmp_path: Path) -> Path:
    """Images that a test may break."""
    words = mine(tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    for image in Path(words[words.index("--data.images") + 1]).iterdir():
        (folder / image.name).write_bytes(image.read_bytes())
    return folder


def test_a_broken_image_is_left_out_and_the_exit_code_says_so(
    mine: Mine, whole: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copied / "000000000006.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    words = mine(tmp_path / "pairs", "--data.images", copied)
    for _ in range(2):  # mined, and then complete
        sentence = refusal(capsys, *words)
        assert f"1 images could not be used and were left out, the first: {broken} cannot be used" in sentence
    assert str(broken) in (tmp_path / "pairs" / "log.txt").read_text()
    assert names(tmp_path / "pairs") == [found for found in names(whole) if found[0] != broken.name]
    ovseg("pairs", "stats", tmp_path / "pairs")
    assert "1 unreadable images" in capsys.readouterr().out


def test_a_disk_that_is_gone_stops_the_run(
    mine: Mine, whole: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (5, 6, 7, 8):  # the second shard
        (copied / f"{number:012d}.jpg").write_text("")
    words = mine(tmp_path / "pairs", "--data.images", copied)
    assert "none of the 4 images of shard 1 can be used, the first: " in refusal(capsys, *words)
    assert (tmp_path / "pairs" / SHARDS[0]).is_file() and not (tmp_path / "pairs" / SHARDS[1]).exists()
    ovseg(*mine(tmp_path / "pairs"))  # the images are back
    assert names(tmp_path / "pairs") == names(whole)


def test_wrong_parts_are_refused(mine: Mine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = mine(tmp_path / "pairs")
    captions = words[words.index("--data.captions") + 1]
    masks = Path(captions).with_name("regions_train2017.json")
    assert "--model.proposer and --data.masks are both set; set one of them to null" in refusal(
        capsys, *words, "--data.masks", masks
    )
    assert "mining needs regions: set --model.proposer" in refusal(capsys, *words, "--model.proposer", "null")
    assert not (tmp_path / "pairs").exists()
    out = ["--out", tmp_path / "other"]
    assert "shard_images is 0; give at least 1" in refusal(capsys, *words, *out, "--shard_images", 0)
    for name in ("captions_per_image", "short_side", "batch_size"):
        assert f"{name} is 0; give at least " in refusal(capsys, *words, *out, f"--data.{name}", 0)
    assert "regions_per_batch is 0; give at least 1" in refusal(
        capsys, *words, *out, "--model.region_encoder.regions_per_batch", 0
    )
    assert "mask_threshold is 2.0; give a number from 0 to 1" in refusal(
        capsys, *words, *out, "--model.mask_threshold", 2
    )
    assert "images of the captions or masks are missing from" in refusal(
        capsys, *words, *out, "--data.images", tmp_path
    )
    assert "no-such.json cannot be read" in refusal(capsys, *words, *out, "--data.captions", "no-such.json")
    data = ["--data", "ovseg.data.ImagesDataModule", "--data.images", tmp_path, "--data.vocabulary", "cat, dog"]
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    config = ["mine", "--config", CONF / "toy" / "mine.yaml", "--out", tmp_path / "other", *data]
    assert "needs a MiningTask and a CaptionDataModule, not MiningTask and ImagesDataModule" in refusal(capsys, *config)
    assert not (tmp_path / "other" / "store.json").exists()


# Looking at a store


class Figures(HTMLParser):
    """Counts the pictures of a page, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.loaded = 0, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.inside += name == "src" and str(value).startswith("data:image/jpeg;base64,")
            self.loaded += name in ("src", "href") and not str(value).startswith("data:")


def test_show_draws_pairs_of_a_noun(mine: Mine, whole: Path, tmp_path: Path) -> None:
    words = mine(tmp_path)
    images = words[words.index("--data.images") + 1]
    noun = read_pairs(whole)[0].noun
    expected = sum(pair.noun == noun for pair in read_pairs(whole))
    page = tmp_path / "pages" / "page.html"
    ovseg("pairs", "show", whole, "--noun", noun, "--images", images, "--out", page)
    figures = Figures()
    figures.feed(page.read_text())
    assert (figures.inside, figures.loaded) == (expected, 0)
    assert page.read_text().count(f"<b>{noun}</b>") == expected
    ovseg("pairs", "show", whole, "--out", page, "--count", 5)  # the images are where they were
    assert page.read_text().count("<figure>") == 5


def test_show_says_what_it_needs(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show = ("pairs", "show", whole)
    write_pairs(tmp_path / "pairs", read_pairs(whole)[:1])
    assert "give --images the folder" in refusal(capsys, "pairs", "show", tmp_path / "pairs")
    assert "count is 0; give at least 1" in refusal(capsys, *show, "--count", 0)
    assert "no pair of the noun 'unicorn'" in refusal(capsys, *show, "--noun", "unicorn", "--images", tmp_path)
    assert "does not exist" in refusal(capsys, *show, "--images", tmp_path)
    pair = read_pairs(whole)[0]
    for found in read_pairs(whole):
        Image.new("RGB", (9, 9)).save(tmp_path / found.file_name)
    assert f"but was mined at {pair.size[1]} x {pair.size[0]}" in refusal(capsys, *show, "--images", tmp_path)
    assert "pairs not found in" in refusal(capsys, "pairs", "stats", tmp_path / "none")
