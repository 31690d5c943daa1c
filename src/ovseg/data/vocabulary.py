"""Class names from built-in lists, from files, or typed on the command line."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ovseg.structures import InputError, Vocabulary

_LOG = logging.getLogger(__name__)
_SHOWN = 5  # shared phrases that a warning lists


def builtin_vocabularies() -> list[str]:
    """Return the names of the built-in lists, sorted."""
    folder = resources.files("ovseg.data") / "vocabularies"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def read_vocabulary(spec: str, synonyms: bool = False) -> Vocabulary:
    """Read class names, exactly as the list spells them.

    Phrases that stand for two classes are logged as a warning.

    Args:
        spec: the name of a built-in list ("ade20k_150"), a .json file in the same format, a text file (one class per
            line, synonyms after ";", commas belong to the name), or names separated by commas ("cat, sofa").
        synonyms: whether to use a built-in list's synonyms. Other projects chose them, and some change what a name
            means. Synonyms in your own files are always used.

    Raises:
        InputError: there is no such list or file, or it is empty, damaged or has duplicates.
    """
    builtin = spec in builtin_vocabularies()
    if builtin or spec.endswith(".json"):
        content = _read_json(spec)
        flags = content.get("seen_in_coco_stuff", content.get("seen"))
        return _vocabulary(
            spec,
            content["classes"],
            content.get("synonyms", []) if synonyms or not builtin else [],
            None if flags is None else tuple(bool(flag) for flag in flags),
            content.get("background_from"),
        )
    if spec.endswith(".txt") or ("," not in spec and Path(spec).is_file()):
        entries = _read_lines(Path(spec))
        return _vocabulary(spec, [entry[0] for entry in entries], entries)
    if "," not in spec and (
        "_" in spec or "/" in spec or any(n.startswith(f"{spec}_") for n in builtin_vocabularies())
    ):
        raise InputError(
            f"there is no vocabulary '{spec}'; choose one of {', '.join(builtin_vocabularies())}, "
            "a .json or .txt file that exists, or type the names: 'cat, sofa'"
        )
    names = [name.strip() for name in spec.split(",")]
    return _vocabulary("given", names if spec.strip(" ,") else [], [])


def read_dataset_ids(spec: str, key: str = "dataset_ids") -> list[int] | None:
    """Read the id of each class in the data set's label files; return None if the vocabulary has no ids.

    Args:
        spec: see `read_vocabulary`.
        key: the entry to read; a vocabulary may have the ids of several data sets.

    Raises:
        InputError: the file is damaged, or the ids are not one per class and distinct.
    """
    if spec not in builtin_vocabularies() and not spec.endswith(".json"):
        return None
    content = _read_json(spec)
    ids = content.get(key)
    if ids is not None and (len(ids) != len(content["classes"]) or len(set(ids)) != len(ids)):
        raise InputError(f"vocabulary {spec}: '{key}' needs one distinct id per class; correct the file")
    return ids


def _vocabulary(
    source: str,
    names: list[str],
    synonyms: list[list[str]],
    seen: tuple[bool, ...] | None = None,
    background_from: int | None = None,
) -> Vocabulary:
    """Build a vocabulary; errors and warnings name its source."""
    try:
        vocabulary = Vocabulary(
            tuple(names), tuple(tuple(phrases) for phrases in synonyms), seen, background_from=background_from
        )
    except InputError as error:
        raise InputError(f"vocabulary {source}: {error}") from error
    _warn_of_shared_phrases(source, vocabulary)
    return vocabulary


def _warn_of_shared_phrases(source: str, vocabulary: Vocabulary) -> None:
    """Warn of phrases that stand for two classes; which of the two a pixel gets is arbitrary."""
    owners: dict[str, list[str]] = {}
    for name, phrases in zip(vocabulary.names, vocabulary.synonyms, strict=True):
        for phrase in {" ".join(phrase.casefold().split()): None for phrase in phrases}:
            owners.setdefault(phrase, []).append(name)
    shared = [f"{phrase!r} in {' and '.join(map(repr, names))}" for phrase, names in owners.items() if len(names) > 1]
    if shared:
        more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
        _LOG.warning("vocabulary %s has the same phrase in two classes: %s%s", source, "; ".join(shared[:_SHOWN]), more)


def _read_json(spec: str) -> Mapping[str, Any]:
    """Read a built-in list or a .json file, and check its entries."""
    packaged = resources.files("ovseg.data") / "vocabularies" / f"{spec}.json"
    file = packaged if packaged.is_file() else Path(spec)
    if not file.is_file():
        raise InputError(f"{spec} does not exist; choose one of {', '.join(builtin_vocabularies())}, or type the names")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{spec} is not JSON ({error}); correct it or use a text file with one name per line"
        ) from error
    if not isinstance(content, dict) or not _is_list_of_texts(content.get("classes")):
        raise InputError(f"{spec} has no list of names under 'classes'; see the lists in ovseg/data/vocabularies")
    if fault := _fault(content):
        raise InputError(f"{spec}: {fault}; see the lists in ovseg/data/vocabularies")
    return content


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _fault(content: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the optional entries of a vocabulary, or None if nothing is."""
    synonyms = content.get("synonyms", [])
    if not isinstance(synonyms, list) or not all(map(_is_list_of_texts, synonyms)):
        return "'synonyms' is not a list with a list of phrases for each class"
    for name in ("seen_in_coco_stuff", "seen"):
        if not isinstance(content.get(name), list | None):
            return f"'{name}' is not a list with true or false for each class"
    ids = content.get("dataset_ids")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(i, int) for i in ids)):
        return "'dataset_ids' is not a list with an integer for each class"
    if not isinstance(content.get("background_from"), int | None):
        return "'background_from' is not an integer"
    return None


def _read_lines(path: Path) -> list[list[str]]:
    """Read the name and synonyms of each line of a text file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a text file with one class name per line, or type the names")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8; give one class name per line") from error
    entries = [[phrase.strip() for phrase in line.split(";")] for line in lines]
    for number, entry in enumerate(entries, start=1):
        if not all(entry):
            raise InputError(f"{path} line {number} has no name or an empty synonym; delete or complete it")
    return entries
