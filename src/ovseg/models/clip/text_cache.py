"""Cache text features on disk, in the folder `text` of the user's cache (see `ovseg.cache`).

Its files may be deleted at any time; they are recomputed when needed.
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

FORMAT = 2  # increment it when the same key would refer to different features


def cache_key(clip: CLIPAdapter, tokens: Tensor) -> str:
    """Hash everything that text features depend on: the current weights of the text tower, its config and the tokens.

    Image tower, mask prompts and logit scale are excluded, so adapting the image side of a CLIP keeps the key.

    Args:
        tokens: (K, templates, context), which represent the tokenizer, the templates and the names.
    """
    tensors = {
        name: tensor
        for name, tensor in clip.clip.state_dict().items()
        if not name.startswith(("visual.", "logit_scale", "logit_bias"))
    }
    config = {name: value for name, value in clip.config["model_cfg"].items() if name != "vision_cfg"}
    settings = [
        FORMAT,
        version("open_clip_torch"),
        config,
        str(clip.mean.device.type),
        clip.training,
        list(tokens.shape),
    ]
    parts = tensor_digests({"tokens": tokens, **tensors})
    return hashlib.sha256(json.dumps([settings, parts], sort_keys=True).encode()).hexdigest()


def load_or_compute(key: str, compute: Callable[[], Tensor]) -> Tensor:
    """Load features from the cache; on a miss, compute and store them.

    A damaged file is replaced. If the cache cannot be read or written, features are computed every time.

    Args:
        key: see `cache_key`.
        compute: returns the features.

    Returns:
        The features, on the CPU if they were loaded.
    """
    try:
        path = cache_folder("text") / f"{key}.safetensors"
    except RuntimeError:  # the user has no home directory
        return compute()
    features = _read(path)
    if features is None:
        features = compute()
        _write(path, features)
    return features


def _read(path: Path) -> Tensor | None:
    """Return the features in a file, None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            features: Tensor = file.get_tensor("features")
            return features if (file.metadata() or {}).get("digest") == tensor_digest(features) else None
    except (OSError, SafetensorError):
        return None


def _write(path: Path, features: Tensor) -> None:
    features = features.cpu().contiguous()
    content = save({"features": features}, metadata={"digest": tensor_digest(features)})
    partial = path.with_suffix(f".{uuid4().hex}.tmp")  # unique to this writer, so no reader sees a partial file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        logging.getLogger(__name__).warning(
            "text features cannot be cached in %s (%s); set OVSEG_CACHE to a writable folder",
            path.parent,
            error.strerror,
        )
