"""conf/paper parses, and builds the released models: every width of the config, reduced depths, random weights."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import open_clip
import pytest
import torch
import yaml

from ovseg.cli.lightning import OVSegCLI
from ovseg.cli.main import TRAINER_VERBS, run_trainer_verb
from ovseg.cli.trainer import OVSegTrainer
from ovseg.data.pairs.datamodule import PairSampling
from ovseg.data.pairs.region_transform import RegionTransform
from ovseg.losses import MaskFormerLoss
from tests import tiny
from tests.data import layouts
from tests.stages import CONF, REPOSITORY, ovseg
from tests.test_readme import command_lines

PAPER = CONF / "paper"
COMMANDS = [words[1:] for words in command_lines((PAPER / "README.md").read_text(encoding="utf-8"))]
# norms, by what their parameters are called in both networks, and embeddings
UNDECAYED = re.compile(r"norm|fpn\.stem\.1\.|\.(proj|block)\.1\.|queries_embedder|relative_position_bias_table")
WEIGHTS = {"ade20k": 0.7, "pascal_context": 0.6, "pascal_voc": 0.45}


class Model(NamedTuple):
    """What the release says of a model."""

    folder: str
    proposals: str
    clip: str
    lr: float
    weight_decay: float
    backbone_factor: float
    crop: int
    short_sides: tuple[int, int]
    long_side: int
    batch: int  # of adapting CLIP
    text_dim: int
    prompts: tuple[int, int, int]
    threshold: float


R101C = Model(
    folder="r101c_vitb16",
    proposals="maskformer_r101c",
    clip="ViT-B-16-quickgelu",
    lr=2e-4,
    weight_decay=1e-4,
    backbone_factor=0.1,
    crop=512,
    short_sides=(800, 800),
    long_side=1333,
    batch=512,
    text_dim=512,
    prompts=(3, 196, 768),
    threshold=0.5,
)
SWIN = Model(
    folder="swin_vitl14",
    proposals="maskformer_swin_base",
    clip="ViT-L-14-quickgelu",
    lr=6e-5,
    weight_decay=0.01,
    backbone_factor=1.0,
    crop=640,
    short_sides=(320, 1280),
    long_side=2560,
    batch=128,
    text_dim=768,
    prompts=(3, 256, 1024),
    threshold=0.4,
)
BOTH = pytest.mark.parametrize("model", [R101C, SWIN], ids=lambda model: model.folder)
Build = Callable[..., OVSegCLI]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_parses(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as done:
        ovseg(*words, "--print_config" if words[0] in TRAINER_VERBS else "--help")
    assert done.value.code == 0
    assert words[0] not in TRAINER_VERBS or "class_path" in capsys.readouterr().out


def test_every_file_is_short_says_its_source_and_is_built_below() -> None:
    stages = ["proposals", "finetune", "prompt", *(f"test_{benchmark}" for benchmark in WEIGHTS)]
    files = {PAPER / model.folder / f"{stage}.yaml" for model in (R101C, SWIN) for stage in stages}
    parts = {PAPER / "model" / f"{name}.yaml" for name in (R101C.proposals, SWIN.proposals, "clip_vit_b16")}
    assert set(PAPER.rglob("*.yaml")) == files | parts
    for file in files | parts:
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 30 and ("release" in text or "OpenAI's" in text)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Parses a stage and builds it as its verb would, without running it."""
    with pytest.MonkeyPatch.context() as patch:
        for verb in ("fit", "test"):
            original = getattr(OVSegTrainer, verb)
            patch.setattr(OVSegTrainer, verb, functools.wraps(original)(lambda self, *args, **kwargs: None))

        def launch(verb: str, stage: Path, *words: object) -> OVSegCLI:
            place = ["--trainer.default_root_dir", tmp_path_factory.mktemp("run"), "--trainer.logger", "false"]
            flags = map(str, [*words, *place, "--trainer.accelerator", "cpu"])
            return run_trainer_verb([verb, "--config", str(stage), *flags])

        yield launch


@pytest.fixture(scope="module")
def shallow_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Flags that replace OpenAI's model by open_clip's with 3 layers of images, for 3 prompts, and 1 of text."""

    @functools.cache
    def flags(name: str) -> list[str]:
        config = open_clip.get_model_config(name)
        config["vision_cfg"]["layers"], config["text_cfg"]["layers"] = 3, 1
        folder = tmp_path_factory.mktemp(name)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        return ["--model.clip.model", str(folder), "--model.clip.pretrained", "null"]

    return flags


@pytest.fixture(scope="module", params=[R101C, SWIN], ids=lambda model: model.folder)
def proposals(
    request: pytest.FixtureRequest, build: Build, shallow_clip: Callable[[str], list[str]]
) -> tuple[Model, OVSegCLI]:
    """The first stage, shallow."""
    model: Model = request.param
    config = yaml.safe_load((PAPER / "model" / f"{model.proposals}.yaml").read_text(encoding="utf-8"))
    network = config["init_args"]["proposer"]["init_args"]["model"]
    depths, decoder = network["backbone_config"], network["decoder_config"]
    assert (depths["depths"], decoder["decoder_layers"]) == ([3, 4, 23, 3] if model is R101C else [2, 2, 18, 2], 6)
    depths["depths"], decoder["decoder_layers"] = [1, 1, 1, 3 if model is R101C else 1], 1
    shallow = ["--model.proposer.model", json.dumps(network), "--model.proposer.backbone", "null"]
    stage = PAPER / model.folder / "proposals.yaml"
    return model, build("fit", stage, *shallow, *shallow_clip(model.clip))


def test_proposals_have_the_schedule_views_and_losses(proposals: tuple[Model, OVSegCLI]) -> None:
    model, cli = proposals
    data, trainer = cli.datamodule, cli.trainer
    assert (trainer.max_steps, trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (120_000, 0.01, None)
    assert (data.total_batch_size, len(data.vocabulary)) == (32, 171)
    sides = data.transform.short_sides
    assert (data.transform.crop_size, data.transform.long_side) == (model.crop, model.long_side)
    assert (min(sides), max(sides)) == model.short_sides
    assert data.val_short_side == model.crop
    loss = cli.model.make_loss(171)
    assert isinstance(loss, MaskFormerLoss)
    assert loss.weights == {"loss_cross_entropy": 1, "loss_mask": 20, "loss_dice": 1}
    assert loss.criterion.matcher.cost_mask == 20 and loss.criterion.empty_weight[-1].item() == pytest.approx(0.1)


def test_proposals_have_the_widths(proposals: tuple[Model, OVSegCLI]) -> None:
    model, cli = proposals
    proposer = cli.model.proposer
    parts = dict(proposer.named_modules())
    layer = parts["model.transformer_module.decoder.layers.0"]
    assert layer.self_attn.q_proj.out_features // layer.self_attn.head_dim == 8
    assert (layer.self_attn.q_proj.in_features, layer.mlp.fc1.out_features) == (256, 2048)
    assert {layer.dropout, layer.self_attn.attention_dropout, layer.mlp.activation_dropout, layer.mlp.dropout} == {0.1}
    assert parts["model.transformer_module.queries_embedder"].weight.shape == (100, 256)
    assert parts["model.pixel_level_module.decoder.mask_projection"].weight.shape[:2] == (256, 256)
    assert [proposer.query_head[index].weight.shape for index in (0, 2)] == [(1024, 256), (model.text_dim, 1024)]
    assert proposer.no_object_embedding.shape == (1, model.text_dim)
    with torch.no_grad():
        proposer.set_text_features(cli.model._clip[0].encode_text(["cat", "dog"]))
        answer = proposer(tiny.images((64, 96)))[-1]
    assert answer.mask_logits.shape == (1, 100, 16, 24) and answer.class_logits.shape == (1, 100, 3)


def test_backbone(proposals: tuple[Model, OVSegCLI]) -> None:
    model, cli = proposals
    encoder = cli.model.proposer.model.pixel_level_module.encoder
    if model is SWIN:
        assert list(encoder.channels) == [128, 256, 512, 1024]
        stages = encoder.model.encoder.layers
        assert [stage.blocks[0].attention.self.num_attention_heads for stage in stages] == [4, 8, 16, 32]
        last = stages[-1].blocks[-1]
        assert (last.window_size, last.drop_path.drop_prob) == (12, pytest.approx(0.3))
    else:
        assert list(encoder.channels) == [256, 512, 1024, 2048]
        assert [block.conv2.dilation[0] for block in encoder.network.layer4] == [1, 2, 4]
        frozen = {name.split(".")[0] for name, p in encoder.network.named_parameters() if not p.requires_grad}
        trained = {name.split(".")[0] for name, p in encoder.network.named_parameters() if p.requires_grad}
        assert (frozen, trained) == ({"conv1", "layer1"}, {"layer2", "layer3", "layer4"})


def test_proposals_have_the_rates(proposals: tuple[Model, OVSegCLI]) -> None:
    model, cli = proposals
    task = cli.model
    task.trainer = type("Length", (), {"estimated_stepping_batches": 120_000})()
    made = task.configure_optimizers()
    groups = {parameter: group for group in made["optimizer"].param_groups for parameter in group["params"]}
    decayed = set()
    for name, parameter in task.proposer.named_parameters():
        if parameter.requires_grad:
            factor = model.backbone_factor if "pixel_level_module.encoder" in name else 1.0
            undecayed = UNDECAYED.search(name) is not None
            found = groups[parameter]["initial_lr"], groups[parameter]["weight_decay"]
            assert found == (pytest.approx(model.lr * factor), 0.0 if undecayed else model.weight_decay), name
            decayed.add(not undecayed)
    assert decayed == {True, False} and len(groups) == sum(p.requires_grad for p in task.proposer.parameters())
    factor_at = made["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert factor_at(0) == pytest.approx(1e-6)
    assert factor_at(750) == pytest.approx((1e-6 + (1 - 1e-6) / 2) * (1 - 750 / 120_000) ** 0.9)
    assert factor_at(60_000) == pytest.approx(0.5**0.9)


@BOTH
@pytest.mark.parametrize("stage", ["finetune", "prompt"])
def test_adapter(model: Model, stage: str, build: Build, shallow_clip: Callable[[str], list[str]]) -> None:
    cli = build("fit", PAPER / model.folder / f"{stage}.yaml", *shallow_clip(model.clip))

    task, data = cli.model, cli.datamodule
    trained = [name for name, parameter in task.clip.clip.named_parameters() if parameter.requires_grad]
    task.trainer = type("Length", (), {"estimated_stepping_batches": 1000})()
    optimizer = task.configure_optimizers()["optimizer"]
    groups = {(group["initial_lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert all((group["betas"], group["eps"]) == ((0.9, 0.98), 1e-6) for group in optimizer.param_groups)
    if stage == "finetune":
        assert task.clip.visual.prompt is None
        assert set(trained) == {"logit_scale", *(f"visual.{name}" for name, _ in task.clip.visual.named_parameters())}
        assert groups == {(5e-6, 0.2), (5e-6, 0.0)}
    else:
        assert trained == ["visual.prompt.mask_embedding"]
        assert task.clip.visual.prompt.mask_embedding.shape == model.prompts
        assert groups == {(0.05, 0.0)}
    assert (task.warmup_steps, task.loss.repeated_texts, cli.trainer.max_epochs) == (100, "negatives", 5)
    assert (data.total_batch_size, data.transform) == (model.batch, RegionTransform(resize="release"))
    assert data.sampling == PairSampling(by_image=False)
    assert task.clip.dim == model.text_dim


@BOTH
@pytest.mark.parametrize("benchmark", WEIGHTS)
def test_benchmark(model: Model, benchmark: str, build: Build, tmp_path: Path) -> None:
    tiny.segmenter(tmp_path / "clip").save_pretrained(tmp_path / "segmenter")
    layouts.ade20k_150(tmp_path, [[0, 1, 150], [0, 0, 0]])
    data = ["--data", CONF / "data" / "ade20k_150.yaml", "--data.root", tmp_path]
    flags = [*data, "--model.segmenter", tmp_path / "segmenter"]
    cli = build("test", PAPER / model.folder / f"test_{benchmark}.yaml", *flags)
    segmenter = cli.model.segmenter
    assert (segmenter.mask_threshold, segmenter.ensemble_weight) == (model.threshold, WEIGHTS[benchmark])
    assert segmenter.classifier == "ensemble"
