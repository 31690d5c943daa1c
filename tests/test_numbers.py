"""Numbers out of range are refused by name, with their value and the limit, before any file is read or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ovseg.data import COCOStuffDataModule, ImagesDataModule, RegionTextDataModule
from ovseg.data.benchmarks.folder import SegmentationBenchmark
from ovseg.data.captions.datamodule import CaptionDataModule
from ovseg.data.images import EvalImages
from ovseg.data.toy.labelled import ToyScenesDataModule
from ovseg.data.transforms import SegmentationTransform
from ovseg.limits import check_at_least
from ovseg.structures import InputError
from ovseg.tasks import AdapterTask, ProposalTask
from tests import tiny
from tests.stages import CONF, refusal

NONE = Path("no such folder")


def captions(**options: int) -> CaptionDataModule:
    return CaptionDataModule(NONE, NONE / "captions.json", **options)


DATA: dict[str, Callable[[], object]] = {
    "resize is [-5, 10]; give at least 4 for each number": lambda: ImagesDataModule(str(NONE), "cat", (-5, 10)),
    "resize is [640, 0]; give at least 4 for each number": lambda: EvalImages([], (640, 0)),
    "num_workers is -1; give at least 0": lambda: ImagesDataModule(str(NONE), "cat", num_workers=-1),
    "num_workers is -2; give at least 0": lambda: captions(num_workers=-2),
    "num_workers is -3; give at least 0": lambda: RegionTextDataModule(NONE, NONE, num_workers=-3),
    "num_workers is -4; give at least 0": lambda: COCOStuffDataModule(str(NONE), num_workers=-4),
    "num_workers is -5; give at least 0": lambda: ToyScenesDataModule(num_workers=-5),
    "short_side is 2; give at least 4": lambda: captions(short_side=2),
    "val_short_side is 3; give at least 4": lambda: COCOStuffDataModule(str(NONE), val_short_side=3),
    "short_sides is [8, 0]; give at least 4 for each number": lambda: SegmentationTransform(8, (8, 0)),
    "short_sides is empty; give at least one length": lambda: SegmentationTransform(8, ()),
}


@pytest.mark.parametrize("sentence", DATA)
def test_data_refuses_numbers_out_of_range(sentence: str) -> None:
    with pytest.raises(InputError) as error:
        DATA[sentence]()
    assert sentence in str(error.value)


def test_a_benchmark_refuses_a_negative_number_of_workers(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "a.png")
    folders = {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}
    with pytest.raises(InputError, match="num_workers is -1; give at least 0"):
        SegmentationBenchmark(**folders, vocabulary="cat, dog", num_workers=-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1.0), ("prompt_lr", -1.0), ("weight_decay", float("nan")), ("warmup_steps", -10)],
)
def test_training_refuses_numbers_out_of_range(name: str, value: float, tmp_path: Path) -> None:
    clip = tiny.clip(tmp_path, prompt_depth=1)
    with pytest.raises(InputError, match=f"{name} is {value}; give at least 0"):
        AdapterTask(clip, **{name: value})  # type: ignore[arg-type]
    if name != "prompt_lr":
        with pytest.raises(InputError, match=f"{name} is {value}; give at least 0"):
            ProposalTask(tiny.proposer(), clip, **{name: value})  # type: ignore[arg-type]


def test_more_prompts_than_layers_are_refused(tmp_path: Path) -> None:
    assert tiny.clip(tmp_path, prompt_depth=2).visual.prompt is not None
    with pytest.raises(InputError, match=r"prompt_depth is 300; .* has 2 layers, give at most that many"):
        tiny.clip(tmp_path, prompt_depth=300)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(capsys, "fit", "--config", CONF / "toy" / "proposals.yaml", "--seed_everything", seed)
    assert sentence == f"seed_everything is {seed}; give a number from 0 to 4294967295"


def test_defaults_and_limits_themselves_are_accepted() -> None:
    check_at_least(4, short_side=4, resize=(4, 5), other=None)
