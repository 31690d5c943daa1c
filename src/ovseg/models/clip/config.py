"""Validate `open_clip_config.json`: it may describe the shape of a CLIP, but not what to download or run.

Three of its values reach beyond the architecture: `timm_model_name` and `hf_model_name` may name a hub repository, and
open_clip passes `tokenizer_kwargs` to transformers unchecked.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import timm
from huggingface_hub import hf_hub_download

from ovseg.checkpoint import first_line
from ovseg.models.network_values import TEXT_TOWERS, shape_of
from ovseg.structures import InputError

CONFIG = "open_clip_config.json"  # the file name that open_clip looks for
TEXT_TOWER = "text_tower.json"  # the config of a text tower from transformers

_BOTH = """width layers mlp_ratio ls_init_value pool_type final_ln_after_pool output_tokens act_kwargs norm_kwargs
    block_type qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc"""
_TEXT = """context_length vocab_size heads embed_cls pad_id eos_id no_causal_mask proj_bias proj_type tokenizer_mode
    tokenizer_kwargs hf_tokenizer_name hf_model_name hf_model_pretrained hf_proj_type hf_pooler_type"""
_VISION = """head_width patch_size image_size patch_dropout attentional_pool attn_pooler_queries attn_pooler_heads
    no_ln_pre pos_embed_type timm_model_name timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop
    timm_drop_path"""
ALLOWED = {
    "model_cfg": """embed_dim vision_cfg text_cfg multimodal_cfg quick_gelu custom_text init_logit_scale init_logit_bias
        nonscalar_logit_scale""",
    "vision_cfg": f"{_BOTH} {_VISION}",
    "text_cfg": f"{_BOTH} {_TEXT}",
    "multimodal_cfg": f"{_BOTH} context_length vocab_size heads dim_head n_queries attn_pooler_heads",
    "tokenizer_kwargs": "clean strip_sep_token reduction_mask language",
}


def model_config(folder: Path | None, name: str) -> dict[str, Any]:
    """Return open_clip's `model_cfg` for a folder, a hub repository or a model name, safe to build from.

    Raises:
        InputError: the config cannot be read, or sets values that do not describe the model's shape.
    """
    if folder is None:
        model: dict[str, Any] | None = open_clip.get_model_config(name)
        if model is None:
            raise ValueError(f"Model config for {name!r} not found")
    else:
        model = read_json(folder / CONFIG).get("model_cfg", {})
    if folder is not None or name.startswith("hf-hub:"):
        check(model, "model_cfg", f"the {CONFIG} of {name}")
    return model


def read_json(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}); fetch it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} holds a {type(values).__name__}, not a JSON object; fetch it again")
    return values


def check(values: Any, part: str, source: str) -> None:
    """Refuse values that do not describe the shape of a CLIP.

    Args:
        part: the key of `ALLOWED` whose values these are.
        source: where they come from, for the error message.

    Raises:
        InputError: `values` is not a dict, or has a key that is not in `ALLOWED`, or names an unknown timm model.
    """
    if not isinstance(values, dict):
        raise InputError(f"{source} has no {part}; fetch it again")
    if unknown := sorted(str(key) for key in values.keys() - set(ALLOWED[part].split())):
        raise InputError(f"{source} sets {unknown[0]!r} in {part}, which is not part of a CLIP's shape; remove it")
    for inner in ALLOWED:
        needed = part == "model_cfg" and inner in ("vision_cfg", "text_cfg")
        if needed or values.get(inner) is not None:
            check(values.get(inner), inner, source)
    trunk = values.get("timm_model_name")
    if trunk is not None and not (re.fullmatch(r"[\w.]+", str(trunk)) and timm.is_model(str(trunk))):
        raise InputError(f"{source} names the image tower {trunk!r}, which timm does not have; use a timm model name")


@contextmanager
def towers(folder: Path | None, name: str, model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield both towers' configs such that open_clip builds them with random weights, without contacting a hub.

    Raises:
        InputError: the folder names a text tower from transformers but has no config for it.
    """
    vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
    vision["timm_model_pretrained"] = text["hf_model_pretrained"] = False
    repository = text.get("hf_model_name")
    if not repository:
        yield {"vision_cfg": vision, "text_cfg": text}
        return
    file = None if folder is None else folder / TEXT_TOWER
    if file is not None and not file.is_file():
        raise InputError(
            f"{name} names the text tower {repository!r}, and files may not request downloads; copy that model's "
            f"config.json into the folder as {TEXT_TOWER}"
        )
    values = read_json(file or Path(hf_hub_download(repository, "config.json")))
    shape = shape_of(values, f"the text tower of {name}", TEXT_TOWERS, strict=False)
    with tempfile.TemporaryDirectory() as config_folder:  # transformers reads configs from folders only
        (Path(config_folder) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        yield {"vision_cfg": vision, "text_cfg": text | {"hf_model_name": config_folder}}


def text_tower(clip: Any) -> dict[str, Any] | None:
    """Return the config of a text tower from transformers; None for open_clip's built-in text tower."""
    config = getattr(getattr(clip, "text", None), "config", None)
    return None if config is None else shape_of(config.to_dict(), "this text tower", TEXT_TOWERS, strict=False)
