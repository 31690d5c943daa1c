"""Load tokenizers of CLIP models as data: code that comes with them, in files or from a hub, is never run."""

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
TOKENIZER = "tokenizer_config.json"  # every tokenizer from transformers has this file
SUFFIXES = (".json", ".txt", ".model")  # of a tokenizer's files


def create_tokenizer(folder: Path | None, name: str, model: dict[str, Any]) -> Any:
    """Create the tokenizer of a model, from the files in its folder if there are any, otherwise from its config.

    Args:
        folder: may hold reduced merges, or a tokenizer from transformers.
        name: name of the model, for error messages.
        model: open_clip's `model_cfg`.

    Raises:
        InputError: the tokenizer cannot be downloaded, is damaged, or asks for code to be run.
    """
    text = model["text_cfg"]
    context, options = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    try:
        if folder is not None and (folder / MERGES).is_file():
            read_gzip(folder / MERGES)  # refuses files that unpack to too much
            return open_clip.SimpleTokenizer(str(folder / MERGES), context_length=context)
        repository = text.get("hf_tokenizer_name")
        if not repository:
            return open_clip.SimpleTokenizer(context_length=context, **options)
        source = folder or Path(snapshot_download(repository, allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
        with _copy_of_tokenizer(source, name) as copy:
            mode = text.get("tokenizer_mode")
            return HFTokenizer(str(copy), context, tokenizer_mode=mode, trust_remote_code=False, **options)
    except InputError:
        raise
    except Exception as error:  # transformers, the hub and open_clip raise many kinds
        raise InputError(
            f"the tokenizer of CLIP {name} could not be loaded ({first_line(error)}); if this machine is offline, set "
            f"`model` to a folder with {CONFIG}, the weights and the tokenizer's files"
        ) from error


def tokenizer_files(tokenizer: Any) -> dict[str, str] | None:
    """Return the files of a tokenizer from transformers, name → content; None for open_clip's own tokenizer."""
    if not isinstance(tokenizer, HFTokenizer):
        return None
    with tempfile.TemporaryDirectory() as folder:  # transformers saves tokenizers to folders only
        tokenizer.save_pretrained(folder)
        # checkpoints hold plain values, so bytes are stored as text, one character per byte
        return {
            file.name: file.read_bytes().decode("latin-1")
            for file in sorted(Path(folder).iterdir())
            if is_tokenizer_file(file.name)
        }


def is_tokenizer_file(name: str) -> bool:
    """Whether this can be the name of a tokenizer's file."""
    return bool(re.fullmatch(r"\w[\w.-]*", name)) and name.endswith(SUFFIXES) and name not in (CONFIG, TEXT_TOWER)


@contextmanager
def _copy_of_tokenizer(folder: Path, model: str) -> Iterator[Path]:
    """Yield a temporary copy of a tokenizer's files, because transformers would also read other files in the folder.

    Raises:
        InputError: the tokenizer asks for code to be run.
    """
    with tempfile.TemporaryDirectory() as copy:
        for file in folder.iterdir():
            if is_tokenizer_file(file.name) and file.is_file():
                shutil.copyfile(file, Path(copy) / file.name)
        for name in (TOKENIZER, "config.json"):
            if (file := Path(copy) / name).is_file():
                values = read_json(file)
                if name == TOKENIZER and "auto_map" in values:
                    raise InputError(
                        f"the {name} of {model} asks to run code (auto_map), which ovseg never does; remove auto_map"
                    )
                _check_class(values.get("tokenizer_class"), f"the {name} of {model}")
                if name == "config.json":  # describes a whole model, of which the tokenizer needs these two values
                    needed = {key: values[key] for key in ("model_type", "tokenizer_class") if key in values}
                    file.write_text(json.dumps(needed), encoding="utf-8")
        yield Path(copy)


def _check_class(name: Any, source: str) -> None:
    """Refuse the name of an object in transformers that is not a tokenizer; transformers ignores unknown names."""
    bare = re.sub("(Fast)+$", "", str(name))  # transformers tries the name with and without this suffix
    for candidate in (str(name), bare, f"{bare}Fast"):
        tokenizer_class = getattr(transformers, candidate, None)
        if tokenizer_class is None or getattr(tokenizer_class, "_backends", None):  # placeholder: package not installed
            continue
        if not (
            isinstance(tokenizer_class, type) and issubclass(tokenizer_class, transformers.PreTrainedTokenizerBase)
        ):
            raise InputError(f"{source} has the tokenizer_class {name!r}, which is not a tokenizer; correct it")
