"""How `CropEncoder` encodes many regions: in batches, without duplicates, in bf16, and only those it selects."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ovseg.models import CLIPAdapter, CropEncoder, OpenVocabSegmenter
from ovseg.models.ensemble import class_scores, visible_masks
from ovseg.models.regions.batches import first_equals, regions_at_once
from ovseg.ops import masks_to_boxes
from ovseg.structures import ImageProposals, InputError, RegionTextBatch
from ovseg.tasks.sweep import labels_of_grid
from tests import tiny

(IMAGE,) = tiny.images((48, 64))


def squares(count: int) -> Tensor:
    """Return masks of different boxes, (count, 48, 64)."""
    masks = torch.zeros(count, 48, 64, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[index : index + 9, 3 : 20 + index] = True
    return masks


class Batches:
    """Records the size of each batch that a CLIP encodes, and refuses those above `most`."""

    def __init__(self, clip: CLIPAdapter, monkeypatch: pytest.MonkeyPatch, most: int, error: RuntimeError) -> None:
        self.sizes: list[int] = []
        encode = clip.encode_regions

        def limited(regions: Tensor, *rest: Any) -> Tensor:
            self.sizes.append(len(regions))
            if len(regions) > most:
                raise error
            return encode(regions, *rest)

        monkeypatch.setattr(clip, "encode_regions", limited)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
@torch.no_grad()
def test_batches_are_halved_until_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: RuntimeError
) -> None:
    clip = tiny.clip(tmp_path, prompt_depth=2)
    masks = squares(20)
    (expected,) = CropEncoder(clip)([IMAGE], [masks])
    batches, encoder = Batches(clip, monkeypatch, 5, error), CropEncoder(clip, regions_per_batch=16)
    for _ in range(2):
        (encoded,) = encoder([IMAGE], [masks])
        torch.testing.assert_close(encoded.features, expected.features, rtol=0, atol=1e-5)
    assert batches.sizes == [16, 8, *[4] * 5, *[4] * 5]
    assert [record.levelname for record in caplog.records if "do not fit" in record.message] == ["WARNING"]


@torch.no_grad()
def test_other_errors_and_single_regions_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for most, error in ((0, torch.OutOfMemoryError("CUDA out of memory")), (3, RuntimeError("a bug"))):
        clip = tiny.clip(tmp_path)
        batches = Batches(clip, monkeypatch, most, error)
        with pytest.raises(RuntimeError, match=str(error)):
            CropEncoder(clip, regions_per_batch=4)([IMAGE], [squares(8)])
        assert batches.sizes == ([4, 2, 1] if most == 0 else [4])


def test_the_cpu_s_own_error_counts_as_out_of_memory() -> None:
    from ovseg.models.regions.batches import is_out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("shapes do not match"))


@torch.no_grad()
def test_batches_have_a_size_that_suits_the_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tiny.clip(tmp_path)
    assert regions_at_once(clip) == 2**20 // ((1 + 4 * 4) * 64)
    monkeypatch.setattr("ovseg.models.regions.batches.BYTES_AT_ONCE", 6 * 17 * 64 * 4)
    assert regions_at_once(clip, torch.bfloat16) == 12
    batches = Batches(clip, monkeypatch, 6, RuntimeError("too many"))
    CropEncoder(clip)([IMAGE, IMAGE], [squares(7), squares(8)])
    assert batches.sizes == [6, 6, 3]


@torch.no_grad()
def test_equal_masks_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tiny.clip(tmp_path, prompt_depth=2)
    masks = squares(4)[[0, 1, 0, 2, 3, 1, 0]]
    masks[4] = False
    other = masks[3].clone()
    other[3, 4] = False  # the same box, another mask
    masks = torch.cat([masks, other[None], masks[4:5]])
    (expected,) = CropEncoder(clip)([IMAGE], [masks[[0, 1, 3, 7]]])
    batches = Batches(clip, monkeypatch, 4, RuntimeError("too many"))
    (encoded,) = CropEncoder(clip)([IMAGE], [masks])
    assert batches.sizes == [4]
    assert encoded.valid.tolist() == [True] * 4 + [False, True, True, True, False]
    assert not encoded.features[[4, 8]].any()
    for index, row in enumerate([0, 1, 0, 2, None, 1, 0, 3]):
        if row is not None:
            torch.testing.assert_close(encoded.features[index], expected.features[row])
    assert torch.equal(encoded.features[0], encoded.features[6])


def test_masks_with_equal_boxes_and_areas_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    distinct = torch.zeros(30, 9, 9, dtype=torch.bool)
    distinct[:, 0, 0] = distinct[:, 8, 8] = True
    for mask in distinct:
        mask.view(-1)[torch.randperm(79, generator=generator)[:20] + 1] = True
    order = torch.randint(0, 30, (80,), generator=generator)
    masks = distinct[order]
    expected = [order.tolist().index(index) for index in order.tolist()]
    boxes = masks_to_boxes(masks).tolist()
    assert first_equals(masks, boxes) == expected
    monkeypatch.setattr("ovseg.models.regions.batches._fingerprint", lambda mask: mask.sum() * 0)
    with_colliding_fingerprints = first_equals(masks, boxes)
    assert all(
        index == first or torch.equal(masks[index], masks[first])
        for index, first in enumerate(with_colliding_fingerprints)
    )
    assert with_colliding_fingerprints != expected


@torch.no_grad()
def test_bf16_weights_follow_the_stored_ones(tmp_path: Path) -> None:
    clip, masks = tiny.clip(tmp_path, prompt_depth=2), squares(3)
    keys = [*clip.state_dict()]
    encoder = CropEncoder(clip, precision="bf16")
    (full,), (half,) = CropEncoder(clip)([IMAGE], [masks]), encoder([IMAGE], [masks])
    assert half.features.dtype == torch.float32 and not torch.equal(full.features, half.features)
    torch.testing.assert_close(full.features, half.features, rtol=0, atol=0.02)
    torch.testing.assert_close(half.features.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)
    tower = clip.visual_in(torch.bfloat16)
    assert clip.visual_in(torch.bfloat16) is tower and clip.visual_in(None) is clip.visual
    assert [*clip.state_dict()] == keys and {value.dtype for value in clip.visual.parameters()} == {torch.float32}
    clip.visual.visual.proj.neg_()
    torch.testing.assert_close(encoder([IMAGE], [masks])[0].features, -half.features)
    clip.visual.visual.proj.neg_()
    again = copy.deepcopy(encoder)
    again.clip.visual.visual.proj.neg_()
    torch.testing.assert_close(again([IMAGE], [masks])[0].features, -half.features)
    torch.testing.assert_close(encoder([IMAGE], [masks])[0].features, half.features)


def test_bf16_is_for_inference(tmp_path: Path) -> None:
    batch = RegionTextBatch(torch.rand(1, 3, 32, 32), torch.ones(1, 32, 32, dtype=torch.bool), ["cat"], torch.zeros(1))
    encoder = CropEncoder(tiny.clip(tmp_path), precision="bf16")
    with pytest.raises(InputError, match="precision: bf16 is for inference only; train with"):
        encoder.encode_batch(batch)
    assert not encoder([IMAGE], [squares(2)])[0].features.requires_grad


@torch.no_grad()
def test_bf16_labels_the_same_pixels_of_toy_scenes(tmp_path: Path) -> None:
    from ovseg.data.toy import write_toy
    from ovseg.data.vocabulary import read_vocabulary
    from ovseg.images import read_image, to_tensor

    write_toy(tmp_path, 1, val_scenes=6)
    images = [to_tensor(read_image(path)) for path in sorted((tmp_path / "val2017").iterdir())]
    segmenter = OpenVocabSegmenter.from_pretrained("toy")
    segmenter.set_vocabulary(read_vocabulary("toy"))
    full = torch.cat([labels.flatten() for labels in segmenter.labels(images)])
    segmenter.region_encoder.precision = "bf16"  # type: ignore[assignment]
    half = torch.cat([labels.flatten() for labels in segmenter.labels(images)])
    assert float((full == half).float().mean()) >= 0.995


@pytest.mark.parametrize(
    ("options", "selected"),
    [
        ({}, [True] * 4),
        ({"regions_per_image": 2}, [False, True, True, False]),
        ({"regions_per_image": 9}, [True] * 4),
        ({"min_objectness": 0.5}, [False, True, True, True]),
        ({"regions_per_image": 3, "min_objectness": 0.8}, [False, True, False, False]),
    ],
)
def test_proposals_are_selected_by_their_objectness(
    tmp_path: Path, options: dict[str, Any], selected: list[bool]
) -> None:
    encoder = CropEncoder(tiny.clip(tmp_path), **options)
    assert encoder.selects(torch.tensor([0.1, 0.9, 0.5, 0.5])).tolist() == selected
    assert encoder.selects(torch.zeros(0)).shape == (0,)


def test_objectness_is_what_the_proposals_say(tmp_path: Path) -> None:
    """Class logits give 1 - p(no object); without them, the proposals' own objectness counts, or 1."""
    encoder, probs = CropEncoder(tiny.clip(tmp_path), min_objectness=0.5), torch.ones(2, 4, 4)
    logits = torch.tensor([[0.2, 0.1, 0.7], [0.5, 0.2, 0.3]]).log()
    for proposals, expected in (
        (ImageProposals(probs, logits, None), [False, True]),
        (ImageProposals(probs, None, torch.tensor([0.6, 0.4])), [True, False]),
        (ImageProposals(probs, None, None), [True, True]),
    ):
        assert visible_masks(proposals, 0.5, encoder).flatten(1).all(dim=1).tolist() == expected


@torch.no_grad()
def test_to_other_proposals_clip_contributes_nothing(tmp_path: Path) -> None:
    """In scores and sweeps: the proposal network alone in the ensemble, zero with CLIP alone."""
    segmenter = tiny.segmenter(tmp_path / "clip")
    encoder = CropEncoder(segmenter.clip, regions_per_image=2)
    limited = OpenVocabSegmenter(segmenter.proposer, encoder, mask_threshold=0.3).eval()
    limited.set_vocabulary(["cat", "red sky", "grass"])
    (proposals,) = limited.propose([IMAGE])
    assert proposals.class_logits is not None
    chosen = encoder.selects(1 - proposals.class_logits.softmax(dim=1)[:, -1])
    assert chosen.sum() == 2
    regions = limited.classify_regions(IMAGE, proposals.mask_probs > 0.3)
    expected = class_scores(proposals, regions._replace(valid=regions.valid & chosen), "ensemble", 0.7)
    torch.testing.assert_close(limited.score_proposals([IMAGE])[0][0], expected)
    (swept,) = labels_of_grid(limited, IMAGE, (48, 64), [0.3], [0.7])
    assert torch.equal(swept, limited.labels([IMAGE])[0])
    limited.classifier = "clip"
    scores = limited.score_proposals([IMAGE])[0][0]
    assert not scores[~chosen].any() and bool((scores[chosen & regions.valid] > 0).any())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "fp16"}, "precision is 'fp16'; give bf16, or null"),
        ({"regions_per_image": 0}, "regions_per_image is 0; give at least 1"),
        ({"min_objectness": 1.5}, "min_objectness is 1.5; give a number from 0 to 1"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        CropEncoder(tiny.clip(tmp_path), **options)
