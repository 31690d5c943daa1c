"""What the parser says about unusable words, made into one sentence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module

from ovseg.cli.renamed import new_name

# lines about the parser's own types and dumps of what it was given
_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Unexpected import path"
    r"|Expected a dot import path|Unable to load config '|$"
)
_KEY = re.compile(r"""Parser key "([^"]+)":\s*""")
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*")
_OPTION = re.compile(r"(?:Option|(?:Group|Subcommand) '([^']+)' does not accept option) '([^']+)'")


def one_sentence(message: str, verb: str, options: Iterable[str] = ()) -> str:
    """A message of jsonargparse as one line that names the key and the fault.

    Args:
        message: several lines, nested as the configuration is.
        verb: the verb that was asked for.
        options: what the verb takes, to find the nearest to one that is unknown.
    """
    keys: list[str] = []
    owner = ""
    faults: list[str] = []
    for line in message.splitlines():
        rest = line.strip().removeprefix("- ")
        while match := _KEY.match(rest) or _CLASS.match(rest):
            if match.re is _KEY:
                keys += [match[1]] if [match[1]] != keys[-1:] else []
            else:
                owner = match[1]
            rest = rest[match.end() :]
        if not _NOISE.match(rest):
            faults.append(_fault(rest, keys, owner, verb, options))
    if renaming := next((fault for fault in faults if fault.startswith("--")), None):
        return renaming
    where = f"{'.'.join(keys)}: " if keys else ""
    return where + ("; ".join(dict.fromkeys(faults)) or "cannot be used")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the known one that it may stand for, if any is close."""
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fault(text: str, keys: Sequence[str], owner: str, verb: str, options: Iterable[str]) -> str:
    """One of the parser's own sentences in plain words."""
    if match := _OPTION.match(text):
        group = [match[1]] if match[1] and match[1] != verb else []
        if renaming := _renaming([*keys, *group, match[2]]):
            return renaming
        holder = f"{match[1]!r}" if match[1] and match[1] != verb else owner.rpartition(".")[2] or verb
        known = options if match[1] == verb else _arguments(owner) if not match[1] else ()
        return f"{holder} has no option {match[2]!r}{nearest(match[2], known)}"
    if text.startswith("unrecognized arguments: "):
        word = text.split()[2].partition("=")[0]
        if renaming := _renaming([*keys, word.lstrip("-")]):
            return renaming
        if owner:
            return f"{owner.rpartition('.')[2]} has no option {word.lstrip('-')!r}"
        hint = nearest(word.lstrip("-"), options) or f"; `ovseg {verb} --help` lists what there is"
        return f"{verb} does not know {word}{hint}"
    if text.startswith("the following arguments are required: "):
        names = [name.strip().removeprefix(f"{verb}.") for name in text.partition(": ")[2].split(",")]
        flags = " and ".join(f"--{'.'.join([*keys, name])}" for name in names)
        configs = " or a --config that has it" if options and not keys and names == ["model"] else ""
        return f"{owner.rpartition('.')[2] or verb} needs {', '.join(names)}; give {flags}{configs}"
    if match := re.match(r"Expected a path but (\S+) either not accessible", text):
        return f"{match[1]} is neither a config file that exists nor a class"
    plain = re.sub(r"<class '([^']+)'>|typing\.", lambda match: match[1] or "", text)
    return plain.replace("Expected a ", "expected ").replace(". Got value: ", ", got ")


def _renaming(keys: Sequence[str]) -> str | None:
    """The refusal of a key that was renamed; None for other keys."""
    new = new_name(old := ".".join(keys))
    return f"--{old} is now --{new}; use the new name, in configs as well" if new else None


def _arguments(class_path: str) -> list[str]:
    """The names that a class takes, none where there is no such class."""
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError):
        return []
