"""README and docs: their commands run, their links lead somewhere, and README stays short."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

from ovseg.cli import commands
from ovseg.cli.main import TRAINER_VERBS
from tests.stages import REPOSITORY, ovseg

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def command_lines(text: str) -> list[list[str]]:
    """The words of every command in the fenced blocks of shell, without comments and prompts."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


DOCS = {str(page.relative_to(REPOSITORY)): page.read_text(encoding="utf-8") for page in REPOSITORY.glob("docs/*.md")}
PAGES = {"README.md": README, **dict(sorted(DOCS.items()))}
COMMAND_LINES = [words for page in PAGES.values() for words in command_lines(page)]
LAUNCHERS = {"ovseg", "srun", "torchrun"}
OVSEG = [words[words.index("ovseg") + 1 :] for words in COMMAND_LINES if words[0] in LAUNCHERS]
SCRIPTS = [words[0] for words in COMMAND_LINES if words[0].startswith("./")]


def test_the_reader_of_commands_reads() -> None:
    text = "```bash\novseg toy --out 'a b'   # why\n$ ovseg fit \\\n  --config x\n```\n```python\novseg = 1\n```\n"
    assert command_lines(text) == [["ovseg", "toy", "--out", "a b"], ["ovseg", "fit", "--config", "x"]]


def test_readme_has_commands() -> None:
    assert len(OVSEG) + len(SCRIPTS) >= 5


@pytest.mark.parametrize("words", OVSEG, ids=" ".join)
def test_command_of_readme_parses(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = [stand_in(word) for word in words]
    if words[0] in TRAINER_VERBS:
        with pytest.raises(SystemExit) as done:
            ovseg(*words, "--print_config")
        assert done.value.code == 0
        assert "class_path" in capsys.readouterr().out
    else:
        given: list[dict[str, Any]] = []
        monkeypatch.setitem(commands.COMMANDS, words[0], recorder(commands.COMMANDS[words[0]], given))
        ovseg(*words)
        assert len(given) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_of_readme_can_be_run(script: str) -> None:
    assert os.access(REPOSITORY / script, os.X_OK)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    paths = set(re.findall(r"(?<![\w/.])(?:conf|scripts|tests|src|notebooks)/[\w./-]*\w", PAGES[page]))
    paths -= set(re.findall(r'^```\w+ title="(.*?)"$', PAGES[page], re.MULTILINE))  # which the reader is to write
    assert [path for path in sorted(paths) if not (REPOSITORY / path).exists()] == []


def test_readme_fits_the_first_five_minutes() -> None:
    assert len(README.splitlines()) <= 150
    assert {f"docs/{name}.md" for name in ("data", "configs", "benchmarks", "weights", "performance", "clusters")} <= {
        target.partition("#")[0] for target in links(README)
    }


def test_python_of_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 40), "green").save("photo.jpg")
    variables: dict[str, Any] = {}
    exec(code, variables)
    assert variables["labels"].shape == (40, 48) and set(variables["labels"].unique().tolist()) <= {0, 1, 2}


LINKED = ["CHANGELOG.md", "CONTRIBUTING.md", "conf/paper/README.md", "src/ovseg/weights/toy/CARD.md"]


@pytest.mark.parametrize("page", [*PAGES, *LINKED, "notebooks/ablations.ipynb"])
def test_links_lead_to_files_and_headings(page: str) -> None:
    broken = []
    for target in links(text_of(REPOSITORY / page)):
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        if not file.exists() or (anchor and anchor not in anchors(text_of(file))):
            broken.append(target)
    assert broken == []


def test_a_broken_link_or_anchor_is_found() -> None:
    assert links("[a](b.md#c) ![d](e.png) [f](https://g.org) `[h](i)`") == ["b.md#c", "e.png"]
    assert anchors("# What mIoU means, *here*\n```bash\n# no heading\n```\n## `a_b`: c") == {
        "what-miou-means-here",
        "a_b-c",
    }


def text_of(file: Path) -> str:
    """The Markdown of a page or of a notebook."""
    if file.suffix != ".ipynb":
        return file.read_text(encoding="utf-8")
    cells = nbformat.read(file, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def links(text: str) -> list[str]:
    """The targets of relative links and pictures, outside code."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`(?!\])", "", text, flags=re.DOTALL | re.MULTILINE)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]


def anchors(text: str) -> set[str]:
    """The anchors that forges give to the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def stand_in(word: str) -> str:
    """For what a run leaves, `runs/adapter/fit.yaml`, the config that it was started with."""
    if match := re.fullmatch(r"runs/(\w+)/fit\.yaml", word):
        return f"conf/{match[1]}.yaml"
    return word


def recorder(function: Callable[..., None], given: list[dict[str, Any]]) -> Callable[..., None]:
    """Takes the arguments of a command and does nothing."""

    @functools.wraps(function)
    def record(**arguments: Any) -> None:
        given.append(arguments)

    return record
