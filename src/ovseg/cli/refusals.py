"""Explain in one sentence why the parser rejects a command line or a config.

jsonargparse reports mistakes as nested exceptions. The sentence consists of the config file, the key and the class, the
innermost message, and a hint if there is one.
"""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from ovseg.cli.renamed import new_name
from ovseg.structures import InputError


class OwnedArguments:
    """Mixin for parsers that attaches the class whose arguments are parsed to their errors."""

    owner: type | None = None

    def add_class_arguments(self, theclass: type, nested_key: str | None = None, **options: Any) -> Any:
        """Add the arguments of a class, and remember the class if it is the only one."""
        if nested_key is None:
            self.owner = theclass
        return super().add_class_arguments(theclass, nested_key, **options)  # type: ignore[misc]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `ArgumentError` with the attribute `owner`."""
        try:
            super().error(message, ex)  # type: ignore[misc]
        except ArgumentError as error:
            error.owner = self.owner  # type: ignore[attr-defined]
            raise
        raise AssertionError("parsers of ovseg raise their errors")


def one_sentence(error: ArgumentError, words: Sequence[str], options: Iterable[str] = ()) -> str:
    """Explain in one sentence why a command line is rejected.

    Args:
        error: raised by a parser with `OwnedArguments`.
        words: the command line, beginning with its verb.
        options: flags of the verb, for suggestions.
    """
    chain = list(_chain(error))
    levels = [each for each in chain if isinstance(each, ArgumentError)]
    owner: type | None = getattr(levels[-1], "owner", None)
    keys: list[str] = []
    for level in levels:
        key, _ = _split_key(str(level))
        keys += [key] if key and [key] != keys[-1:] else []
    faults = [each for each in chain if not isinstance(each, ImportError | AttributeError)]
    sentence = _split_key(_text(faults[-1]))[1]
    unknown = _unknown(faults[-1], words[0])
    path = ".".join([*keys, *unknown])
    if unknown and (new := new_name(path)):
        old = ".".join(part for part in path.split(".") if part != "init_args")
        return f"--{old} is now --{new}; use the new name, in configs as well"
    sentence = sentence.replace(f" {words[0]}.", " ")
    on_command_line = isinstance(faults[-1], ArgumentError) and not keys  # a flag, not a value in a config
    file = "" if on_command_line else _config_with((unknown or keys)[-1:], words)
    prefix = [file, ".".join(keys), owner.__name__ if owner and unknown + _missing(sentence) else "", sentence]
    if not keys:
        prefix.insert(1, words[0])
    return ": ".join(part for part in prefix if part) + _hint(sentence, keys, unknown, owner, words[0], options)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _text(error: BaseException) -> str:
    """Return an exception's message on one line, with types named as in Python."""
    text = re.sub(r"<class '([^']+)'>|\btyping\.", lambda match: match[1] or "", " ".join(str(error).split()))
    return text.replace("Expected a int", "Expected an int")


def _split_key(text: str) -> tuple[str, str]:
    """Split `Parser key "data": …` into the key and the rest; the key of other text is empty."""
    start = 'Parser key "'
    if not text.startswith(start):
        return "", text
    key, _, rest = text.removeprefix(start).partition('":')
    return key, rest.strip()


def _unknown(error: BaseException, verb: str) -> list[str]:
    """Return the parts of the key that the parser does not know, or nothing if something else is wrong."""
    text = _text(error)
    if isinstance(error, KeyError):
        return [word for word in re.findall(r"'([^']+)'", text) if word != verb]
    if not isinstance(error, ArgumentError) or error.argument_name:  # a name: the flag is known, its value is wrong
        return []
    return [word.partition("=")[0].lstrip("-") for word in text.split() if word.startswith("--")][:1]


def _missing(sentence: str) -> list[str]:
    """Return the arguments that a sentence calls required."""
    start, _, names = sentence.partition(" required: ")
    return names.split(", ") if start.endswith(" are") else []


def _hint(
    sentence: str, keys: Sequence[str], unknown: Sequence[str], owner: type | None, verb: str, options: Iterable[str]
) -> str:
    """Return the end of the sentence, which suggests what to try next."""
    if names := _missing(sentence):
        flags = " and ".join(f"--{'.'.join([*keys, name])}" for name in names)
        return f"; give {flags}" + (" or a --config that has it" if names == ["model"] and not keys else "")
    if "must include a class_path" in sentence:
        return f"; give the class too, with --{'.'.join(keys)} or as class_path in the config"
    if not unknown:
        return (
            "; give a class, or a config file that exists"
            if "import path" in sentence or "No module" in sentence
            else ""
        )
    name = ".".join(unknown)
    candidates = list(inspect.signature(owner).parameters) if owner else list(options)
    candidates = [option for option in candidates if option.count(".") == name.count(".")]
    if close := get_close_matches(name, candidates, n=1):
        return f"; did you mean --{'.'.join([*keys, *close])}?"
    return "" if keys else f"; `ovseg {verb} --help` lists the flags"


def _config_with(key: Sequence[str], words: Sequence[str]) -> str:
    """Return the config file on the command line that contains a key, unless a flag sets the key."""
    leaf = "".join(key).rpartition(".")[2]
    flags = [word.partition("=")[0].lstrip("-") for word in words if word.startswith("-")]
    if leaf and any(leaf in flag.split(".") for flag in flags):
        return ""
    pattern = re.compile(rf"(?<!\w){re.escape(leaf)}(?!\w)" if leaf else "$")
    return next((file for file in _configs(words) if pattern.search(Path(file).read_text("utf-8", "replace"))), "")


def check_configs(words: Sequence[str]) -> None:
    """Refuse config files that are not text, which jsonargparse does not catch.

    Raises:
        InputError: a file on the command line is not UTF-8.
    """
    for file in _configs(words):
        try:
            Path(file).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not a text file in UTF-8; save it as one, or give another --config") from error


def _configs(words: Sequence[str]) -> list[str]:
    """Return the config files on a command line that exist."""
    files = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    files += [value for flag, value in pairwise(words) if flag in ("--config", "-c")]
    return [file for file in files if Path(file).is_file()]
