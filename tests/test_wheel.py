"""The wheel is complete: it runs README's commands in an empty folder, without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.stages import REPOSITORY
from tests.test_readme import README, command_lines

SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "src", "conf")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")
COMMANDS = [words[1:] for words in command_lines(README) if words[0] == "ovseg"]

# runs in the environment of the wheel: prints the config of Trainer verbs, and the arguments of other verbs
PARSE = """
import contextlib, functools, io, json, sys
import ovseg
from ovseg.cli import commands, main
from ovseg.cli.main import TRAINER_VERBS

def record(function):
    return functools.wraps(function)(lambda **arguments: print("class_path", arguments))

commands.COMMANDS.update({verb: record(function) for verb, function in commands.COMMANDS.items()})
refused = []
for words in json.loads(sys.argv[1]):
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed):
        try:
            main([*words, "--print_config"] if words[0] in TRAINER_VERBS else words)
        except SystemExit as end:
            code = end.code
    if code != 0 or "class_path" not in printed.getvalue():
        refused.append(words)
print(json.dumps([ovseg.__file__, refused]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / "sources" / name, symlinks=True, ignore=IGNORED)
        else:
            (folder / "sources").mkdir(exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / "sources" / name)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder)
    pip("wheel", folder / "sources", *options)
    [file] = folder.glob("*.whl")
    return file


def pip(*words: object) -> None:
    """Run pip and show what it says if it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_contains_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    package, conf = REPOSITORY / "src" / "ovseg", REPOSITORY / "conf"
    expected = {f"ovseg/{file.relative_to(package)}" for file in package.rglob("*") if file.is_file()}
    expected |= {f"ovseg/conf/{file.relative_to(conf)}" for file in conf.rglob("*") if file.is_file()}
    expected = {name for name in expected if "__pycache__" not in name}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {"ovseg/py.typed", "ovseg/conf/test.yaml", "ovseg/data/vocabularies/toy.json"} <= names


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; the other packages come from that of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", "--quiet", wheel)
    [site] = folder.glob("lib/python*/site-packages")
    assert (site / "ovseg").is_dir()
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "others.pth").write_text("\n".join(others))  # .pth files in these folders, editable installs, are not read
    return folder


def run(environment: Path, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment in a folder."""
    program, *rest = map(str, words)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [environment / "bin" / program, *rest], cwd=folder, env=variables, capture_output=True, text=True
    )


@pytest.mark.slow
def test_commands_of_readme_parse_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    assert len(COMMANDS) >= 5
    done = run(environment, tmp_path, "python", "-c", PARSE, json.dumps(COMMANDS))
    assert done.returncode == 0, done.stderr
    file, refused = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(environment) and refused == [], done.stderr
    notices = [line for line in done.stderr.splitlines() if line.endswith("using the copy that ships with ovseg")]
    assert "ovseg: conf/mine.yaml: not in this folder, using the copy that ships with ovseg" in notices
    assert len(notices) == sum(any(word.startswith("conf/") for word in words) for words in COMMANDS)


@pytest.mark.slow
def test_segment_runs_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    Image.new("RGB", (48, 40), "green").save(tmp_path / "photo.jpg")
    words = ("--config", "conf/segment.yaml", "--model", "toy", "--images", "photo.jpg", "--vocabulary", "grass, sky")
    done = run(environment, tmp_path, "ovseg", "segment", *words, "--out", "out")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "photo_labels.png") as labels:
        assert labels.size == (48, 40)
    assert {path.name for path in tmp_path.iterdir()} <= {"photo.jpg", "out", "runs"}
