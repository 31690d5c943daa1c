"""Read checkpoints of the released OVSeg: rename their keys and infer the architecture from shapes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ovseg.checkpoint.files import read_state, under
from ovseg.models.released.names import JOINT, PARTS, RESNET, WEIGHTLESS
from ovseg.structures import InputError

State = dict[str, Tensor]


class ReleaseSettings(NamedTuple):
    """Settings that cannot be inferred from the shapes of the weights; the defaults are the release's.

    The release evaluates its Swin-B models with `mask_threshold` 0.4 and `resize` (640, 2560), and R101c with 0.5 and
    (512, 2048). None chooses by backbone.
    """

    decoder_heads: int = 8
    multi_grid: tuple[int, ...] = (1, 2, 4)
    ensemble_weight: float = 0.7  # ADE20K; 0.6 for PASCAL Context, 0.45 for VOC
    mask_threshold: float | None = None
    fill: Literal["mean", "zero"] = "mean"
    resize: tuple[int, int] | None = None


RELEASE_DEFAULTS = ReleaseSettings()


class Released(NamedTuple):
    """A released checkpoint under our key names."""

    proposer: dict[str, Any]  # arguments of a MaskProposer
    clip: dict[str, Any]  # open_clip's model_cfg
    prompt_shape: tuple[int, int] | None  # depth, positions
    state: State  # with the keys of an OpenVocabSegmenter
    unused: list[str]  # keys in the file that hold no weights


def read_released(path: str | Path, settings: ReleaseSettings = RELEASE_DEFAULTS) -> Released:
    """Read a checkpoint released by the authors of OVSeg: a dict whose `model` is the state dict.

    Raises:
        InputError: the file is missing, damaged, or not a released checkpoint.
    """
    if not Path(path).exists():
        raise InputError(f"{path} does not exist; give the path of the .pth file that you downloaded")
    content = read_state(path)
    weights: State = content.get("model", content.get("state_dict", content))
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items() if key != "iteration"
    ):
        raise InputError(f"{path} is not a released OVSeg checkpoint: it holds no state dict; fetch it again")
    needed = ("backbone.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.", "clip_adapter.clip_model.")
    if missing := [prefix for prefix in needed if not any(key.startswith(prefix) for key in weights)]:
        hint = "to put a CLIP into a segmenter, run `ovseg import SEGMENTER --clip-only FILE --out FOLDER`"
        raise InputError(f"{path} is not a released OVSeg checkpoint: it has no weights named {missing[0]}*; {hint}")
    try:
        proposer, clip = _proposer(weights, settings), _clip(under(weights, "clip_adapter.clip_model."))
        state, unused = _rename(weights)
    except InputError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{path} lacks keys of a released OVSeg checkpoint ({error}); fetch it again") from error
    if unknown := [key for key in unused if not WEIGHTLESS.match(key)]:
        raise InputError(
            f"{path} holds weights that a released OVSeg does not have: {', '.join(unknown[:3])}; remove them"
        )
    prompt = state.get("clip.clip.visual.prompt.mask_embedding")
    return Released(proposer, clip, None if prompt is None else (prompt.shape[0], prompt.shape[1]), state, unused)


def _rename(weights: State) -> tuple[State, list[str]]:
    """Return the weights under our names, joint projections split, and the keys that were not used."""
    state: State = {}
    unused = []
    resnet = "backbone.stem.conv1.weight" in weights
    for key, value in weights.items():
        part = next((part for part in PARTS if key.startswith(part[0])), None)
        if part is None or WEIGHTLESS.match(key):
            unused.append(key)
            continue
        prefix, new_prefix, replacements = part
        name = key.removeprefix(prefix)
        for pattern, replacement in RESNET if prefix == "backbone." and resnet else replacements:
            name = re.sub(pattern, replacement, name)
        joint = next((joint for joint in JOINT if replacements and re.search(joint[0], name)), None)
        if joint is None:
            state[new_prefix + name] = value
        else:
            pattern, replacement, projections = joint
            for projection, rows in zip(projections, value.chunk(3), strict=True):
                state[new_prefix + re.sub(pattern, replacement.format(projection), name)] = rows
    return state, unused


def _proposer(weights: State, settings: ReleaseSettings) -> dict[str, Any]:
    """Infer the arguments of a `MaskProposer`."""
    head = under(weights, "sem_seg_head.predictor.")
    queries, hidden = head["query_embed.weight"].shape
    if settings.decoder_heads < 1 or hidden % settings.decoder_heads:
        raise InputError(f"decoder_heads is {settings.decoder_heads}; set a divisor of the decoder's width, {hidden}")
    decoder = {
        "model_type": "detr",
        "d_model": hidden,
        "decoder_layers": _count(head, r"transformer\.decoder\.layers\.(\d+)\."),
        "decoder_attention_heads": settings.decoder_heads,
        "decoder_ffn_dim": head["transformer.decoder.layers.0.linear1.weight"].shape[0],
        "num_queries": queries,
        **dict.fromkeys(
            ("dropout", "attention_dropout", "activation_dropout"), 0.1
        ),  # as in DETR, for further training
    }
    pixel = under(weights, "sem_seg_head.pixel_decoder.")
    backbone = under(weights, "backbone.")
    model = {
        "model_type": "maskformer",
        "backbone_config": _resnet(backbone, settings) if "stem.conv1.weight" in backbone else _swin(backbone),
        "decoder_config": decoder,
        "fpn_feature_size": pixel["layer_1.weight"].shape[0],
        "mask_feature_size": pixel["mask_features.weight"].shape[0],
    }
    last = head["class_embed.layers.1.weight"]
    return {"model": model, "text_dim": last.shape[0], "head_width": last.shape[1]}


def _swin(weights: State) -> dict[str, Any]:
    """Infer the config of a Swin backbone."""
    stages = range(_count(weights, r"layers\.(\d+)\."))
    tables = [weights[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in stages]
    return {
        "model_type": "swin",
        "image_size": 384,
        "embed_dim": weights["patch_embed.proj.weight"].shape[0],
        "patch_size": weights["patch_embed.proj.weight"].shape[-1],
        "depths": [_count(weights, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in stages],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": (round(tables[0].shape[0] ** 0.5) + 1) // 2,  # tables have (2 · window − 1)² rows
        "drop_path_rate": 0.3,
        "out_features": [f"stage{stage + 1}" for stage in stages],
    }


def _resnet(weights: State, settings: ReleaseSettings) -> dict[str, Any]:
    """Infer the config of a `DeepLabResNet`."""
    stages = range(2, 6)
    if len(settings.multi_grid) != 3:
        raise InputError(f"multi_grid is {settings.multi_grid}; set the dilations of 3 blocks, such as 1, 2, 4")
    return {
        "model_type": "deeplab_resnet",
        "depths": [_count(weights, rf"res{stage}\.(\d+)\.") for stage in stages],
        "hidden_sizes": [weights[f"res{stage}.0.conv3.weight"].shape[0] for stage in stages],
        "stem_size": weights["stem.conv3.weight"].shape[0],
        "multi_grid": list(settings.multi_grid),
    }


def _clip(weights: State) -> dict[str, Any]:
    """Infer open_clip's `model_cfg` from weights with OpenAI's key names, whose attention heads are 64 wide."""
    width, _, _, patch = weights["visual.conv1.weight"].shape
    grid = round((weights["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    text_width, embed_dim = weights["text_projection"].shape
    return {
        "embed_dim": embed_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * patch,
            "layers": _count(weights, r"visual\.transformer\.resblocks\.(\d+)\."),
            "width": width,
            "head_width": 64,
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": weights["positional_embedding"].shape[0],
            "vocab_size": weights["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_width // 64,
            "layers": _count(weights, r"transformer\.resblocks\.(\d+)\."),
        },
    }


def _count(weights: State, pattern: str) -> int:
    """Count the distinct numbers that the pattern's group matches at the start of keys."""
    numbers = {int(match[1]) for key in weights if (match := re.match(pattern, key))}
    if not numbers:
        raise KeyError(pattern)
    return len(numbers)
