"""The argmax in bands equals the naive one at any size, without its memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ovseg import ops
from ovseg.ops import labels_in_bands, mask_probabilities, semantic_labels, semantic_rows, semantic_scores


def drawn(classes: int, size: tuple[int, int], blobs: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (Q, K) and masks (Q, h, w) of 12 proposals; the fewer blobs, the smoother the masks."""
    generator = torch.Generator().manual_seed(classes)
    masks = F.interpolate(torch.randn(1, 12, blobs, blobs, generator=generator) * 4 - 2, size, mode="bicubic")[0]
    return (torch.randn(12, classes, generator=generator) * 3).softmax(1), masks.sigmoid()


def naive(scores: torch.Tensor, probs: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels, and where the two best scores differ by more than 1e-6."""
    dense = F.interpolate(semantic_scores(scores, probs)[None], size, mode="bilinear", align_corners=False)[0]
    if len(dense) == 1:
        return dense.argmax(0), torch.ones(size, dtype=torch.bool)
    best = dense.topk(2, dim=0).values
    return dense.argmax(0), best[0] - best[1] > 1e-6


SIZES = [(24, 32), (25, 31), (48, 64), (100, 33), (7, 200), (12, 16), (1, 1), (31, 8)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 9, 847])
@pytest.mark.parametrize("blobs", [3, 24])
def test_labels_are_those_of_all_scores(size: tuple[int, int], classes: int, blobs: int) -> None:
    scores, probs = drawn(classes, (24, 32), blobs)
    expected, clear = naive(scores, probs, size)
    assert clear.float().mean() > 0.99
    for values in (1, 50 * classes, 1_000_000):
        found = semantic_labels(scores, probs, size, values)
        assert found.shape == size and torch.equal(found[clear], expected[clear])


@pytest.mark.parametrize("size", [(12, 16), (24, 32), (48, 64)], ids=str)
def test_without_proposals_every_pixel_has_the_first_class(size: tuple[int, int]) -> None:
    assert torch.equal(semantic_labels(torch.zeros(0, 3), torch.zeros(0, 24, 32), size), torch.zeros(size).long())


@pytest.mark.parametrize("size", [(24, 16), (12, 16), (9, 40), (3, 5)], ids=str)
def test_scores_of_any_origin_are_resized_in_bands(size: tuple[int, int]) -> None:
    """What several views give is not resized beforehand, also where the answer is smaller."""
    scores, probs = drawn(6, (24, 32))
    expected, clear = naive(scores, probs, size)

    def band(first: int, last: int) -> torch.Tensor:
        return semantic_rows(scores, probs[:, first:last])

    found = labels_in_bands(band, (24, 32, 6), size, 6 * 32 * 3)
    assert torch.equal(found[clear], expected[clear])


def test_a_class_that_is_best_between_neighbours_only_is_found() -> None:
    """Second at both ends and first between them: the labels of the ends alone do not say so."""
    ends = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]])  # (K, w)
    labels = labels_in_bands(lambda first, last: ends.T[None][first:last], (1, 2, 3), (1, 8))
    assert labels.tolist() == [[0, 0, 0, 2, 2, 1, 1, 1]]


def test_most_pixels_are_answered_without_their_scores() -> None:
    """Half the image is one class: only the border between is interpolated."""
    scores = torch.eye(2)
    probs = torch.zeros(2, 10, 10)
    probs[0, :, :5], probs[1, :, 5:] = 1, 1
    touched = []

    def band(first: int, last: int) -> torch.Tensor:
        touched.append(last - first)
        return semantic_rows(scores, probs[:, first:last])

    labels = labels_in_bands(band, (10, 10, 2), (40, 40), 2 * 10 * 4)
    assert torch.equal(labels, (torch.arange(40) >= 20).long().expand(40, 40))
    assert max(touched) <= 5 and sum(touched) < 2 * 10


def test_masks_are_upsampled_a_few_at_a_time_to_the_same_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(5, 8, 12, requires_grad=True)
    expected = F.interpolate(logits[None], scale_factor=4, mode="bilinear")[0, :, :29, :45].sigmoid()
    monkeypatch.setattr(ops, "band_values", lambda device: 16 * 2 * 32 * 48)  # two masks
    probabilities = mask_probabilities(logits, (29, 45))
    assert torch.equal(probabilities, expected)
    assert torch.equal(*(torch.autograd.grad(each.square().sum(), logits)[0] for each in (probabilities, expected)))
    assert mask_probabilities(logits[:0], (29, 45)).shape == (0, 29, 45)
