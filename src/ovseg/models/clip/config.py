"""What `open_clip_config.json` may say of a CLIP: its shape, and never what to fetch or to run.

open_clip follows three of its values beyond a model: `timm_model_name` and `hf_model_name` may name a repository, and
`tokenizer_kwargs` reach transformers as they are.
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

CONFIG = "open_clip_config.json"  # a name that open_clip knows
TEXT_TOWER = "text_tower.json"  # the config of a text tower of transformers'

_BOTH = """width layers mlp_ratio ls_init_value pool_type final_ln_after_pool output_tokens act_kwargs norm_kwargs
    block_type qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc"""
_TEXT = """context_length vocab_size heads embed_cls pad_id eos_id no_causal_mask proj_bias proj_type tokenizer_mode
    tokenizer_kwargs hf_tokenizer_name hf_model_name hf_model_pretrained hf_proj_type hf_pooler_type"""
_VISION = """head_width patch_size image_size patch_dropout attentional_pool attn_pooler_queries attn_pooler_heads
    no_ln_pre pos_embed_type timm_model_name timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop
    timm_drop_path"""
KNOWN = {
    "model_cfg": """embed_dim vision_cfg text_cfg multimodal_cfg quick_gelu custom_text init_logit_scale init_logit_bias
        nonscalar_logit_scale""",
    "vision_cfg": f"{_BOTH} {_VISION}",
    "text_cfg": f"{_BOTH} {_TEXT}",
    "multimodal_cfg": f"{_BOTH} context_length vocab_size heads dim_head n_queries attn_pooler_heads",
    "tokenizer_kwargs": "clean strip_sep_token reduction_mask language",
}


def model_config(folder: Path | None, name: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a folder, a repository or a name, of which a CLIP can be built without any risk.

    Raises:
        InputError: it cannot be read, or says more than how the model is shaped.
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
    """The JSON object in a file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}); fetch it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{file} holds a {type(values).__name__}, not a JSON object; fetch it again")
    return values


def check(values: Any, part: str, source: str) -> None:
    """Refuse what shapes no CLIP.

    Args:
        part: which of `KNOWN` the values are.
        source: where they are from, for the refusal.
    """
    if not isinstance(values, dict):
        raise InputError(f"{source} has no {part}; fetch it again")
    if unknown := sorted(str(key) for key in values.keys() - set(KNOWN[part].split())):
        raise InputError(f"{source} sets {unknown[0]!r} in {part}, which does not shape a CLIP; take it out")
    for inner in KNOWN:
        needed = part == "model_cfg" and inner in ("vision_cfg", "text_cfg")
        if needed or values.get(inner) is not None:
            check(values.get(inner), inner, source)
    trunk = values.get("timm_model_name")
    if trunk is not None and not (re.fullmatch(r"[\w.]+", str(trunk)) and timm.is_model(str(trunk))):
        raise InputError(f"{source} asks for the image tower {trunk!r}, which is no name of timm's; give one of those")


@contextmanager
def towers(folder: Path | None, name: str, model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configs of both towers, for open_clip to build without asking any hub; what is made of them has to be random.

    Raises:
        InputError: a folder does not describe its text tower of transformers'.
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
            f"{name} has the text tower {repository!r}, which no file may ask of a hub; put the config.json of that "
            f"model into the folder as {TEXT_TOWER}"
        )
    values = read_json(file or Path(hf_hub_download(repository, "config.json")))
    shape = shape_of(values, f"the text tower of {name}", TEXT_TOWERS, strict=False)
    with tempfile.TemporaryDirectory() as alone:  # transformers reads configs from folders only
        (Path(alone) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        yield {"vision_cfg": vision, "text_cfg": text | {"hf_model_name": alone}}


def text_tower(clip: Any) -> dict[str, Any] | None:
    """The shape of a text tower of transformers', None of one of open_clip's own."""
    config = getattr(getattr(clip, "text", None), "config", None)
    return None if config is None else shape_of(config.to_dict(), "this text tower", TEXT_TOWERS, strict=False)
