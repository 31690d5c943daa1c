"""Check config files before jsonargparse reads them: its messages name neither the file nor the line.

These checks cover what a YAML parser sees: the encoding, the syntax, repeated keys, and a list where keys are expected.
Which keys and values are allowed is decided later, see `ovseg.cli.refusals`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from ovseg.structures import InputError

PARTS = ("trainer", "model", "data")
SUFFIXES = (".yaml", ".yml")
REMEDY = "write one `key: value` a line, without leading hyphens"


def config_files(words: Sequence[str]) -> list[str]:
    """Return the config files on a command line that exist: those of `--config`."""
    return [value for flag, value in _values(words) if flag in ("--config", "-c") and Path(value).is_file()]


def check_configs(words: Sequence[str]) -> None:
    """Check the config files on a command line, and the fragments that they name.

    Raises:
        InputError: see `check_config`.
    """
    for file in config_files(words):
        check_config(Path(file))
    for flag, value in _values(words):
        if _is_fragment(Path(value)):
            check_config(Path(value), mapping=flag.removeprefix("--") in PARTS)


def check_config(file: Path, mapping: bool = True, parents: tuple[Path, ...] = ()) -> None:
    """Check one config file, and the fragments that it names.

    Args:
        file: the config.
        mapping: whether it must have keys.
        parents: the configs through which this one is named.

    Raises:
        InputError: a file is not UTF-8, not YAML, empty, or a list, it sets a key twice, or it names itself.
    """
    if file.resolve() in parents:
        raise InputError(f"{file} names itself, directly or through other configs; remove one of the references")
    root = _compose(file)
    if root is None and mapping:
        raise InputError(f"{file} is empty; write settings into it, such as those of the files in conf")
    if root is not None and mapping and not isinstance(root, yaml.MappingNode):
        raise InputError(f"{file} {_not_a_mapping(root)}; {REMEDY}")
    for key, value, top in _entries(file, root):
        needs_keys = key == "init_args" or (top and key in PARTS)
        if needs_keys and isinstance(value, yaml.SequenceNode):
            raise InputError(f"{_line(file, value)}: {key} {_not_a_mapping(value)}; {REMEDY}")
        if isinstance(value, yaml.ScalarNode) and _is_fragment(fragment := file.parent / value.value):
            check_config(fragment, needs_keys, (*parents, file.resolve()))


def _values(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield flags with their values, which are the next word or follow `=`."""
    for word, following in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        if word.startswith("-"):
            yield flag, value if equals else following


def _is_fragment(path: Path) -> bool:
    return path.suffix in SUFFIXES and path.is_file()


def _compose(file: Path) -> yaml.Node | None:
    """Parse a file into YAML nodes, which have line numbers and keep repeated keys."""
    try:
        root: yaml.Node | None = yaml.compose(file.read_text("utf-8"), Loader=yaml.SafeLoader)
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise InputError(f"{file} is not a text file in UTF-8; save it as one, or give another config") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = ": ".join(text for text in (error.context, error.problem) if text)
        raise InputError(f"{file}{place}: invalid YAML ({reason}); correct this line or the one before it") from error
    return root


def _entries(file: Path, root: yaml.Node | None) -> Iterator[tuple[str, yaml.Node, bool]]:
    """Yield keys, values, and whether they are at the top, for all mappings at any depth; check the keys."""
    nodes, visited = [root], set()  # with anchors, a node can contain itself
    while nodes:
        node = nodes.pop()
        if node is None or isinstance(node, yaml.ScalarNode) or id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(
                    f"{_line(file, key)}: a key is a list or a mapping; quote text that begins with {{ or ["
                )
            if key.value in lines:
                raise InputError(
                    f"{_line(file, key)}: {key.value!r} is already set in line {lines[key.value]}; remove one"
                )
            lines[key.value] = key.start_mark.line + 1
            nodes.append(value)
            yield key.value, value, node is root


def _line(file: Path, node: yaml.Node) -> str:
    return f"{file}, line {node.start_mark.line + 1}"


def _not_a_mapping(node: yaml.Node) -> str:
    return "is a list, not a mapping" if isinstance(node, yaml.SequenceNode) else "is text without keys"
