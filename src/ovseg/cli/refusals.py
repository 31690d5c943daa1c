"""Explain in one sentence why the parser rejects a command line or a config.

jsonargparse reports mistakes as nested exceptions. The sentence consists of the config file, the key and the class, the
innermost message, and a hint if there is one.
"""

from __future__ import annotations

import inspect
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ovseg.cli.config_files import config_files
from ovseg.cli.renamed import new_name

PUBLIC = ("ovseg.tasks", "ovseg.data", "ovseg.models", "ovseg.losses", "ovseg.callbacks")  # where configs find classes


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
    text = re.sub(r' in "<[a-z]+ string>", (line \d+, column \d+)', r" (\1)", text)  # a value that is no YAML
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
        path = re.search(r"class_path '([\w.]+)'|import path string: (\w+)", sentence)
        if path and (nearest := _nearest_class(path[1] or path[2])):
            return f"; did you mean {nearest}?"
        not_found = "import path" in sentence or "No module" in sentence
        return "; give a class, or a config file that exists" if not_found else ""
    name = ".".join(unknown)
    if not owner and not keys and (nearest_part := _nearest_part(name, options)):
        return f"; did you mean --{nearest_part}?"
    candidates = list(inspect.signature(owner).parameters) if owner else list(options)
    candidates = [option for option in candidates if option.count(".") == name.count(".")]
    if close := get_close_matches(name, candidates, n=1):
        return f"; did you mean --{'.'.join([*keys, *close])}?"
    return "" if keys else f"; `ovseg {verb} --help` lists the flags"


def _nearest_part(key: str, options: Iterable[str]) -> str:
    """Return the top-level key most similar to that of a dotted key, or nothing if the key is right or unlike any."""
    parts = {option.partition(".")[0] for option in options}
    part = key.partition(".")[0]
    close = [] if part in parts else get_close_matches(part, parts, n=1)
    return close[0] if close else ""


def _nearest_class(path: str) -> str:
    """Return the dotted path of the public class whose name is most similar, or nothing if none is."""
    module, _, name = path.rpartition(".")
    modules = [import_module(public) for public in PUBLIC]
    modules += [sys.modules[module]] if module in sys.modules else []
    paths = {
        public: f"{each.__name__}.{public}"
        for each in modules
        for public in getattr(each, "__all__", dir(each))
        if isinstance(cls := getattr(each, public), type)
        and (hasattr(each, "__all__") or cls.__module__ == each.__name__)
    }
    close = get_close_matches(name, paths, n=1)
    return paths[close[0]] if close else ""


def unresolved(error: Exception, words: Sequence[str]) -> str:
    """Explain in one sentence why an interpolation such as `${data.root}` cannot be resolved.

    Args:
        error: raised by OmegaConf.
        words: the command line, beginning with its verb.
    """
    reason = str(error).splitlines()[0]
    key = re.match(r"Interpolation key '\.*(.+?)' not found", reason)
    pattern = re.compile(rf"\$\{{[^{{}}]*{re.escape(key[1])}\}}" if key else r"\$\{[^{}]*\}?")
    sources = {"the command line": " ".join(words)}
    sources |= {file: Path(file).read_text("utf-8") for file in config_files(words)}
    source, match = next(
        ((file, match) for file, text in sources.items() if (match := pattern.search(text))), ("", None)
    )
    place, reference = (f"{source}: ", match[0]) if match else ("", f"${{{key[1]}}}" if key else "an interpolation")
    if key:
        return f"{place}{reference} names no key of the configuration; correct it, or set that key (--print_config)"
    return f"{place}{reference} cannot be resolved ({reason}); correct it"


def _config_with(key: Sequence[str], words: Sequence[str]) -> str:
    """Return the config file on the command line that contains a key, unless a flag sets the key."""
    leaf = "".join(key).rpartition(".")[2]
    flags = [word.partition("=")[0].lstrip("-") for word in words if word.startswith("-")]
    if leaf and any(leaf in flag.split(".") for flag in flags):
        return ""
    pattern = re.compile(rf"(?<!\w){re.escape(leaf)}(?!\w)" if leaf else "$")
    return next((file for file in config_files(words) if pattern.search(Path(file).read_text("utf-8", "replace"))), "")
