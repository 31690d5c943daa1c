"""docs/architecture.md: the examples run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ovseg.data import benchmarks
from ovseg.models import CLIPAdapter
from tests.stages import REPOSITORY, ovseg
from tests.test_readme import command_lines

PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r'^```python title="(.*?)"\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = [[word for word in words if word != "PYTHONPATH=."] for words in command_lines(PAGE)]


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
