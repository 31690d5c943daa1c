"""Test-time augmentation: the windows of an image, and averaging them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ovseg.models import OpenVocabSegmenter
from ovseg.models.views import ViewAnswer, Views, mean_labels, mean_scores
from ovseg.structures import InputError
from tests import tiny

SIZES = [(100, 90)]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> OpenVocabSegmenter:
    model = tiny.segmenter(tmp_path_factory.mktemp("clip"))
    model.set_vocabulary(["cat", "red sky", "grass", "a dog"])
    return model


def answered(
    segmenter: OpenVocabSegmenter, image: torch.Tensor, views: Views
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores (K, h, w), and scores and labels at another size."""
    segmenter.views = views
    try:
        return segmenter([image])[0], segmenter([image], SIZES)[0], segmenter.labels([image], SIZES)[0]
    finally:
        segmenter.views = Views()


def argmax_is(labels: torch.Tensor, scores: torch.Tensor) -> bool:
    best = scores.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-4 * best[0]
    assert clear.float().mean() > 0.95 and labels.min() < labels.max()  # guards against a trivial comparison
    return torch.equal(labels[clear], scores.argmax(0)[clear])


def test_windows_cover_the_image_and_end_with_it() -> None:
    image = torch.arange(3 * 100 * 64).view(3, 100, 64) / 19200
    views = Views(window=40, stride=30).of(image)
    assert [view.corner for view in views] == [(top, left) for top in (0, 30, 60) for left in (0, 24)]
    for view in views:
        top, left = view.corner
        assert torch.equal(view.image, image[:, top : top + 40, left : left + 40])
    assert [view.corner for view in Views(window=40).of(image)] == [
        (top, left) for top in (0, 26, 52, 60) for left in (0, 24)
    ]
    assert [view.corner for view in Views(window=64).of(image)] == [(0, 0), (36, 0)]


@pytest.mark.parametrize("window", [70, 71, 5000])
def test_a_window_as_large_as_the_image_changes_nothing(segmenter: OpenVocabSegmenter, window: int) -> None:
    (image,) = tiny.images((50, 70))
    for with_window, without in zip(
        answered(segmenter, image, Views(window=window)), answered(segmenter, image, Views()), strict=True
    ):
        assert torch.equal(with_window, without)


def test_a_mirrored_image_gives_mirrored_labels(segmenter: OpenVocabSegmenter) -> None:
    (image,) = tiny.images((64, 96))  # a multiple of 32, because padding is not symmetric
    both = answered(segmenter, image, Views(mirror=True))
    swapped = answered(segmenter, image.flip(2), Views(mirror=True))
    alone = answered(segmenter, image, Views())[0]
    assert not torch.allclose(alone, both[0], atol=0.05)
    torch.testing.assert_close(swapped[0].flip(2), both[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((alone + answered(segmenter, image.flip(2), Views())[0].flip(2)) / 2, both[0])
    assert argmax_is(both[2], both[1])


def test_a_symmetric_image_gives_symmetric_labels(segmenter: OpenVocabSegmenter) -> None:
    (half,) = tiny.images((64, 32))
    image = torch.cat([half, half.flip(2)], dim=2)
    scores = answered(segmenter, image, Views(mirror=True))[0]
    torch.testing.assert_close(scores.flip(2), scores)
    alone = answered(segmenter, image, Views())[0]
    assert not torch.allclose(alone, alone.flip(2), atol=0.05)


@pytest.mark.parametrize("mirror", [False, True])
def test_windows_are_averaged_where_they_overlap(segmenter: OpenVocabSegmenter, mirror: bool) -> None:
    (image,) = tiny.images((50, 96))
    scores, resized, labels = answered(segmenter, image, Views(mirror, window=64, stride=32))
    left, right = (answered(segmenter, part, Views(mirror))[0] for part in (image[..., :64], image[..., 32:]))
    by_hand = torch.cat([left[..., :32], (left[..., 32:] + right[..., :32]) / 2, right[..., 32:]], dim=2)
    torch.testing.assert_close(scores, by_hand)
    torch.testing.assert_close(resized, F.interpolate(by_hand[None], SIZES[0], mode="bilinear")[0])
    assert argmax_is(labels, resized)


@pytest.mark.parametrize("size", [(40, 30), (90, 77), (13, 20)], ids=str)
def test_averaged_windows_are_resized_in_bands(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    answers = [
        ViewAnswer(torch.rand(5, 7, generator=generator), torch.rand(5, 20, 15, generator=generator), (top, left))
        for top in (0, 10, 20)
        for left in (0, 15)
    ]
    dense = F.interpolate(mean_scores(answers, (40, 30))[None], size, mode="bilinear")[0]
    assert argmax_is(mean_labels(answers, (40, 30), size), dense)


@pytest.mark.parametrize(
    ("views", "reason"),
    [
        ({"stride": 32}, "views.stride is the step between windows; set views.window as well"),
        ({"window": 8}, "views.window is 8; set at least 32 pixels"),
        ({"window": 64, "stride": 65}, "views.stride is 65; set 1 to 64 pixels"),
        ({"window": 64, "stride": 0}, "views.stride is 0; set 1 to 64 pixels"),
    ],
    ids=str,
)
def test_invalid_windows_are_refused(views: dict[str, int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Views(**views)  # type: ignore[arg-type]


def test_views_are_not_saved(segmenter: OpenVocabSegmenter, tmp_path: Path) -> None:
    segmenter.views = Views(mirror=True)
    segmenter.save_pretrained(tmp_path)
    segmenter.views = Views()
    assert OpenVocabSegmenter.from_pretrained(tmp_path).views == Views()
