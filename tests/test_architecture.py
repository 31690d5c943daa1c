"""docs/architecture.md: the examples run, and the functions it lists are those a test calls."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ovseg.data import benchmarks, read_pairs
from ovseg.models import CLIPAdapter, CropEncoder, OpenVocabSegmenter
from tests.stages import REPOSITORY, ovseg
from tests.test_readme import command_lines

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r'^```python title="(.*?)"\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = [[word for word in words if word != "PYTHONPATH=."] for words in command_lines(PAGE)]
SOURCE = str(Path(benchmarks.__file__).parents[2])


def command(*words: str) -> list[str]:
    """The one command of the page that has all these words, without `ovseg`."""
    (match,) = [line[1:] for line in COMMANDS if set(words) <= set(line)]
    return match


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("architecture")
    words = command("runs/world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ovseg(*words[: words.index("--scenes")], "--scenes", 8, "--val_scenes", 2)
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the toy world, the configs and the examples of the page."""
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(world)
    if not Path("conf").exists():
        Path("conf").symlink_to(REPOSITORY / "conf")
    for name, code in EXAMPLES.items():
        Path(Path(name).name).write_text(code, encoding="utf-8")
    yield world
    for name in EXAMPLES:
        for module in (Path(name).stem, f"{benchmarks.__name__}.{Path(name).stem}"):
            sys.modules.pop(module, None)


def test_examples_are_short() -> None:
    assert len(EXAMPLES) == 5
    assert {name: len(code.splitlines()) for name, code in EXAMPLES.items() if len(code.splitlines()) > 15} == {}


def test_example_of_a_benchmark(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = [name for name in EXAMPLES if "benchmarks/" in name]
    package = here / "more_benchmarks"
    package.mkdir()
    (package / Path(name).name).write_text(EXAMPLES[name], encoding="utf-8")
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(package)])
    (config,) = re.findall(r'^```yaml title="conf/data/[^"]*"\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE)
    Path("streets.yaml").write_text(config, encoding="utf-8")
    for folder in ("photos", "masks"):
        (here / "datasets" / "streets" / folder).mkdir(parents=True)
    Image.new("RGB", (3, 2), "gray").save("datasets/streets/photos/a.jpg")
    Image.fromarray(np.array([[0, 1, 2], [2, 2, 2]], dtype=np.uint8)).save("datasets/streets/masks/a.png")

    benchmark = benchmarks.find_benchmarks()["streets"]()
    expected = torch.tensor([[255, 0, 1], [1, 1, 1]])
    assert benchmark.dataset[0].labels[0].long().equal(expected)
    assert benchmark.vocabulary.names == ("road", "car")
    with pytest.raises(SystemExit) as done:
        ovseg("test", "--config", "conf/test.yaml", "--data", "streets.yaml", "--print_config")
    assert done.value.code == 0


def test_example_of_a_proposer(here: Path) -> None:
    ovseg(*command("my_proposer.GridProposer"))
    pairs = read_pairs(Path("runs/grid_pairs"))
    assert len(pairs) > 0
    for pair in (pairs[index] for index in range(len(pairs))):
        x0, y0, x1, y1 = pair.box
        height, width = pair.size
        assert abs(3 * (x1 - x0) - width) <= 3 and abs(3 * (y1 - y0) - height) <= 3  # a cell of a 3 × 3 grid


def test_example_of_a_region_encoder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ovseg(*command("my_encoder.TwoScaleEncoder"))
    assert "mIoU" in capsys.readouterr().out

    from my_encoder import TwoScaleEncoder  # type: ignore[import-not-found]

    clip = CLIPAdapter("toy")
    images, masks = [torch.rand(3, 48, 64)], [torch.zeros(3, 48, 64, dtype=torch.bool)]
    masks[0][0, 8:40, 10:50] = masks[0][1, 3:9, 5:20] = True
    (plain,), (same,), (wide,) = (
        encoder.eval()(images, masks)
        for encoder in (CropEncoder(clip), TwoScaleEncoder(clip, context=1.0), TwoScaleEncoder(clip))
    )
    assert torch.allclose(plain.features, same.features, atol=1e-6)  # of two equal crops, the mean is either
    assert not torch.allclose(plain.features, wide.features, atol=1e-2)
    assert wide.valid.tolist() == [True, True, False] and wide.features[2].count_nonzero() == 0

    segmenter = OpenVocabSegmenter.from_pretrained("toy", lambda clip: TwoScaleEncoder(clip, 1.2))
    segmenter.save_pretrained("runs/two_scale_segmenter")
    saved = OpenVocabSegmenter.from_pretrained("runs/two_scale_segmenter").region_encoder
    assert isinstance(saved, TwoScaleEncoder) and saved.context == 1.2


def test_example_of_a_loss(here: Path) -> None:
    from my_loss import SmoothedLoss  # type: ignore[import-not-found]

    logits = torch.tensor([[2.0, 0.0]])
    right, wrong = (-logits.log_softmax(dim=1))[0]  # smoothing spreads 0.1 evenly over both texts
    assert SmoothedLoss(0.1)(logits, torch.tensor([0])).isclose(0.95 * right + 0.05 * wrong)

    ovseg(*command("mine", "runs/world_pairs"))
    start = CLIPAdapter("toy", prompt_depth=3).visual.prompt
    small = ("--data.total_batch_size", 8, "--data.num_workers", 0, "--trainer.max_steps", 1)
    ovseg(*command("my_loss.SmoothedLoss"), *small)
    trained = CLIPAdapter("runs/toy/adapter/last.ckpt").visual.prompt
    assert start is not None and trained is not None
    assert not torch.equal(next(start.parameters()), next(trained.parameters()))


def test_example_of_a_clip(here: Path) -> None:
    variables: dict[str, Any] = {}
    exec(EXAMPLES["my_clip.py"], variables)
    saved: dict[str, Tensor] = CLIPAdapter("runs/my_prompted_clip").state_dict()
    made: dict[str, Tensor] = variables["clip"].state_dict()
    assert saved.keys() == made.keys() and all(torch.equal(saved[key], made[key]) for key in saved)
    with pytest.raises(SystemExit) as done:
        ovseg(*command("runs/my_prompted_clip"), "--print_config")
    assert done.value.code == 0


def test_a_test_calls_what_the_page_says_in_that_order(here: Path) -> None:
    (table,) = re.findall(r"<!-- life of a test -->\n(.*?)<!--", PAGE, re.DOTALL)
    steps = re.findall(r"^\| `(.*?)` \| `(.*?)` \|", table, re.MULTILINE)
    calls: dict[tuple[str, str], None] = {}  # in the order of the first call

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(SOURCE):
            calls.setdefault((file[len(SOURCE) + 1 :], frame.f_code.co_qualname))

    words = next(words[1:] for words in COMMANDS if words[1] == "test")
    sys.setprofile(note)
    try:
        ovseg(*words)
    finally:
        sys.setprofile(None)
    assert len(steps) > 15
    assert [call for call in calls if call in steps] == steps
