"""Build the networks of a released OVSeg, and load CLIPs that were fine-tuned elsewhere."""

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
from ovseg.models.regions.crops import CropEncoder
from ovseg.models.released.reading import RELEASE_DEFAULTS, ReleaseSettings, read_released
from ovseg.structures import InputError

LICENCE = "The weights that the authors of OVSeg released are for non-commercial use (CC BY-NC 4.0)."

# weights of HF's Swin that the release lacks: a table determined by the window size, and a norm that no output passes
NOT_IN_RELEASE = re.compile(r"relative_position_index$|encoder\.model\.layernorm\.")


class ReleasedParts(NamedTuple):
    """The parts of a segmenter built from a released checkpoint."""

    proposer: MaskProposer
    region_encoder: CropEncoder
    settings: dict[str, Any]  # arguments of an OpenVocabSegmenter
    used: int  # number of parameters loaded
    unused: list[str]  # keys in the file that hold no weights


def released_parts(path: str | Path, settings: ReleaseSettings = RELEASE_DEFAULTS) -> ReleasedParts:
    """Build the networks of a released `.pth`, inferring their architecture from the shapes of the weights.

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
    segmenter_settings = {
        "mask_threshold": (0.4 if swin else 0.5) if settings.mask_threshold is None else settings.mask_threshold,
        "ensemble_weight": settings.ensemble_weight,
        "resize": settings.resize or ((640, 2560) if swin else (512, 2048)),
    }
    initial = {key: value for key, value in proposer.state_dict().items() if NOT_IN_RELEASE.search(key)}
    check_and_load(proposer, {**initial, **under(released.state, "proposer.")}, path)
    check_and_load(clip, under(released.state, "clip."), path)
    clip.trained = True
    used = sum(weight.numel() for weight in released.state.values())
    return ReleasedParts(proposer, CropEncoder(clip, settings.fill), segmenter_settings, used, released.unused)


def load_clip(clip: CLIPAdapter, path: str | Path) -> int:
    """Load a CLIP fine-tuned with open_clip, or only its mask prompts, into an existing CLIP.

    Args:
        clip: the CLIP whose weights are replaced.
        path: a training checkpoint with a `state_dict`, or a bare state dict, under the key names of open_clip or
            OpenAI (prefixes of DistributedDataParallel and `torch.compile` are removed). The key
            `visual.mask_embedding` holds mask prompts, (depth, L or 1, C).

    Returns:
        The number of parameters in the file.

    Raises:
        InputError: the file is missing, damaged, or of another architecture; `clip` is unchanged.
    """
    if not Path(path).exists():
        raise InputError(f"{path} does not exist; give the path of an open_clip checkpoint, such as epoch_5.pt")
    content = read_state(path)
    state = content.get("state_dict", content.get("model", content))  # open_clip's, a released OVSeg's, or a bare one
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict of a CLIP; use a training checkpoint of open_clip")
    state = under(state, "clip_adapter.clip_model.") or state
    weights = {re.sub(r"^((_orig_mod|module)\.)+", "", key): value for key, value in state.items()}
    weights = {key: value for key, value in weights.items() if key not in NO_WEIGHTS}
    prompts = weights.pop("visual.mask_embedding", weights.pop("mask_embedding", None))
    if prompts is None and not weights.keys() - {"logit_scale"}:
        raise InputError(f"{path} holds no weights of a CLIP; use a training checkpoint of open_clip")
    if any(key.startswith("clip.clip.") for key in weights):
        raise InputError(f"{path} is a checkpoint of `ovseg fit`; combine it with proposals using `ovseg bundle`")
    towers, visual = clip.clip, clip.visual
    renamed = {re.sub(r"^visual\.", "visual.visual.", key): value for key, value in weights.items()}
    current = {key: value for key, value in towers.state_dict().items() if not key.startswith("visual.prompt.")}
    if not weights.keys() - {"logit_scale"}:  # the file has only prompts, so both towers stay unchanged
        renamed = {**current, **renamed}
    previous_prompt = visual.prompt
    if prompts is not None:
        if prompts.ndim != 3:
            raise InputError(
                f"visual.mask_embedding in {path} has shape {tuple(prompts.shape)}, not (depth, L, C); save it again"
            )
        visual.add_prompt(prompts.shape[0], prompts.shape[1] == 1)
        renamed["visual.prompt.mask_embedding"] = prompts
    else:
        visual.prompt = None
    try:
        check_and_load(towers, renamed, path)
    except InputError:
        visual.prompt = previous_prompt
        raise
    return sum(value.numel() for value in [*weights.values(), *([] if prompts is None else [prompts])])
