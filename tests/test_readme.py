"""What README and docs tell people to run can be run."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from ovseg.cli import commands
from ovseg.cli.main import TRAINER_VERBS
from tests.stages import REPOSITORY, ovseg

README = (REPOSITORY / "README.md").read_text(encoding="utf-8") if (REPOSITORY / "README.md").is_file() else ""


def command_lines(text: str) -> list[list[str]]:
    """The words of every command in the fenced blocks of shell, without comments and prompts."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


DOCS = [page.read_text(encoding="utf-8") for page in sorted((REPOSITORY / "docs").glob("*.md"))]
COMMAND_LINES = [words for page in (README, *DOCS) for words in command_lines(page)]
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


def test_configs_and_files_that_readme_names_exist() -> None:
    named = set(re.findall(r"(?<![\w/.])(?:conf|scripts|tests|src|notebooks)/[\w./-]*\w", README))
    linked = {target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target}
    assert named | linked
    assert [path for path in sorted(named | linked) if not (REPOSITORY / path).exists()] == []


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
