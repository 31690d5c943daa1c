"""A new benchmark is one class in one file and one YAML: commands, configs and the table find it without a list."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from ovseg import data as data_package
from ovseg.data import benchmarks
from ovseg.data.benchmarks import Benchmark, find_benchmarks
from ovseg.data.vocabulary import read_vocabulary
from tests.data import layouts
from tests.stages import CONF, REPOSITORY, ovseg, refusal, write

DICE = """
from ovseg.data.benchmarks.base import Benchmark, Layout
from ovseg.data.labels import Coding, LabelFiles
from ovseg.data.partners import by_stem

class DiceDataModule(Benchmark):
    \"\"\"Dice, 2 images. Label 0 means unlabelled, 1 is the first class.\"\"\"

    layout = Layout("dice", total=2, homes=("dice",), images=("photos",), labels=("faces",),
                    source="unpack dice.zip into the root folder", classes="one, two, three")

    def label_files(self, locations):
        files = by_stem(locations["images"], locations["labels"], source=self.layout.source)
        return LabelFiles(files, Coding(range(1, 4), {0}), self.layout.name)
"""


def table_script() -> dict[str, Any]:
    """What scripts/benchmark_table.py defines."""
    return runpy.run_path(str(REPOSITORY / "scripts" / "benchmark_table.py"))


@pytest.fixture
def dice(tmp_path: Path) -> Path:
    """A root folder with the two images of the benchmark, which is not defined yet."""
    for name in ("a", "b"):
        layouts.photo(tmp_path / "root" / "dice" / "photos" / f"{name}.jpg")
        layouts.grey(tmp_path / "root" / "dice" / "faces" / f"{name}.png", [[0, 1, 3], [3, 3, 1]])
    return tmp_path / "root"


@pytest.fixture
def in_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The class as a new file among the benchmarks of the package."""
    (tmp_path / "modules").mkdir()
    write(tmp_path / "modules" / "dice.py", DICE)
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path / "modules")])
    yield "ovseg.data.DiceDataModule"
    sys.modules.pop("ovseg.data.benchmarks.dice", None)
    vars(benchmarks).pop("dice", None)


@pytest.fixture
def in_own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The class in a user's own module."""
    (tmp_path / "modules").mkdir()
    write(tmp_path / "modules" / "my_dice.py", DICE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield "my_dice.DiceDataModule"
    sys.modules.pop("my_dice", None)


def test_the_class_has_at_most_fifteen_lines() -> None:
    assert len(DICE.strip().splitlines()) <= 15


@pytest.mark.parametrize("where", ["in_package", "in_own_module"])
def test_a_new_benchmark_is_checked_and_tested(
    where: str, dice: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    class_path = request.getfixturevalue(where)
    config = write(tmp_path / "dice.yaml", f"class_path: {class_path}\ninit_args:\n  root: {dice}\n")
    by_name = "dice" if where == "in_package" else class_path
    for words in ((by_name, "--root", dice), (config,)):
        ovseg("data", "check", *words, "--num_workers", 0)
        assert capsys.readouterr().out.splitlines() == [
            f"images: {dice / 'dice' / 'photos'}",
            f"labels: {dice / 'dice' / 'faces'}",
            "2 images, 2 labels, 2 of 3 classes present",
            "absent: two",
        ]

    test = ("test", "--config", CONF / "test.yaml", "--model.segmenter", "toy")
    for data in (config, class_path):
        with pytest.raises(SystemExit) as done:
            ovseg(*test, "--data", data, "--print_config")
        assert done.value.code == 0
        printed = yaml.safe_load(capsys.readouterr().out)["data"]
        module, _, name = printed["class_path"].rpartition(".")
        assert getattr(import_module(module), name).__name__ == "DiceDataModule"
        assert printed["init_args"]["root"] == (str(dice) if data == config else "datasets")
    layouts.grey(dice / "dice" / "faces" / "b.png", [[4, 1, 1], [1, 1, 1]])  # the data is built before the model
    assert "faces/b.png has the value 4, which is not a class of dice" in refusal(capsys, *test, "--data", config)


@pytest.mark.usefixtures("in_package")
def test_a_new_file_of_the_package_is_in_every_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_benchmarks()["dice"].__name__ == "DiceDataModule" and list(find_benchmarks()) == sorted(
        find_benchmarks()
    )
    assert "DiceDataModule" in data_package.__all__ and "DiceDataModule" in dir(data_package)
    assert "choose one of ade20k_150, ade20k_847, coco_stuff_171, dice, " in refusal(capsys, "data", "check", "dime")
    row = "| `conf/data/dice.yaml` | 3 | 2 | unpack dice.zip into the root folder |"
    assert row in table_script()["with_table"]("<!-- benchmarks -->\n<!-- /benchmarks -->").splitlines()


def test_a_file_whose_class_is_no_benchmark_is_refused(
    in_own_module: str, dice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "my_dice" in refusal(capsys, "data", "check", "my_dice.Missing")
    assert "there is no benchmark 'my_dice.yaml'" in refusal(capsys, "data", "check", "my_dice.yaml")
    missing = refusal(capsys, "data", "check", in_own_module, "--root", dice / "nowhere")
    places = [dice / "nowhere" / "dice" / part for part in ("photos", "faces")]
    assert (
        missing == f"dice has no images ({places[0]}) and no labels ({places[1]}); unpack dice.zip into the root folder"
    )


@pytest.mark.parametrize(("name", "benchmark"), find_benchmarks().items())
def test_every_benchmark_has_its_config_and_vocabulary(name: str, benchmark: type[Benchmark]) -> None:
    config = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert config["class_path"] == f"ovseg.data.{benchmark.__name__}"
    assert getattr(data_package, benchmark.__name__) is benchmark
    assert len(read_vocabulary(benchmark.layout.vocabulary)) > 1
    assert benchmark.layout.total > 0 and benchmark.layout.source


def test_the_page_has_the_table_of_todays_benchmarks() -> None:
    script = table_script()
    page = script["PAGE"].read_text(encoding="utf-8")
    assert script["with_table"](page) == page, "run `python scripts/benchmark_table.py`"
    assert page.count("| `conf/data/") == len(find_benchmarks()) > 5


def test_two_benchmarks_of_one_name_are_refused(
    in_package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "modules" / "dice_again.py", DICE.replace("DiceDataModule", "OtherDataModule"))
    monkeypatch.setitem(sys.modules, "ovseg.data.benchmarks.dice_again", None)  # so that it is forgotten afterwards
    monkeypatch.delitem(sys.modules, "ovseg.data.benchmarks.dice_again")
    with pytest.raises(ValueError, match="DiceDataModule and OtherDataModule are both called dice; rename one of them"):
        find_benchmarks()
    vars(benchmarks).pop("dice_again", None)


def test_importing_a_submodule_imports_no_benchmark() -> None:
    """Python asks a package for a name before it imports the submodule of this name."""
    code = "import sys; from ovseg.data import toy; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(ImportError, match="cannot import name 'NoSuchDataModule'"):
        from ovseg.data import NoSuchDataModule  # noqa: F401
