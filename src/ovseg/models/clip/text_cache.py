"""Text features on disk: in the folder `text` of the user's cache, see `ovseg.cache`.

Any file there may be deleted at any time; it is made anew when needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ovseg.cache import cache_folder
from ovseg.checkpoint import tensor_digest, tensor_digests
from ovseg.models.clip.adapter import CLIPAdapter

FORMAT = 2  # raise it when the same key would stand for other features


def cache_key(clip: CLIPAdapter, tokens: Tensor) -> str:
    """A hash of all that features depend on: the weights of the text tower as they are now, its config, and tokens.

    Image tower, mask prompts and temperature do not count: a CLIP whose image side was adapted has the same texts.

    Args:
        tokens: (K, templates, context); they stand for tokenizer, templates and names.
    """
    tensors = {
        name: tensor
        for name, tensor in clip.clip.state_dict().items()
        if not name.startswith(("visual.", "logit_scale", "logit_bias"))
    }
    config = {name: value for name, value in clip.config["model_cfg"].items() if name != "vision_cfg"}
    facts = [FORMAT, version("open_clip_torch"), config, str(clip.mean.device.type), clip.training, list(tokens.shape)]
    parts = tensor_digests({"tokens": tokens, **tensors})
    return hashlib.sha256(json.dumps([facts, parts], sort_keys=True).encode()).hexdigest()


def load_or_compute(key: str, compute: Callable[[], Tensor]) -> Tensor:
    """What the cache has under `key`, on the CPU; else what `compute` returns, kept for the next time.

    A file that is damaged is replaced; a cache that cannot be read or written is done without.
    """
    try:
        path = cache_folder("text") / f"{key}.safetensors"
    except RuntimeError:  # a user without a home
        return compute()
    features = _read(path)
    if features is None:
        features = compute()
        _write(path, features)
    return features


def _read(path: Path) -> Tensor | None:
    """The features, None where there is no sound file."""
    try:
        with safe_open(path, framework="pt") as file:
            features: Tensor = file.get_tensor("features")
            return features if (file.metadata() or {}).get("digest") == tensor_digest(features) else None
    except (OSError, SafetensorError):
        return None


def _write(path: Path, features: Tensor) -> None:
    features = features.cpu().contiguous()
    content = save({"features": features}, metadata={"digest": tensor_digest(features)})
    partial = path.with_suffix(f".{uuid4().hex}.tmp")  # of this writer alone, so that no reader sees half a file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        logging.getLogger(__name__).warning(
            "text features cannot be kept in %s (%s); set OVSEG_CACHE to a folder that can be written",
            path.parent,
            error.strerror,
        )
