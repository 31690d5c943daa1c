"""The whole model: scores and labels follow from its parts, in every edge case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ovseg.models import CropEncoder, OpenVocabSegmenter
from ovseg.ops import ensemble_scores, semantic_scores
from ovseg.structures import InputError, Vocabulary
from tests import tiny

NAMES = ["cat", "red sky", "grass", "a dog"]
IMAGES = tiny.images((64, 64), (50, 70))


@pytest.fixture
def segmenter(tmp_path: Path) -> OpenVocabSegmenter:
    model = tiny.segmenter(tmp_path)
    model.set_vocabulary(NAMES)
    return model


def scores(model: OpenVocabSegmenter) -> torch.Tensor:
    """Return the class scores (Q, K) of the first image."""
    return model.score_proposals(IMAGES[:1])[0][0]


def test_labels_are_the_argmax_of_the_scores(segmenter: OpenVocabSegmenter) -> None:
    for sizes in (None, [(100, 90), (25, 35)]):
        classes = set()
        all_labels = segmenter.labels(IMAGES, sizes)
        for labels, dense, image in zip(all_labels, segmenter(IMAGES, sizes), IMAGES, strict=True):
            assert dense.shape[0] == 4 and dense.shape[1:] == labels.shape
            assert sizes or labels.shape == image.shape[1:]
            best = dense.topk(2, dim=0).values
            clear = best[0] - best[1] > 1e-4 * best[0]
            assert clear.float().mean() > 0.95
            assert torch.equal(labels[clear], dense.argmax(0)[clear])
            classes |= set(labels.unique().tolist())
        assert len(classes) > 1  # guards against a trivial comparison


def test_images_of_a_batch_are_independent(segmenter: OpenVocabSegmenter) -> None:
    one, two = tiny.images((64, 64), (64, 64))
    together, apart = segmenter([one, two]), [segmenter([one])[0], segmenter([two])[0]]
    for left, right in zip(together, apart, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_the_ensemble_follows_from_its_branches(segmenter: OpenVocabSegmenter) -> None:
    answer = segmenter.proposer(IMAGES[:1])[-1]
    assert answer.class_logits is not None
    probs = F.interpolate(answer.mask_logits, scale_factor=4, mode="bilinear")[0].sigmoid()
    clip_logits, valid = segmenter.classify_regions(IMAGES[0], probs > 0.5)
    by_hand = ensemble_scores(answer.class_logits[0], clip_logits, valid, 0.7)
    torch.testing.assert_close(scores(segmenter), by_hand)
    torch.testing.assert_close(segmenter(IMAGES[:1])[0], semantic_scores(by_hand, probs))


def test_extreme_ensemble_weights_equal_one_branch(segmenter: OpenVocabSegmenter) -> None:
    segmenter.classifier = "proposals"
    proposals = scores(segmenter)
    segmenter.classifier = "clip"
    clip = scores(segmenter)
    segmenter.classifier, segmenter.ensemble_weight = "ensemble", 0.0
    torch.testing.assert_close(scores(segmenter), proposals)
    segmenter.ensemble_weight = 1.0
    torch.testing.assert_close(scores(segmenter), clip)
    segmenter.ensemble_weight = 0.25
    torch.testing.assert_close(scores(segmenter), proposals**0.75 * clip**0.25)
    assert not torch.allclose(proposals, clip, atol=0.1)
    torch.testing.assert_close(clip.sum(1), torch.ones(6))
    assert bool((proposals.sum(1) < 0.9).any())  # the rest is the no-object class


def test_no_valid_proposal(segmenter: OpenVocabSegmenter) -> None:
    segmenter.classifier = "proposals"
    proposals = scores(segmenter)
    segmenter.classifier, segmenter.mask_threshold = "ensemble", 1.0
    torch.testing.assert_close(scores(segmenter), proposals**0.3)
    assert segmenter.labels(IMAGES)[0].shape == (64, 64)
    segmenter.classifier = "clip"
    assert not scores(segmenter).any()


def test_one_valid_proposal(segmenter: OpenVocabSegmenter) -> None:
    masks = segmenter.score_proposals(IMAGES[:1])[0][1] > 0.5
    everyone, all_valid = segmenter.classify_regions(IMAGES[0], masks)
    assert all_valid.all()
    masks[[0, 1, 2, 3, 5]] = False
    one, valid = segmenter.classify_regions(IMAGES[0], masks)
    assert valid.tolist() == [False, False, False, False, True, False]
    torch.testing.assert_close(one[4], everyone[4], rtol=1e-4, atol=1e-3)
    assert not one[~valid].any()


def test_the_mask_threshold_changes_the_regions_of_clip(segmenter: OpenVocabSegmenter) -> None:
    segmenter.classifier = "clip"
    low = scores(segmenter)
    segmenter.mask_threshold = 0.8
    assert not torch.allclose(low, scores(segmenter), atol=1e-3)


def test_a_class_scores_as_its_best_synonym(segmenter: OpenVocabSegmenter) -> None:
    """Both branches take the maximum over the logits of the phrases."""
    image, masks = IMAGES[0], segmenter.score_proposals(IMAGES[:1])[0][1] > 0.5
    phrases = ["cat", "kitten", "grass", "sky", "blue sky"]
    segmenter.set_vocabulary(phrases)
    logits, _ = segmenter.classify_regions(image, masks)
    own = segmenter.proposer([image])[-1].class_logits
    assert own is not None
    classes = Vocabulary(("cat", "grass", "sky"), (("cat", "kitten"), ("grass",), ("sky", "blue sky")))
    segmenter.set_vocabulary(classes)
    by_hand = torch.stack([logits[:, :2].amax(1), logits[:, 2], logits[:, 3:].amax(1)], dim=1)
    torch.testing.assert_close(segmenter.classify_regions(image, masks)[0], by_hand)
    segmenter.classifier = "proposals"
    expected = torch.stack([own[0, :, :2].amax(1), own[0, :, 2], own[0, :, 3:5].amax(1), own[0, :, 5]], dim=1)
    torch.testing.assert_close(scores(segmenter), expected.softmax(1)[:, :3])


def test_repeating_a_name_as_its_synonym_changes_nothing(segmenter: OpenVocabSegmenter) -> None:
    before = scores(segmenter)
    segmenter.set_vocabulary(Vocabulary(tuple(NAMES), tuple((name, name) for name in NAMES)))
    torch.testing.assert_close(scores(segmenter), before, rtol=1e-4, atol=1e-5)


def test_scores_follow_the_order_of_the_vocabulary(segmenter: OpenVocabSegmenter) -> None:
    before = scores(segmenter)
    segmenter.set_vocabulary(NAMES[::-1])
    torch.testing.assert_close(scores(segmenter), before.flip(1), rtol=1e-4, atol=1e-5)


def test_one_class_takes_every_pixel(segmenter: OpenVocabSegmenter) -> None:
    assert not segmenter.segment(np.zeros((5, 9, 3), np.uint8), ["anything"]).any()


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_a_saved_segmenter_gives_the_same_scores(tmp_path: Path, fill: Any) -> None:
    settings: dict[str, Any] = {
        "templates": ["a {} there", "{}"],
        "mask_threshold": 0.4,
        "ensemble_weight": 0.6,
        "classifier": "clip",
        "fill": fill,
    }
    model = tiny.segmenter(tmp_path / "clip", **settings)
    model.set_vocabulary(NAMES)
    model.save_pretrained(tmp_path / "saved")
    again = OpenVocabSegmenter.from_pretrained(tmp_path / "saved")
    assert again.vocabulary is None and again.resize == (64, 128) and type(again.region_encoder) is CropEncoder
    assert again.region_encoder.settings() == model.region_encoder.settings()
    again.set_vocabulary(NAMES)
    for left, right in zip(model.score_proposals(IMAGES), again.score_proposals(IMAGES), strict=True):
        assert torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])
    for left_labels, right_labels in zip(model.labels(IMAGES), again.labels(IMAGES), strict=True):
        assert torch.equal(left_labels, right_labels)
    again.save_pretrained(tmp_path / "again")
    files = [file.relative_to(tmp_path / "saved") for file in (tmp_path / "saved").rglob("*") if file.is_file()]
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_segment_accepts_paths_arrays_and_pil_images(segmenter: OpenVocabSegmenter, tmp_path: Path) -> None:
    pixels = (IMAGES[1].permute(1, 2, 0) * 255).round().byte().repeat(3, 3, 1).numpy()  # 150 × 210
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "image.png")
    labels = segmenter.segment(pixels, NAMES)
    assert labels.shape == (150, 210) and labels.dtype == torch.int64
    for form in (picture, tmp_path / "image.png", str(tmp_path / "image.png")):
        assert torch.equal(segmenter.segment(form), labels)
    resized = torch.from_numpy(np.array(picture.resize((90, 64), Image.Resampling.BILINEAR))).permute(2, 0, 1) / 255
    assert torch.equal(segmenter.labels([resized], [(150, 210)])[0], labels)


def test_half_precision_hardly_changes_the_scores(segmenter: OpenVocabSegmenter) -> None:
    full = segmenter(IMAGES[:1])[0]
    with torch.autocast("cpu", torch.bfloat16):
        half, labels = segmenter(IMAGES[:1])[0], segmenter.labels(IMAGES[:1])[0]
    assert half.dtype == torch.float32 and torch.equal(labels, half.argmax(0))
    assert (half - full).abs().mean() < 0.1 * full.mean()


def test_text_features_are_the_mean_over_the_templates(tmp_path: Path) -> None:
    templates = ["a {}", "the {} over there.", "{}"]
    model = tiny.segmenter(tmp_path, templates=templates)
    model.set_vocabulary(NAMES)
    assert model.proposer.text_features is not None
    with torch.no_grad():
        of_templates = [model.clip.encode_text([text.replace("{}", name) for name in NAMES]) for text in templates]
    assert min(float((one - of_templates[0]).norm()) for one in of_templates[1:]) > 0.1  # the templates differ
    expected = F.normalize(torch.stack(of_templates).mean(dim=0), dim=-1)
    torch.testing.assert_close(model.proposer.text_features, expected)


def test_a_missing_vocabulary_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no vocabulary yet; call set_vocabulary"):
        tiny.segmenter(tmp_path).labels(IMAGES)


@pytest.mark.parametrize("names", [[], ["cat", ""], ["cat", "cat"]])
def test_an_invalid_vocabulary_keeps_the_previous_one(segmenter: OpenVocabSegmenter, names: list[str]) -> None:
    before = scores(segmenter)
    with pytest.raises(InputError, match="vocabulary"):
        segmenter.set_vocabulary(names)
    assert segmenter.vocabulary is not None and list(segmenter.vocabulary.names) == NAMES
    assert torch.equal(scores(segmenter), before)


def test_a_folder_without_a_segmenter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no segmenter in .*: it has no segmenter\.yaml; make one with `ovseg bundle"):
        OpenVocabSegmenter.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.rand(1, 64, 64), r"shape \(3, h, w\), got \(1, 64, 64\); convert it to RGB"),
        (torch.rand(2, 64, 64), r"got \(2, 64, 64\)"),
        (torch.rand(4, 64, 64), r"got \(4, 64, 64\)"),
        (torch.rand(64, 64), r"got \(64, 64\)"),
        (torch.rand(3, 64, 3), r"64 × 3 pixels is smaller than one patch"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), r"got torch\.uint8; divide bytes by 255"),
        (torch.full((3, 64, 64), 255.0), r"got 255 … 255; divide bytes by 255"),
        (torch.full((3, 64, 64), torch.nan), r"floats in \[0, 1\], got nan"),
    ],
)
def test_malformed_images_are_refused(segmenter: OpenVocabSegmenter, image: torch.Tensor, reason: str) -> None:
    for answer in (segmenter, segmenter.labels):
        with pytest.raises(InputError, match=reason):
            answer([IMAGES[0], image])


def test_an_image_of_one_row_is_segmented(segmenter: OpenVocabSegmenter) -> None:
    assert segmenter.segment(np.full((1, 200, 3), 99, np.uint8)).shape == (1, 200)


def test_half_precision_and_no_images(segmenter: OpenVocabSegmenter) -> None:
    segmenter.bfloat16()
    segmenter.set_vocabulary(NAMES)
    (scores,) = segmenter(IMAGES[:1])
    assert scores.shape == (4, 64, 64) and bool(scores.isfinite().all())
    assert segmenter([]) == []


@pytest.mark.parametrize("names", ["cat", ["cat", 5]])
def test_a_vocabulary_must_be_a_list_of_names(segmenter: OpenVocabSegmenter, names: Any) -> None:
    with pytest.raises(InputError, match="a vocabulary is a list of names, such as"):
        segmenter.set_vocabulary(names)


@pytest.mark.parametrize(
    ("file", "content", "report"),
    [
        ("segmenter.yaml", "templates: [", "holds no valid settings"),
        ("segmenter.yaml", "", "holds no valid settings"),
        ("segmenter.yaml", "colour: red", "holds no valid settings"),
        ("segmenter.yaml", None, "has no segmenter.yaml"),
        ("clip/open_clip_model.safetensors", None, "no weights of CLIP"),
        ("proposer/model.safetensors", None, "weights not found"),
        ("proposer/proposer.json", "{}", "proposer.json"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, file: str, content: str | None, report: str) -> None:
    tiny.segmenter(tmp_path / "clip").save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / file).unlink()
    if content is not None:
        (tmp_path / "saved" / file).write_text(content)
    with pytest.raises(InputError, match=report):
        OpenVocabSegmenter.from_pretrained(tmp_path / "saved")
