"""Every YAML under conf/ is parsed, the real settings are built, and their numbers are the paper's."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import yaml
from PIL import Image

from ovseg.cli.lightning import OVSegCLI
from ovseg.cli.main import run_trainer_verb
from ovseg.cli.trainer import OVSegTrainer
from ovseg.data import ADE20K150DataModule, CaptionDataModule, COCOStuffDataModule, RegionTextDataModule
from ovseg.data.benchmarks import find_benchmarks
from ovseg.data.masks import LabelMaps
from ovseg.models import CLIPAdapter, CropEncoder, SinglePassEncoder
from ovseg.models.views import Views
from ovseg.tasks import AdapterTask, DistillationTask, MiningTask, ProposalTask, SegmentationTask, SweepTask
from tests import tiny
from tests.data import layouts
from tests.stages import CONF, ovseg

STAGES = {  # file → verb and what else it needs
    "proposals.yaml": ["fit"],
    "mine.yaml": ["mine"],
    "mine_5captions.yaml": ["mine"],
    "mine_labels.yaml": ["mine"],
    "mine_masks.yaml": ["mine"],
    "adapter.yaml": ["fit"],
    "finetune.yaml": ["fit"],
    "regions/single_pass_prompt.yaml": ["fit"],
    "regions/single_pass_visual.yaml": ["fit"],
    "regions/single_pass_both.yaml": ["fit"],
    "regions/distil.yaml": ["fit"],
    "test.yaml": ["test", "--data", str(CONF / "data" / "ade20k_150.yaml")],
    "sweep.yaml": ["sweep", "--data", str(CONF / "data" / "ade20k_150.yaml")],
    "segment.yaml": ["segment", "--data.images", "photo.jpg", "--data.vocabulary", "cat, sofa"],
    "toy/proposals.yaml": ["fit"],
    "toy/pretrain_clip.yaml": ["fit"],
    "toy/scenes_clip.yaml": ["fit"],
    "toy/mine.yaml": ["mine"],
    "toy/adapter.yaml": ["fit"],
    "toy/fast.yaml": ["fit"],
    "toy/test.yaml": ["test"],
    "toy/sweep.yaml": ["sweep"],
}
FRAGMENTS = {  # fragment → flag, and a stage that it can be a part of
    "trainer/default.yaml": ("--trainer", "test.yaml"),
    "trainer/adapter.yaml": ("--trainer", "adapter.yaml"),
    "trainer/proposals.yaml": ("--trainer", "proposals.yaml"),
    "trainer/single_pass.yaml": ("--trainer", "regions/distil.yaml"),
    "toy/trainer.yaml": ("--trainer", "toy/mine.yaml"),
    "regions/single_pass.yaml": ("--model.region_encoder", "test.yaml"),
    "regions/single_pass_prompts.yaml": ("--model.region_encoder", "adapter.yaml"),
    "regions/patch_keys.yaml": ("--model.region_encoder", "mine.yaml"),
    "regions/mean_pool.yaml": ("--model.region_encoder", "test.yaml"),
    "regions/cascade.yaml": ("--model.region_encoder", "test.yaml"),
    "model/adapter_finetune.yaml": ("--model", "finetune.yaml"),
    "model/adapter_prompt.yaml": ("--model", "adapter.yaml"),
    "model/clip_vit_l14.yaml": ("--model.clip", "finetune.yaml"),
    "model/clip_vit_l14_prompts.yaml": ("--model.clip", "adapter.yaml"),
    "model/mining.yaml": ("--model", "mine.yaml"),
    "model/mining_masks.yaml": ("--model", "mine_masks.yaml"),
    "model/proposals_swin_base.yaml": ("--model", "proposals.yaml"),
    "model/segmentation.yaml": ("--model", "test.yaml"),
    "data/own.yaml": ("--data", "test.yaml"),
    **{f"data/{name}.yaml": ("--data", "test.yaml") for name in find_benchmarks()},
    "data/coco_captions.yaml": ("--data", "mine.yaml"),
    "data/coco_captions_5.yaml": ("--data", "mine_5captions.yaml"),
    "data/coco_captions_masks.yaml": ("--data", "mine_masks.yaml"),
    "data/coco_labels.yaml": ("--data", "mine_labels.yaml"),
    "data/coco_stuff.yaml": ("--data", "proposals.yaml"),
    "data/region_text.yaml": ("--data", "adapter.yaml"),
}


def test_every_config_is_a_case_here() -> None:
    files = {str(file.relative_to(CONF)) for file in CONF.rglob("*.yaml")}
    files = {file for file in files if not file.startswith("paper/")}  # in test_paper_configs
    assert files == STAGES.keys() | FRAGMENTS.keys(), "name a new config above, and what it is for"


@pytest.mark.parametrize("name", STAGES)
def test_stage_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb, *flags = STAGES[name]
    printed = parsed(capsys, verb, "--config", CONF / name, *flags)
    for part in ("model", "data"):  # the verb's parser has accepted every key, and filled in what is not given
        assert {"class_path", "init_args"} <= printed[part].keys()


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment_parses_and_is_what_the_run_gets(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag, stage = FRAGMENTS[name]
    verb, *flags = STAGES[stage]
    got: Any = parsed(capsys, verb, "--config", CONF / stage, *flags, flag, CONF / name)
    for key in flag.removeprefix("--").split("."):
        got = got["init_args"][key] if "init_args" in got else got[key]
    given = yaml.safe_load((CONF / name).read_text())
    assert got["class_path"] == given["class_path"] if "class_path" in given else True
    for key, value in given.get("init_args", given).items():
        parts = got["init_args"] if "init_args" in given else got
        if isinstance(value, bool | int | float | str) and not str(value).endswith(".yaml"):
            assert parts[key] == value


@pytest.mark.parametrize("name", [name for name in FRAGMENTS if not name.startswith("toy")])
def test_fragment_is_short(name: str) -> None:
    assert len((CONF / name).read_text().splitlines()) <= 30


# What follows builds the real settings: full width, few layers, random weights.


@pytest.fixture(scope="module")
def shallow_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ViT-L/14 with four layers of images and one of text."""
    config = open_clip.get_model_config("ViT-L-14-quickgelu")
    config["vision_cfg"]["layers"], config["text_cfg"]["layers"] = 4, 1
    transform = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    folder = tmp_path_factory.mktemp("shallow_clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": transform}))
    return folder


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Parses and builds as the verb would, without running it."""
    for verb in ("fit", "test", "mine", "segment", "sweep"):
        original = getattr(OVSegTrainer, verb)
        monkeypatch.setattr(OVSegTrainer, verb, functools.wraps(original)(lambda self, *args, **kwargs: None))

    def launch(verb: str, name: str, *words: object) -> OVSegCLI:
        flags = ["--trainer.default_root_dir", tmp_path, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
        if verb in ("mine", "segment", "sweep"):
            flags += ["--out", tmp_path]
        return run_trainer_verb([verb, "--config", str(CONF / name), *map(str, [*words, *flags])])

    return launch


def of(clip: Path) -> list[str]:
    """Flags that put the shallow CLIP in the place of OpenAI's."""
    return ["--model.clip.model", str(clip), "--model.clip.pretrained", "null"]


def test_proposals_are_the_papers_swin_base(build: Any, shallow_clip: Path) -> None:
    config = yaml.safe_load((CONF / "model" / "proposals_swin_base.yaml").read_text())
    swin = config["init_args"]["proposer"]["init_args"]["model"]["backbone_config"]
    assert (swin["depths"], swin["num_heads"]) == ([2, 2, 18, 2], [4, 8, 16, 32])
    shallow = ["--model.proposer.init_args.model.backbone_config", json.dumps(swin | {"depths": [1, 1, 1, 1]})]
    cli = build("fit", "proposals.yaml", *of(shallow_clip), *shallow, "--model.proposer.backbone", "null")

    task, data, trainer = cli.model, cli.datamodule, cli.trainer
    assert isinstance(task, ProposalTask) and isinstance(data, COCOStuffDataModule)
    assert (task.lr, task.weight_decay, task.backbone_lr_factor, task.warmup_steps) == (6e-5, 0.01, 1.0, 1500)
    assert (trainer.max_steps, trainer.gradient_clip_val) == (120_000, 0.01)
    built = task.proposer.model.config.backbone_config
    assert (built.embed_dim, built.window_size, built.drop_path_rate, built.image_size) == (128, 12, 0.3, 384)
    assert task.proposer.model.config.num_queries == 100
    assert task.proposer.model.config.decoder_layers - 1 == 9  # of Mask2Former, beside the initial queries
    task.proposer.set_text_features(task._clip[0].encode_text(["cat", "dog"]))  # widths fit

    assert len(data.vocabulary) == 171
    assert data.total_batch_size == 32
    assert data.transform.crop_size == 640
    assert (min(data.transform.short_sides), max(data.transform.short_sides)) == (320, 1280)
    assert data.val_short_side == 640


def test_mining_matches_by_plain_clip(build: Any, shallow_clip: Path) -> None:
    cli = build("mine", "mine.yaml", *of(shallow_clip), "--model.proposer", "null")

    assert isinstance(cli.model, MiningTask) and isinstance(cli.datamodule, CaptionDataModule)
    assert cli.model.clip.visual.prompt is None
    assert (cli.model.mask_threshold, cli.datamodule.captions_per_image) == (0.4, 1)
    assert cli.datamodule.short_side == 640


def test_mining_variants_are_the_papers(build: Any, shallow_clip: Path) -> None:
    five = build("mine", "mine_5captions.yaml", *of(shallow_clip), "--model.proposer", "null").datamodule
    assert (five.captions_per_image, five.masks) == (5, None)
    for name, has_captions in (("mine_masks.yaml", True), ("mine_labels.yaml", False)):
        cli = build("mine", name, *of(shallow_clip))
        assert cli.model.proposer is None
        assert cli.datamodule.masks == LabelMaps(Path("datasets/coco/stuffthingmaps/train2017"), "coco_stuff_171")
        assert (cli.datamodule.captions is not None) == has_captions


def test_prompts_are_tuned_as_in_the_paper(build: Any, shallow_clip: Path) -> None:
    cli = build("fit", "adapter.yaml", *of(shallow_clip))

    task, data = cli.model, cli.datamodule
    assert isinstance(task, AdapterTask) and isinstance(data, RegionTextDataModule)
    assert [name for name, p in task.named_parameters() if p.requires_grad] == [
        "clip.clip.visual.prompt.mask_embedding"
    ]
    assert task.clip.visual.prompt is not None
    assert task.clip.visual.prompt.mask_embedding.shape == (3, 256, 1024)
    assert (task.prompt_lr, task.warmup_steps) == (0.05, 100)
    assert (cli.trainer.max_epochs, data.total_batch_size, data.transform.size) == (5, 128, None)
    [group] = optimizer_of(cli).param_groups
    assert (group["initial_lr"], group["weight_decay"], group["betas"], group["eps"]) == (0.05, 0.0, (0.9, 0.98), 1e-6)


def test_image_tower_is_tuned_as_in_the_paper(build: Any, shallow_clip: Path) -> None:
    cli = build("fit", "finetune.yaml", *of(shallow_clip))

    task = cli.model
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    tower = {f"clip.clip.visual.{name}" for name, _ in task.clip.visual.named_parameters()}
    assert trained == tower | {"clip.clip.logit_scale"}
    assert (task.warmup_steps, cli.trainer.max_epochs, cli.datamodule.total_batch_size) == (100, 5, 128)
    groups = optimizer_of(cli).param_groups
    assert {group["initial_lr"] for group in groups} == {5e-6}
    assert sorted({group["weight_decay"] for group in groups}) == [0.0, 0.2]


def test_a_single_pass_is_distilled_from_adapted_crops(build: Any, shallow_clip: Path, tmp_path: Path) -> None:
    teacher = CLIPAdapter(str(shallow_clip), prompt_depth=1)
    teacher.save_pretrained(tmp_path / "teacher")
    flags = ["--model.teacher", tmp_path / "teacher", "--model.proposer", "null"]
    cli = build("fit", "regions/distil.yaml", *of(tmp_path / "teacher"), *flags)

    task, (crops, proposer) = cli.model, cli.model._frozen
    assert isinstance(task, DistillationTask) and isinstance(task.region_encoder, SinglePassEncoder)
    assert isinstance(crops, CropEncoder) and proposer is None
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert trained == {f"clip.clip.visual.visual.{name}" for name, _ in task.clip.visual.visual.named_parameters()}
    assert (task.contrastive_weight, task.lr, cli.trainer.max_epochs) == (0.0, 5e-6, 5)


def test_benchmark_is_tested_as_the_segmenter_says(build: Any, tmp_path: Path) -> None:
    layouts.ade20k_150(tmp_path, [[0, 1, 150], [0, 0, 0]])
    flags = ["--data", CONF / "data" / "ade20k_150.yaml", "--data.root", tmp_path]
    flags += ["--model.segmenter", tiny_folder(tmp_path)]
    cli = build("test", "test.yaml", *flags, "--model.ensemble_weight", 0.6, "--model.classifier", "clip")

    assert isinstance(cli.model, SegmentationTask) and isinstance(cli.datamodule, ADE20K150DataModule)
    assert (len(cli.datamodule.vocabulary), cli.datamodule.dataset.resize) == (150, None)
    segmenter = cli.model.segmenter
    assert (segmenter.ensemble_weight, segmenter.classifier, segmenter.mask_threshold) == (0.6, "clip", 0.5)


def test_sweep_is_the_grid_of_the_release(build: Any, tmp_path: Path) -> None:
    layouts.ade20k_150(tmp_path, [[0, 1, 150], [0, 0, 0]])
    flags = ["--data", CONF / "data" / "ade20k_150.yaml", "--data.root", tmp_path]
    flags += ["--model.segmenter", tiny_folder(tmp_path), "--model.views.mirror", "true"]
    task = build("sweep", "sweep.yaml", *flags).model
    assert isinstance(task, SweepTask)
    assert (task.thresholds, task.weights) == ([0.35, 0.4, 0.45], [0.6, 0.65, 0.7, 0.75, 0.8])
    assert task.segmenter.views == Views(mirror=True)


def test_segment_is_built_from_its_config(build: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "photo.jpg")
    data = ["--data.images", tmp_path / "photo.jpg", "--data.vocabulary", "cat, sofa"]
    cli = build("segment", "segment.yaml", *data, "--model.segmenter", tiny_folder(tmp_path))
    assert cli.datamodule.vocabulary.names == ("cat", "sofa")


def tiny_folder(folder: Path) -> Path:
    """A segmenter that loads in no time."""
    tiny.segmenter(folder / "clip").save_pretrained(folder / "segmenter")
    return folder / "segmenter"


def optimizer_of(cli: OVSegCLI) -> Any:
    """The optimizer of a task whose run would have 1,000 steps."""
    cli.model.trainer = type("Length", (), {"estimated_stepping_batches": 1000})()
    return cli.model.configure_optimizers()["optimizer"]


def parsed(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What `--print_config` prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        ovseg(*words, "--print_config")
    assert done.value.code == 0
    printed: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return printed
