"""Ensemble and scores compared with the released implementation (golden g3)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ovseg.ops import clip_scores, ensemble_scores, proposal_scores, semantic_labels, semantic_scores
from tests.parity import goldens

G3 = goldens.arrays("g3_ensemble")
CLASS_LOGITS, VALID = G3["mask_cls_logits"], G3["valid"]
MASK_PROBS = G3["mask_pred_logits"].sigmoid()


def clip_logits() -> torch.Tensor:
    """Return (Q, K) logits: the stored ones of valid proposals, and arbitrary ones of invalid proposals."""
    logits = torch.full((9, 7), 50.0)
    logits[VALID] = G3["clip_logits_valid"]
    return logits[:, :-1]  # drop the no-object column before the softmax


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    goldens.close("ensemble and scores", actual, expected, 1e-4, 1e-5)


@pytest.mark.parametrize("weight", [0.3, 0.7, 1.0])
def test_ensemble_with_invalid_proposals(weight: float) -> None:
    scores = ensemble_scores(CLASS_LOGITS, clip_logits(), VALID, weight)
    close(semantic_scores(scores, MASK_PROBS), G3[f"sem_w{weight}_somevalid"])


def test_ensemble_with_all_valid() -> None:
    everything = torch.ones(9, dtype=torch.bool)
    scores = ensemble_scores(CLASS_LOGITS, G3["clip_logits_all"][:, :-1], everything, 0.7)
    close(semantic_scores(scores, MASK_PROBS), G3["sem_w0.7_allvalid"])


def test_proposals_only() -> None:
    close(semantic_scores(proposal_scores(CLASS_LOGITS), MASK_PROBS), G3["sem_ensemble_off"])
    close(ensemble_scores(CLASS_LOGITS, clip_logits(), VALID, 0.0), proposal_scores(CLASS_LOGITS))


def test_weight_zero_of_the_release_is_clip_only() -> None:
    close(semantic_scores(clip_scores(clip_logits(), VALID), MASK_PROBS), G3["sem_w0.0_somevalid"])


def test_no_valid_proposal() -> None:
    nothing = torch.zeros(9, dtype=torch.bool)
    close(semantic_scores(ensemble_scores(CLASS_LOGITS, clip_logits(), nothing, 0.7), MASK_PROBS), G3["sem_none_w0.7"])
    close(semantic_scores(clip_scores(clip_logits(), nothing), MASK_PROBS), G3["sem_none_w0.0"])


def test_one_valid_proposal() -> None:
    """The release crashes here; the formula is applied by hand."""
    one = torch.zeros(9, dtype=torch.bool)
    one[4] = True
    scores = ensemble_scores(CLASS_LOGITS, clip_logits(), one, 0.7)
    a, b = CLASS_LOGITS.softmax(-1)[:, :-1], clip_logits().softmax(-1)
    close(scores[4], a[4] ** 0.3 * b[4] ** 0.7)
    close(scores[3], a[3] ** 0.3)


@pytest.mark.parametrize("size", [(20, 28), (61, 47), (7, 200), (1, 1), (10, 14)])
@pytest.mark.parametrize("values", [1, 600, 10_000])
def test_labels_in_bands_equal_the_argmax_of_all_scores(size: tuple[int, int], values: int) -> None:
    scores = ensemble_scores(CLASS_LOGITS, clip_logits(), VALID, 0.7)
    whole = semantic_scores(scores, MASK_PROBS)
    whole = F.interpolate(whole[None], size, mode="bilinear", align_corners=False)[0]
    best = whole.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-6
    assert clear.float().mean() > 0.99 or clear.numel() == 1
    assert torch.equal(semantic_labels(scores, MASK_PROBS, size, values)[clear], whole.argmax(0)[clear])
