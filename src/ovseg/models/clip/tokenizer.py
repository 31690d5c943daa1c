"""Tokenizers of CLIP models, which are data: no code that a file or a hub brings with them is run."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import transformers
from huggingface_hub import snapshot_download
from open_clip.tokenizer import HFTokenizer

from ovseg.checkpoint import first_line
from ovseg.limits import read_gzip
from ovseg.models.clip.config import CONFIG, TEXT_TOWER, read_json
from ovseg.structures import InputError

MERGES = "merges.txt.gz"
TOKENIZER = "tokenizer_config.json"  # every tokenizer of transformers has one
SUFFIXES = (".json", ".txt", ".model")  # of the files that one is made of


def create_tokenizer(folder: Path | None, name: str, model: dict[str, Any]) -> Any:
    """The tokenizer of a model: reduced or of transformers where the folder has one, else by its config.

    Raises:
        InputError: it is on a hub out of reach, damaged, or would have to run code.
    """
    text = model["text_cfg"]
    context, options = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    try:
        if folder is not None and (folder / MERGES).is_file():
            read_gzip(folder / MERGES)  # which refuses what unpacks to too much
            return open_clip.SimpleTokenizer(str(folder / MERGES), context_length=context)
        repository = text.get("hf_tokenizer_name")
        if not repository:
            return open_clip.SimpleTokenizer(context_length=context, **options)
        where = folder or Path(snapshot_download(repository, allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
        with _alone(where, name) as data:
            mode = text.get("tokenizer_mode")
            return HFTokenizer(str(data), context, tokenizer_mode=mode, trust_remote_code=False, **options)
    except InputError:
        raise
    except Exception as error:  # of transformers, the hub and open_clip itself
        raise InputError(
            f"the tokenizer of CLIP {name} could not be loaded ({first_line(error)}); without a network, give as "
            f"`model` a folder that has {CONFIG}, the weights and the tokenizer's files"
        ) from error


def tokenizer_files(tokenizer: Any) -> dict[str, str] | None:
    """The files of a tokenizer of transformers by name, None of one of open_clip's own."""
    if not isinstance(tokenizer, HFTokenizer):
        return None
    with tempfile.TemporaryDirectory() as folder:  # transformers writes tokenizers to folders only
        tokenizer.save_pretrained(folder)
        # as text of a character a byte: a checkpoint keeps plain values
        return {
            file.name: file.read_bytes().decode("latin-1")
            for file in sorted(Path(folder).iterdir())
            if is_tokenizer_file(file.name)
        }


def is_tokenizer_file(name: str) -> bool:
    """Whether a tokenizer may have a file of that name."""
    return bool(re.fullmatch(r"\w[\w.-]*", name)) and name.endswith(SUFFIXES) and name not in (CONFIG, TEXT_TOWER)


@contextmanager
def _alone(folder: Path, model: str) -> Iterator[Path]:
    """A copy of a tokenizer's data: transformers would also look at what else is in the folder."""
    with tempfile.TemporaryDirectory() as copy:
        for file in folder.iterdir():
            if is_tokenizer_file(file.name) and file.is_file():
                shutil.copyfile(file, Path(copy) / file.name)
        for name in (TOKENIZER, "config.json"):
            if (file := Path(copy) / name).is_file():
                values = read_json(file)
                if name == TOKENIZER and "auto_map" in values:
                    raise InputError(
                        f"the {name} of {model} asks for code of its own (auto_map), which is never run; take that out"
                    )
                _check_class(values.get("tokenizer_class"), f"the {name} of {model}")
                if name == "config.json":  # of a whole model; the tokenizer needs these two
                    kept = {key: values[key] for key in ("model_type", "tokenizer_class") if key in values}
                    file.write_text(json.dumps(kept), encoding="utf-8")
        yield Path(copy)


def _check_class(name: Any, source: str) -> None:
    """Refuse what transformers has by that name and is no tokenizer; a name that it does not have is not followed."""
    bare = re.sub("(Fast)+$", "", str(name))  # transformers tries a name with and without it
    for known in (str(name), bare, f"{bare}Fast"):
        found = getattr(transformers, known, None)
        if found is None or getattr(found, "_backends", None):  # a stand-in, which says what has to be installed for it
            continue
        if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)):
            raise InputError(f"{source} has the tokenizer_class {name!r}, which is no tokenizer; correct it")
