"""Losses: region-text contrast, and mask classification with Hungarian matching (HF's)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RegionTextLoss(nn.Module):
    """Symmetric contrastive loss between regions and texts, where several regions may share a text.

    Args:
        repeated_texts: `positives`: regions with equal texts are positives of one text. `negatives`: each repetition is
            a text of its own, as in the release (and in CLIP), so that equal nouns repel each other.
    """

    def __init__(self, repeated_texts: Literal["positives", "negatives"] = "positives") -> None:
        super().__init__()
        self.repeated_texts = repeated_texts

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean of both directions.

        Args:
            logits: (N, U) scaled cosines of N regions and the U unique texts of the batch.
            target: (N,) the text of each region; every text has one.
        """
        if self.repeated_texts == "negatives":
            logits = logits[:, target]  # (N, N)
            target = torch.arange(len(logits), device=logits.device)
        belongs = F.one_hot(target, logits.shape[1]).to(logits.dtype)  # (N, U)
        shares = belongs / belongs.sum(dim=0)  # a text is equally each of its regions
        region_to_text = F.cross_entropy(logits, target)
        text_to_region = F.cross_entropy(logits.T, shares.T)
        return (region_to_text + text_to_region) / 2
