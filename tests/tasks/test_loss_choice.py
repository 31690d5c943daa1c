"""Losses of both training tasks: chosen by class path on the command line, in configs, and by the user's own class."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonargparse
import lightning as L
import pytest
import torch
from torch import Tensor, nn

import ovseg
from ovseg.cli.main import main
from ovseg.losses import Mask2FormerLoss, MaskFormerLoss, RegionTextLoss
from ovseg.structures import InputError, Proposals, RegionTextBatch, SegmentationBatch, Vocabulary
from ovseg.tasks import AdapterTask, ProposalTask
from tests import tiny
from tests.tasks.data import Batches, trainer

SRC = Path(ovseg.__file__).parent


class ScaledRegionLoss(nn.Module):
    """A user's loss whose value is known: `scale`, whatever the logits."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.scale + 0 * logits.sum()


class ScaledMaskLoss(Mask2FormerLoss):
    """A user's loss whose value is known: `scale` times the number of classes."""

    def __init__(self, num_classes: int, scale: float = 2.0) -> None:
        super().__init__(num_classes)
        self.value = scale * num_classes

    def forward(self, layers: list[Proposals], labels: Tensor, regions: Tensor | None = None) -> dict[str, Tensor]:
        return {"loss": self.value + 0 * layers[-1].mask_logits.sum()}


def make_loss(task: type, words: list[str]) -> Any:
    """Return the factory that the words of a command line choose, as the task receives it."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(task, "model", skip={"clip", "proposer"})
    parser.add_argument("--config", action="config")
    parser.add_instantiator(lambda _, **arguments: SimpleNamespace(**arguments), task)  # the networks play no part
    return parser.instantiate_classes(parser.parse_args(words)).model.loss


def test_a_config_chooses_maskformer_s_loss_and_a_flag_one_weight(tmp_path: Path) -> None:
    config = tmp_path / "loss.yaml"
    config.write_text("model: {loss: {class_path: ovseg.losses.MaskFormerLoss, init_args: {mask_weight: 7}}}")
    loss = make_loss(ProposalTask, ["--config", str(config), "--model.loss.dice_weight", "3"])(4)
    assert isinstance(loss, MaskFormerLoss)
    assert loss.weights == {"loss_cross_entropy": 1, "loss_mask": 7, "loss_dice": 3}
    assert loss.criterion.get_buffer("empty_weight").shape == (5,)


def test_a_flag_changes_one_argument_of_a_loss() -> None:
    mask_loss = make_loss(
        ProposalTask, ["--model.loss", "ovseg.losses.Mask2FormerLoss", "--model.loss.num_points", "64"]
    )(4)
    assert isinstance(mask_loss, Mask2FormerLoss) and mask_loss.criterion.num_points == 64
    region_loss = make_loss(AdapterTask, ["--model.loss.repeated_texts", "negatives"])()
    assert isinstance(region_loss, RegionTextLoss) and region_loss.repeated_texts == "negatives"


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(jsonargparse.ArgumentError, match="FocalLos"):
        make_loss(ProposalTask, ["--model.loss", "ovseg.losses.FocalLos"])


@pytest.mark.parametrize(
    ("task", "old", "new"),
    [
        ("ProposalTask", "model.loss_weights.mask_weight", "--model.loss"),
        ("AdapterTask", "model.repeated_texts", "--model.loss.repeated_texts"),
    ],
)
def test_the_old_flags_are_refused_with_the_new_ones(
    task: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model", f"ovseg.tasks.{task}", f"--{old}", "1"])
    assert f" is now {new}; " in capsys.readouterr().err


def test_a_user_s_region_loss_trains(tmp_path: Path) -> None:
    loss = make_loss(AdapterTask, ["--model.loss", f"{__name__}.ScaledRegionLoss", "--model.loss.scale", "3"])
    clip = tiny.clip(tmp_path / "clip", prompt_depth=1)
    side = clip.image_size
    masks = torch.ones(2, side, side, dtype=torch.bool)
    batch = RegionTextBatch(torch.rand(2, 3, side, side), masks, ["cat", "dog"], torch.arange(2))
    fit = trainer(1)
    fit.fit(AdapterTask(clip, loss=loss), Batches([batch]))
    assert fit.callback_metrics["train/loss"].item() == 3


def test_a_user_s_mask_loss_trains(tmp_path: Path) -> None:
    loss = make_loss(ProposalTask, ["--model.loss", f"{__name__}.ScaledMaskLoss"])
    batch = SegmentationBatch(torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.int64))
    fit = trainer(1)
    task = ProposalTask(tiny.proposer(), tiny.clip(tmp_path / "clip"), loss=loss)
    fit.fit(task, Batches([batch], vocabulary=Vocabulary(("red", "green", "blue"))))
    assert fit.callback_metrics["train/loss"].item() == 6


def test_arguments_of_a_mask_loss_need_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise a run with other weights would depend on which loss is the default."""
    with pytest.raises(SystemExit):
        main(["fit", "--model", "ovseg.tasks.ProposalTask", "--model.loss.mask_weight", "20"])
    assert "must include a class_path" in (error := capsys.readouterr().err)
    assert "; give the class too, with --model.loss or as class_path in the config" in error


def test_several_processes_need_the_texts_of_the_data(tmp_path: Path) -> None:
    task = AdapterTask(tiny.clip(tmp_path / "clip", prompt_depth=1))
    task.trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, barebones=False)
    task.trainer.datamodule = L.LightningDataModule()  # type: ignore[attr-defined]
    batch = RegionTextBatch(torch.zeros(1, 3, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool), ["cat"], torch.arange(1))
    with pytest.raises(InputError, match=r"LightningDataModule has no `texts`.*--trainer.devices 1"):
        task.training_step(batch, 0)


SOURCES = [path for folder in ("tasks", "callbacks", "cli") for path in sorted((SRC / folder).glob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_nothing_but_the_data_assigns_to_no_attribute_of_a_datamodule(path: Path) -> None:
    """What a task, a callback or the CLI must tell the data goes through `configure`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).split(".")
            if {"data", "datamodule"} & set(owner):
                assert isinstance(node.ctx, ast.Load), f"{path.name}:{node.lineno} assigns to {ast.unparse(node)}"
                assert not node.attr.startswith("_"), f"{path.name}:{node.lineno} reads {ast.unparse(node)}"
