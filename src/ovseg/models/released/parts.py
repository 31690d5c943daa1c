"""The released OVSeg, and CLIPs that others fine-tuned, as parts of a segmenter of ours."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ovseg.checkpoint import check_and_load, read_state, under
from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.clip.config import CONFIG
from ovseg.models.clip.files import NO_WEIGHTS
from ovseg.models.proposals.queries import MaskProposer
from ovseg.models.released.reading import RELEASE_DEFAULTS, ReleaseSettings, read_released
from ovseg.structures import InputError

LICENCE = "The weights that the authors of OVSeg released are for non-commercial use (CC BY-NC 4.0)."

# of HF's Swin: a table that follows from the window, and a norm that no output passes
OURS_ALONE = re.compile(r"relative_position_index$|encoder\.model\.layernorm\.")


class ReleasedParts(NamedTuple):
    """What a released checkpoint makes."""

    proposer: MaskProposer
    clip: CLIPAdapter
    settings: dict[str, Any]  # of an OpenVocabSegmenter
    used: int  # number of parameters
    unused: list[str]  # keys of the file that carry no weight


def released_parts(path: str | Path, settings: ReleaseSettings = RELEASE_DEFAULTS) -> ReleasedParts:
    """Build the networks of a released `.pth`, their architecture read off the shapes of the weights.

    Raises:
        InputError: the file is missing, damaged, or of another architecture.
    """
    released = read_released(path, settings)
    depth, positions = released.prompt_shape or (0, 0)
    with tempfile.TemporaryDirectory() as folder:  # open_clip builds models from files only
        (Path(folder) / CONFIG).write_text(json.dumps({"model_cfg": released.clip}), encoding="utf-8")
        clip = CLIPAdapter(folder, prompt_depth=depth or None, shared_prompt=positions == 1)
    proposer = MaskProposer(**released.proposer)
    swin = released.proposer["model"]["backbone_config"]["model_type"] == "swin"
    chosen = {
        "mask_threshold": (0.4 if swin else 0.5) if settings.mask_threshold is None else settings.mask_threshold,
        "ensemble_weight": settings.ensemble_weight,
        "fill": settings.fill,
        "resize": settings.resize or ((640, 2560) if swin else (512, 2048)),
    }
    own = {key: value for key, value in proposer.state_dict().items() if OURS_ALONE.search(key)}
    check_and_load(proposer, {**own, **under(released.state, "proposer.")}, path)
    check_and_load(clip, under(released.state, "clip."), path)
    clip.trained = True
    return ReleasedParts(proposer, clip, chosen, sum(each.numel() for each in released.state.values()), released.unused)


def load_clip(clip: CLIPAdapter, path: str | Path) -> int:
    """Put the weights of a CLIP that open_clip fine-tuned, or of its mask prompts alone, into a CLIP of ours.

    Args:
        path: a training checkpoint (its `state_dict`, also of DistributedDataParallel) or a bare state dict, in
            open_clip's or OpenAI's names; `visual.mask_embedding` are mask prompts, (depth, L or 1, C).

    Returns:
        The number of parameters in the file.

    Raises:
        InputError: the file is missing, damaged, or of another architecture; `clip` is unchanged.
    """
    content = read_state(path)
    state = content.get("state_dict", content.get("model", content))  # of open_clip, of a released OVSeg, bare
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict of a CLIP; give a training checkpoint of open_clip")
    state = under(state, "clip_adapter.clip_model.") or state
    weights = {re.sub(r"^((_orig_mod|module)\.)+", "", key): value for key, value in state.items()}
    weights = {key: value for key, value in weights.items() if key not in NO_WEIGHTS}
    prompts = weights.pop("visual.mask_embedding", weights.pop("mask_embedding", None))
    if prompts is None and not weights.keys() - {"logit_scale"}:
        raise InputError(f"{path} holds no weights of a CLIP; give a training checkpoint of open_clip")
    if any(key.startswith("clip.clip.") for key in weights):
        raise InputError(f"{path} is a checkpoint of `ovseg fit`; join it with proposals by `ovseg bundle`")
    towers, visual = clip.clip, clip.visual
    renamed = {re.sub(r"^visual\.", "visual.visual.", key): value for key, value in weights.items()}
    own = {key: value for key, value in towers.state_dict().items() if not key.startswith("visual.prompt.")}
    if not weights.keys() - {"logit_scale"}:  # prompts alone: CLIP stays as it is
        renamed = {**own, **renamed}
    before = visual.prompt
    if prompts is not None:
        if prompts.ndim != 3:
            raise InputError(f"visual.mask_embedding in {path} is of shape {tuple(prompts.shape)}, not (depth, L, C)")
        visual.add_prompt(prompts.shape[0], prompts.shape[1] == 1)
        renamed["visual.prompt.mask_embedding"] = prompts
    else:
        visual.prompt = None
    try:
        check_and_load(towers, renamed, path)
    except InputError:
        visual.prompt = before
        raise
    return sum(value.numel() for value in [*weights.values(), *([] if prompts is None else [prompts])])
