"""The released OVSeg, as a segmenter of ours."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from ovseg.checkpoint import UNTOLD, Untold, check_and_load, read_official
from ovseg.models.clip_adapter import CONFIG, CLIPAdapter
from ovseg.models.proposals import MaskProposer
from ovseg.models.segmenter import OpenVocabSegmenter

LICENCE = "The weights that the authors of OVSeg released are for non-commercial use (CC BY-NC 4.0)."

# of HF's Swin: a table that follows from the window, and a norm that no output passes
OURS_ALONE = re.compile(r"relative_position_index$|encoder\.model\.layernorm\.")


def import_official(path: str | Path, untold: Untold = UNTOLD) -> OpenVocabSegmenter:
    """Build a segmenter from a released `.pth` as it is.

    The architecture is read off the shapes of the weights; `untold` says what they do not tell.

    Raises:
        InputError: the file is missing, damaged, or of another architecture; nothing is half loaded.
    """
    official = read_official(path, untold)
    depth, positions = official.prompt_shape or (0, 0)
    with tempfile.TemporaryDirectory() as folder:  # open_clip builds models from files only
        (Path(folder) / CONFIG).write_text(json.dumps({"model_cfg": official.clip}), encoding="utf-8")
        clip = CLIPAdapter(folder, prompt_depth=depth or None, shared_prompt=positions == 1)
    swin = official.proposer["model"]["backbone_config"]["model_type"] == "swin"
    segmenter = OpenVocabSegmenter(
        MaskProposer(**official.proposer),
        clip,
        mask_threshold=untold.mask_threshold or (0.4 if swin else 0.5),
        ensemble_weight=untold.ensemble_weight,
        fill=untold.fill,
        resize=untold.resize or ((640, 2560) if swin else (512, 2048)),
    )
    own = {key: value for key, value in segmenter.state_dict().items() if OURS_ALONE.search(key)}
    check_and_load(segmenter, {**own, **official.state}, path)
    return segmenter.eval()
