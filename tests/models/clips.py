"""Compare CLIPs: with each other, and with plain open_clip."""

from __future__ import annotations

from typing import Any

import torch

from ovseg.models import CLIPAdapter
from tests import tiny

PLAIN = {**tiny.CLIP, "text_cfg": {**tiny.CLIP["text_cfg"], "vocab_size": 49408, "context_length": 12}}
REGIONS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXTS = ["a cat", "two red sofas", "potted plants, and a word the merges do not know: zyzzyva"]


@torch.no_grad()
def same_features(one: CLIPAdapter, other: CLIPAdapter) -> None:
    """Check that tokens, normalisation and features of two CLIPs are identical."""
    masks = torch.zeros(3, 32, 32)
    masks[:, :9, :20] = 1
    assert torch.equal(one.eval().encode_regions(REGIONS, masks), other.eval().encode_regions(REGIONS, masks))
    assert torch.equal(one.tokenizer(TEXTS), other.tokenizer(TEXTS))
    assert torch.equal(one.encode_text(TEXTS), other.encode_text(TEXTS))
    assert torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std)
    assert torch.equal(one.logit_scale, other.logit_scale)


@torch.no_grad()
def equals_open_clip(ours: CLIPAdapter, plain: Any, tokenizer: Any) -> None:
    """Compare features with plain open_clip, which normalises images by its own preprocess config."""
    mean, std = (torch.tensor(plain.visual.preprocess_cfg[key])[:, None, None] for key in ("mean", "std"))
    features = plain.eval().encode_image((REGIONS - mean) / std, normalize=True)
    torch.testing.assert_close(ours.eval().encode_regions(REGIONS), features)
    torch.testing.assert_close(ours.encode_text(TEXTS), plain.encode_text(tokenizer(TEXTS), normalize=True))
