"""Tiny models that open_clip can build by name, for all tests of models."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tests.models.clips import PLAIN


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register `tiny-clip`, with two tags, and `tiny-clip-deep` with open_clip; return the weights file of the tags."""
    weights = tmp_path / "tag.safetensors"
    for name in ("tiny-clip", "tiny-clip-deep"):
        deep = {"vision_cfg": {**PLAIN["vision_cfg"], "layers": 3}} if "deep" in name else {}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, PLAIN | deep)
    tags = {
        "quick": {"file": str(weights), "quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
        "far": {"hf_hub": "somebody/something/open_clip_model.safetensors"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", tags)
    torch.manual_seed(1)
    save_file(open_clip.create_model("tiny-clip").state_dict(), weights)
    return weights
