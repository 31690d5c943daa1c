"""What the command line accepts, and the words with which it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ovseg.cli import renamed
from ovseg.cli.main import COMMANDS, TRAINER_VERBS
from ovseg.cli.trainer import OVSegTrainer
from ovseg.models import OpenVocabSegmenter
from tests import tiny
from tests.data.worlds import write_coco
from tests.stages import CONF, REPOSITORY, ovseg, refusal, write

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    tiny.segmenter(folder / "source").save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (12, 8), "red").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


# Looking around is fast


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["--version"], ["fly"]], ids=str)
def test_looking_around_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from ovseg.cli import main\n"
        f"try: main({words})\n"
        "except SystemExit: pass\n"
        "heavy = 'torch lightning numpy jsonargparse PIL transformers open_clip spacy'.split()\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("[]\n")


def test_usage_names_every_verb(capsys: Capture) -> None:
    ovseg()
    printed = capsys.readouterr().out
    assert all(f"\n  {verb} " in printed for verb in [*TRAINER_VERBS, *COMMANDS])


@pytest.mark.parametrize("verb", [*TRAINER_VERBS, *COMMANDS])
def test_every_verb_has_help(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as done:
        ovseg(verb, "--help")
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith((f"usage: ovseg {verb} ", f"usage: ovseg [options] {verb} "))
    assert ("--model" in printed and "--data" in printed) == (verb in TRAINER_VERBS)


def test_predict_is_called_segment(capsys: Capture) -> None:
    sentence = refusal(capsys, "predict", "--model", "toy", "--vocabulary", "cat, sofa")
    assert sentence.endswith("called `segment` here; run: ovseg segment --model toy --vocabulary 'cat, sofa'")


# Words and configs that cannot be used

TOY = ("fit", "--config", CONF / "toy" / "proposals.yaml")
PROPOSALS = ("fit", "--config", CONF / "proposals.yaml")
WORDS: dict[str, tuple[tuple[object, ...], str]] = {
    "verb": (("fly",), "there is no verb 'fly'; choose from fit, "),
    "no model": (("fit",), "fit: the following arguments are required: model; give --model or a --config that has it"),
    "no data": (("test", "--config", CONF / "test.yaml"), "test needs data; give --data"),
    "flag": ((*TOY, "--bogus", 3), "fit: unrecognized arguments: --bogus 3; `ovseg fit --help` lists the flags"),
    "trainer": ((*TOY, "--trainer.max_stepz", 3), "--trainer.max_stepz 3; did you mean --trainer.max_steps?"),
    "data": (
        (*PROPOSALS, "--data.rot", "x"),
        "data: COCOStuffDataModule: Option 'rot' is not accepted; did you mean --data.root?",
    ),
    "data class": (
        (*PROPOSALS, "--data.transform.crop", 3),
        "data: COCOStuffDataModule: unrecognized arguments: --transform.crop=3",
    ),
    "short": (("toy", "--out", "x", "--scene", 3), "toy: unrecognized arguments: --scene 3; did you mean --scenes?"),
    "network": (
        (*TOY, "--model.proposer.txt_dim", 3),
        "model.proposer: MaskProposer: Option 'txt_dim' is not accepted; did you mean --model.proposer.text_dim?",
    ),
    "number": ((*TOY, "--data.total_batch_size", "many"), "data.total_batch_size: Expected an int. Got value: many"),
    "choice": (
        ("fit", "--config", CONF / "adapter.yaml", "--model.train", "it"),
        "model.train: Expected a Literal['prompt'",
    ),
    "stray": ((*TOY, "stray"), "fit: unrecognized arguments: stray"),
    "class": (
        (*TOY, "--model", "NoSuchTask"),
        "model: Expected a dot import path string: NoSuchTask; give a class, or a config file that exists",
    ),
    "fragment": (
        (*TOY, "--data", "none.yaml"),
        "data: Problem with given class_path 'none.yaml': No module named 'none'; give a class, or a config file",
    ),
    "config": (("fit", "--config", "none.yaml"), "config: File does not exist: "),
    "needed": (
        ("segment",),
        "data: ImagesDataModule: the following arguments are required: images, vocabulary; "
        "give --data.images and --data.vocabulary",
    ),
    "command": (("toy", "--out", "x", "--scens", 3), "toy: unrecognized arguments: --scens 3; did you mean --scenes?"),
    "command needs": (
        ("bundle",),
        "bundle: the following arguments are required: proposer, clip, out; give --proposer and --clip and --out",
    ),
    "command number": (("toy", "--out", "x", "--scenes", "three"), "scenes: Expected an int. Got value: three"),
}


@pytest.mark.parametrize("case", WORDS)
def test_words_are_refused_in_one_sentence(
    case: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, sentence = WORDS[case]
    assert sentence in refusal(capsys, *words)
    assert list(tmp_path.iterdir()) == []


CONFIGS = {
    "trainer: {max_stepz: 3}": (
        "typo.yaml: test: Subcommand 'test' does not accept option 'trainer.max_stepz'; "
        "did you mean --trainer.max_steps?"
    ),
    "modle: {class_path: ovseg.tasks.SegmentationTask}": (
        "typo.yaml: test: Subcommand 'test' does not accept option 'modle.class_path'"
    ),
    "model: {class_path: ovseg.tasks.SegmentationTask, init_args: {segmentr: x}}": (
        "typo.yaml: model: SegmentationTask: Option 'segmentr' is not accepted; did you mean --model.segmenter?"
    ),
    "model: {class_path: ovseg.tasks.SegmentationTaskk}": (
        "SegmentationTaskk': module 'ovseg.tasks' has no attribute 'SegmentationTaskk'"
    ),
    "data: {class_path: ovseg.data.COCOStuffDataModule, init_args: {transform: {crop: 3}}}": (
        "data: COCOStuffDataModule: Group 'transform' does not accept option 'crop'"
    ),
    "data: part.yaml": "typo.yaml: data: Problem with given class_path 'part.yaml': No module named 'part'",
    "trainer: [": "typo.yaml, line 1, column 11: invalid YAML (while parsing a flow node: ",
}


@pytest.mark.parametrize("content", CONFIGS)
def test_a_typo_in_a_config_is_named(content: str, capsys: Capture, tmp_path: Path) -> None:
    config = write(tmp_path / "typo.yaml", content)
    assert CONFIGS[content] in refusal(capsys, "test", "--config", config)


def test_a_flag_without_its_value_is_not_called_unknown(capsys: Capture) -> None:
    assert refusal(capsys, *TOY, "--trainer.max_steps") == "fit: argument --trainer.max_steps: expected one argument"
    assert refusal(capsys, "toy", "--out") == "toy: argument --out: expected one argument"


def test_a_config_is_not_blamed_for_a_stray_word(capsys: Capture) -> None:
    assert refusal(capsys, *TOY, "stray") == "fit: unrecognized arguments: stray"


def test_a_config_that_is_not_text_is_named(capsys: Capture, tmp_path: Path) -> None:
    config = tmp_path / "latin.yaml"
    config.write_bytes("# caf\u00e9\n".encode("latin-1"))
    assert refusal(capsys, "test", f"--config={config}").startswith(f"{config} is not a text file in UTF-8; save it")


# Configs that ship with the package

NOTICE = ": not in this folder, using the copy that ships with ovseg\n"


def test_packaged_configs_are_found_from_any_folder(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        ovseg("test", "--config", "conf/test.yaml", "--data=conf/data/ade20k_150.yaml", "--print_config")
    assert done.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == f"ovseg: conf/test.yaml, conf/data/ade20k_150.yaml{NOTICE}"
    config = yaml.safe_load(printed.out)
    assert config["model"]["class_path"] == "ovseg.tasks.SegmentationTask"  # from a part, relative to the config
    assert config["data"]["init_args"]["root"] == "datasets"  # relative to the working directory
    assert list(tmp_path.iterdir()) == []


def test_a_config_of_the_working_directory_comes_first(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    write(tmp_path / "conf" / "test.yaml", "trainer: {max_stepz: 3}\n")
    assert "max_stepz" in refusal(capsys, "test", "--config", "conf/test.yaml")
    assert "File does not exist: " in refusal(capsys, "test", "--config", "conf/no.yaml")


# Renamed flags

CONTENT = ("{model:", "{trainer:")  # words that are the content of a config file


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ("model.segmentr", ("--model", "ovseg.tasks.SegmentationTask", "--model.segmentr", "x")),
        ("model.segmentr", ("--model", "ovseg.tasks.SegmentationTask", "--model.init_args.segmentr=x")),
        (
            "model.segmentr",
            ("--config", "{model: {class_path: ovseg.tasks.SegmentationTask, init_args: {segmentr: x}}}"),
        ),
        ("model.views.turn", ("--config", CONF / "test.yaml", "--model.views.turn", "1")),
        ("model.views.turn", ("--config", CONF / "test.yaml", "--model.views", "{turn: 1}")),
        ("trainer.max_stepz", ("--config", CONF / "test.yaml", "--trainer.max_stepz", "1")),
        ("trainer.max_stepz", ("--config", "{trainer: {max_stepz: 1}}")),
    ],
    ids=str,
)
def test_a_renamed_flag_is_refused_with_its_new_name(
    old: str, words: tuple[object, ...], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(renamed.RENAMED, old, "model.new_name")
    words = tuple(write(tmp_path / "old.yaml", word) if str(word).startswith(CONTENT) else word for word in words)
    assert refusal(capsys, "test", *words).startswith(f"--{old} is now --model.new_name; ")


def test_renamed_flags_and_the_changelog_agree() -> None:
    section = (REPOSITORY / "CHANGELOG.md").read_text().split("\n### Renamed\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `--(\S+)`.* \| `--(\S+)`.* \|$", section, re.MULTILINE)
    assert dict(rows) == renamed.RENAMED and len(rows) == len(dict(rows))


def test_null_reaches_nested_options(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        ovseg("fit", "--config", CONF / "adapter.yaml", "--model.clip.pretrained", "null", "--print_config")
    assert "pretrained: null" in capsys.readouterr().out


# Files that cannot be used


def test_vocabularies_are_refused(capsys: Capture, segmenter: Path, photo: Path) -> None:
    start = ("segment", "--model", segmenter, "--images", photo, "--out", photo.parent / "out", "--vocabulary")
    assert "the vocabulary is empty" in refusal(capsys, *start, " ")
    assert "names 'cat' more than once" in refusal(capsys, *start, "cat, dog, cat")
    assert "empty name (number 2)" in refusal(capsys, *start, "cat, , dog")
    assert "names.txt does not exist" in refusal(capsys, *start, photo.parent / "names.txt")
    assert not (photo.parent / "out").exists()


def test_images_are_refused(capsys: Capture, segmenter: Path, photo: Path) -> None:
    (photo.parent / "empty").mkdir()
    end = ("--vocabulary", "cat, dog", "--out", photo.parent / "out")
    start = ("segment", "--model", segmenter, "--images")
    assert "empty has no image" in refusal(capsys, *start, photo.parent / "empty", *end)
    assert "none.jpg does not exist" in refusal(capsys, *start, photo.parent / "none.jpg", *end)
    assert not (photo.parent / "out").exists()


def test_missing_weights_are_refused(capsys: Capture, photo: Path) -> None:
    here = photo.parent
    segment = ("--images", photo, "--vocabulary", "cat, dog", "--out", here / "out")
    assert f"no segmenter in {here}/none" in refusal(capsys, "segment", "--model", here / "none", *segment)
    clip = ("--model.clip.model", tiny.clip_folder(here / "clip"), "--model.clip.pretrained", "null")
    mine = ("mine", "--config", CONF / "mine.yaml", *clip, "--out", here / "out", "--model.proposer")
    assert f"weights not found: {here}/none.ckpt" in refusal(capsys, *mine, here / "none.ckpt")
    hub = refusal(capsys, *mine, "someone/some-model")
    assert "'someone/some-model' could not be loaded" in hub and "if this machine is offline, download" in hub
    hub = refusal(capsys, "fit", "--config", CONF / "adapter.yaml")
    assert "ViT-L-14-quickgelu" in hub and "if this machine is offline, download" in hub
    fit = ("fit", "--config", CONF / "adapter.yaml", *clip)
    assert f"ckpt_path {here}/none.ckpt does not exist" in refusal(capsys, *fit, "--ckpt_path", here / "none.ckpt")
    write(here / "half.ckpt", "<html>not found</html>")
    assert "half.ckpt is not a readable weights file" in refusal(capsys, *fit, "--ckpt_path", here / "half.ckpt")
    bundle = ("bundle", "--proposer", here / "none.ckpt", "--clip", here / "clip", "--out", here / "out")
    assert f"weights not found: {here}/none.ckpt" in refusal(capsys, *bundle)
    assert not (here / "out").exists()


def test_captions_that_are_not_json_are_refused(capsys: Capture, photo: Path) -> None:
    here = photo.parent
    captions = write(here / "captions.json", "a photo of a cat")
    clip = ("--model.clip.model", tiny.clip_folder(here / "clip"))
    data = ("--data.images", here, "--data.captions", captions)
    flags = ("--config", CONF / "toy" / "mine.yaml", *clip, *data, "--out", here / "out")
    assert f"{captions} is not JSON" in refusal(capsys, "mine", *flags)
    assert not (here / "out").exists()


def test_missing_training_data_is_refused_before_logs_are_opened(capsys: Capture, tmp_path: Path) -> None:
    clip = ("--model.clip.model", tiny.clip_folder(tmp_path / "clip"))
    place = ("--trainer.default_root_dir", tmp_path / "run")
    adapter = ("fit", "--config", CONF / "toy" / "adapter.yaml", *clip, *place, "--data.pairs", tmp_path / "pairs")
    adapter = (*adapter, "--model.clip.prompt_depth", 2)  # the tiny CLIP has no more layers
    assert "runs/toy/world/val2017" in refusal(capsys, *adapter)
    adapter = (*adapter, "--data.val", "null")
    sentence = refusal(capsys, *adapter)
    assert "pairs not found in" in sentence and "ovseg mine" in sentence
    proposals = (*TOY, *clip, *place, "--data", "ovseg.data.COCOStuffDataModule", "--data.root", tmp_path / "coco")
    assert f"there is no folder {tmp_path}/coco/train2017" in refusal(capsys, *proposals)
    assert not (tmp_path / "run").exists()


def test_flags_that_do_not_suit_the_machine_are_refused(capsys: Capture, segmenter: Path, photo: Path) -> None:
    words = ("--model", segmenter, "--images", photo, "--vocabulary", "cat, dog", "--out", photo.parent / "out")
    sentence = refusal(capsys, "segment", *words, "--trainer.accelerator", "abacus")
    assert sentence.startswith("the Trainer refuses its flags: ") and "abacus" in sentence
    assert "gpu" in refusal(capsys, "segment", *words, "--trainer.accelerator", "gpu", "--trainer.devices", 99)


def test_apple_s_gpus_are_used_only_where_asked_for(
    monkeypatch: pytest.MonkeyPatch, segmenter: Path, photo: Path
) -> None:
    """They have no double precision."""
    chosen = []
    monkeypatch.setattr("lightning.pytorch.accelerators.MPSAccelerator.is_available", lambda: True)
    monkeypatch.setattr(OVSegTrainer, "__init__", lambda self, **flags: chosen.append(flags["accelerator"]) or 1 / 0)
    words = ("--model", segmenter, "--images", photo, "--vocabulary", "cat", "--out", photo.parent / "out")
    for flags in ((), ("--trainer.accelerator", "mps")):
        with pytest.raises(ZeroDivisionError):
            ovseg("segment", *words, *flags)
    assert chosen == ["cpu", "mps"]


def test_a_single_word_is_not_all_of_the_picture(segmenter: Path, photo: Path) -> None:
    place = ("--trainer.enable_progress_bar", "false", "--out")
    ovseg("segment", "--model", segmenter, "--images", photo, "--vocabulary", "dog", *place, photo.parent / "out")
    ovseg("segment", "--model", segmenter, "--images", photo, "--vocabulary", "Others", *place, photo.parent / "all")
    expected = OpenVocabSegmenter.from_pretrained(segmenter).segment(photo, ["dog", "others"])
    with Image.open(photo.parent / "out" / "photo_labels.png") as labels:
        assert np.array_equal(np.asarray(labels), expected.numpy())


def test_an_answer_never_replaces_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "a_overlay"):
        Image.new("RGB", (12, 8), "red").save(tmp_path / f"{name}.png")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    words = ["segment", "--model", "toy", "--images", str(tmp_path), "--vocabulary", "sky", "--out", str(tmp_path)]
    assert "a_overlay.png is one of the images and would be overwritten" in refusal(capsys, *words)
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--ensemble_weight", "7", "ensemble_weight is 7.0; give a number from 0 to 1"),
        ("--mask_threshold", "-1", "mask_threshold is -1.0; give a number from 0 to 1"),
        ("--short_side", "0", "resize is (0, 0); give the short side and the upper limit of the long side in pixels"),
    ],
)
def test_bundle_refuses_settings_that_mean_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, sentence: str
) -> None:
    out = tmp_path / "segmenter"
    assert sentence in refusal(capsys, "bundle", "--proposer", "toy", "--clip", "toy", "--out", out, flag, value)
    assert not out.exists()


def test_bundle_refuses_a_clip_without_weights(
    tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.clip_folder(tmp_path / "clip")
    words = ("bundle", "--proposer", "toy", "--out", tmp_path / "out", "--clip")
    sentence = "would have random weights; "
    assert f"CLIP {folder} {sentence}use a folder with weights" in refusal(capsys, *words, folder)
    assert f"CLIP ViT-S-32-alt {sentence}add --pretrained" in refusal(capsys, *words, "ViT-S-32-alt")
    assert "CLIP ViT-S-32-alt starts from random weights" in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refusal(capsys, "bundle", "--proposer", "toy", "--clip", "toy", "--out", tmp_path / "file" / "x")


def test_a_fault_inside_a_worker_stays_one_sentence(capsys: Capture, segmenter: Path, tmp_path: Path) -> None:
    write_coco(tmp_path, val=3, values=(0, 1))
    broken = tmp_path / "val2017" / "000000000001.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    data = ("--data.images", tmp_path / "val2017", "--data.labels", tmp_path / "stuffthingmaps" / "val2017")
    place = ("--trainer.default_root_dir", tmp_path / "run", "--trainer.enable_progress_bar", "false")
    flags = ("--config", CONF / "toy" / "test.yaml", "--model.segmenter", segmenter, *data, *place)
    sentence = refusal(capsys, "test", *flags, "--data.num_workers", 1)
    assert sentence.startswith(f"{broken} cannot be used")


def test_debug_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    from ovseg.structures import InputError

    with pytest.raises(InputError, match="weights not found"):
        ovseg("bundle", "--proposer", tmp_path / "none.ckpt", "--clip", "toy", "--out", tmp_path / "out", "--debug")


# Images that work


def noise(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(noise((20, 30, 3))).save(path, exif=exif)


IMAGES: dict[str, tuple[Callable[[Path], None], tuple[int, int]]] = {  # writes it; (H, W) of the answer
    "grey.png": (lambda path: Image.fromarray(noise((20, 30))).save(path), (20, 30)),
    "deep.png": (lambda path: Image.fromarray(noise((20, 30), np.uint16)).save(path), (20, 30)),
    "cmyk.jpg": (lambda path: Image.fromarray(noise((20, 30, 4)), mode="CMYK").save(path), (20, 30)),
    "alpha.png": (lambda path: Image.fromarray(noise((20, 30, 4)), mode="RGBA").save(path), (20, 30)),
    "rotated.jpg": (rotated, (30, 20)),
    "dot.png": (lambda path: Image.fromarray(noise((1, 1, 3))).save(path), (1, 1)),
    "row.png": (lambda path: Image.fromarray(noise((1, 300, 3))).save(path), (1, 300)),
    "column.png": (lambda path: Image.fromarray(noise((300, 1, 3))).save(path), (300, 1)),
    "large.jpg": (lambda path: Image.fromarray(noise((2000, 3000, 3))).save(path), (2000, 3000)),
}


def test_images_of_every_kind_are_segmented(segmenter: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name, (write_image, _) in IMAGES.items():
        write_image(images / name)
    words = ("--vocabulary", "cat, sofa, a potted plant", "--out", out, "--trainer.enable_progress_bar", "false")
    ovseg("segment", "--model", segmenter, "--images", images, *words)

    model = OpenVocabSegmenter.from_pretrained(segmenter)
    for name, (_, size) in IMAGES.items():
        with Image.open(out / f"{Path(name).stem}_labels.png") as labels:
            found = np.asarray(labels)
        assert found.shape == size and found.max() < 3
        expected = model.segment(images / name, ["cat", "sofa", "a potted plant"])
        assert np.array_equal(found, expected.numpy())
        with Image.open(out / f"{Path(name).stem}_overlay.png") as overlay:
            overlay.load()


def test_names_with_commas_come_from_a_file(segmenter: Path, photo: Path, capsys: Capture) -> None:
    names = write(photo.parent / "names.txt", "building, edifice\nsky\n")
    ovseg("segment", "--model", segmenter, "--images", photo, "--vocabulary", names, "--out", photo.parent / "out")
    assert (photo.parent / "out" / "photo_labels.png").is_file()
