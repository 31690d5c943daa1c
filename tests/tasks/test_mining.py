"""Mining against a plain loop over open_clip."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from ovseg import rle
from ovseg.models import CLIPAdapter, CropEncoder
from ovseg.structures import CaptionBatch, InputError, RegionTextPair
from ovseg.tasks import MiningTask
from ovseg.tasks.pair_filters import PairFilters, mask_overlaps
from tests import tiny
from tests.tasks.data import Batches, trainer

COLOUR = torch.tensor([0.48145466, 0.4578275, 0.40821073])  # of the crops' background, to within 1e-4
NOUNS = [["cat", "red sofa", "plant"], ["sky", "cat"]]


def batch(masks: bool = True) -> CaptionBatch:
    """Two images, of which the second is stored at twice the size of what the network sees."""
    first, second = torch.zeros(3, 64, 64, dtype=torch.bool), torch.zeros(2, 96, 64, dtype=torch.bool)
    first[0, 4:40, 8:30], first[1, 30:60, 20:64] = True, True  # the third is empty
    second[0, :50], second[1, 50:, 10:60] = True, True
    return CaptionBatch(
        images=tiny.images((64, 64), (48, 32)),
        sizes=[(64, 64), (96, 64)],
        names=["a.jpg", "sub/b.jpg"],
        image_ids=[7, 9],
        nouns=NOUNS,
        caption_ids=[[70, 71, 70], [90, 91]],
        masks=[first, second] if masks else None,
    )


def mine(task: MiningTask, data: CaptionBatch) -> list[RegionTextPair]:
    (pairs,) = trainer().predict(task, Batches([data]))  # type: ignore[misc]
    return pairs  # type: ignore[return-value]


@torch.no_grad()
def similarities(clip: CLIPAdapter, image: torch.Tensor, masks: torch.Tensor, nouns: list[str]) -> torch.Tensor:
    """(nouns, regions), by CLIP without a mask prompt and with the crop written out."""
    clip_model, rows = clip.clip, []
    for mask in masks:
        mask = F.interpolate(mask[None, None].float(), image.shape[1:], mode="nearest")[0, 0] > 0
        ys, xs = mask.nonzero().T
        window = (slice(int(ys.min()), int(ys.max()) + 1), slice(int(xs.min()), int(xs.max()) + 1))
        filled = torch.where(mask[window], image[:, window[0], window[1]], COLOUR[:, None, None])
        region = F.interpolate(filled[None], (32, 32), mode="bicubic")
        rows.append(F.normalize(clip_model.visual.visual((region - clip.mean) / clip.std), dim=-1)[0])
    tokens = clip.tokenizer([f"a photo of a {noun}." for noun in nouns])
    return F.normalize(clip_model.encode_text(tokens), dim=-1) @ torch.stack(rows).T


def check(pairs: list[RegionTextPair], cosines: list[torch.Tensor], masks: list[torch.Tensor]) -> None:
    data, row = batch(), 0
    assert [pair.noun for pair in pairs] == [noun for nouns in NOUNS for noun in nouns]
    for index, similarity in enumerate(cosines):
        for noun, values in enumerate(similarity):
            pair, row = pairs[row], row + 1
            ranked = values.sort(descending=True)
            assert pair.similarity == pytest.approx(ranked.values[0].item(), abs=1e-3)
            assert pair.margin == pytest.approx((ranked.values[0] - ranked.values[1]).item(), abs=1e-3)
            chosen = rle.decode([pair.counts], pair.size)[0]
            assert torch.equal(chosen, masks[index][int(ranked.indices[0])])
            ys, xs = chosen.nonzero().T
            assert pair.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert (pair.image_id, pair.file_name) == (data.image_ids[index], data.names[index])
            assert (pair.size, pair.caption_id) == (data.sizes[index], data.caption_ids[index][noun])


@pytest.mark.parametrize("vision", [tiny.CLIP["vision_cfg"], tiny.RN])
def test_each_noun_takes_the_best_ground_truth_mask(tmp_path: Path, vision: dict[str, Any]) -> None:
    torch.manual_seed(0)
    clip, data = CLIPAdapter(tiny.clip_folder(tmp_path, vision_cfg=vision)).eval(), batch()
    assert data.masks is not None
    pairs = mine(MiningTask(clip), data)
    masks = [data.masks[0][:2], data.masks[1]]  # an empty mask is nobody's region
    cosines = [similarities(clip, *given) for given in zip(data.images, masks, NOUNS, strict=True)]
    check(pairs, cosines, masks)
    assert {pair.proposal_score for pair in pairs} == {1.0}


def test_each_noun_takes_the_best_proposal(tmp_path: Path) -> None:
    segmenter = tiny.segmenter(tmp_path / "clip")
    segmenter.proposer.save_pretrained(tmp_path / "proposer")
    clip, data = tiny.clip(tmp_path / "plain"), batch(masks=False)
    pairs = mine(MiningTask(clip, str(tmp_path / "proposer"), mask_threshold=0.6), data)
    with torch.no_grad():
        logits = segmenter.proposer(data.images)[-1].mask_logits
    masks, scores, cosines = [], [], []
    for image, size, mask_logits, nouns in zip(data.images, data.sizes, logits, NOUNS, strict=True):
        probs = F.interpolate(mask_logits[None], scale_factor=4, mode="bilinear").sigmoid()
        probs = F.interpolate(probs[..., : image.shape[1], : image.shape[2]], size, mode="bilinear")[0]
        found = probs > 0.6
        kept = F.interpolate(found[None].float(), image.shape[1:])[0].any(2).any(1)
        masks.append(found[kept])
        scores.append([prob[mask].mean().item() for prob, mask in zip(probs[kept], found[kept], strict=True)])
        cosines.append(similarities(clip, image, found[kept], nouns))
    check(pairs, cosines, masks)
    best = [scores[index][int(row.argmax())] for index, rows in enumerate(cosines) for row in rows]
    assert [pair.proposal_score for pair in pairs] == pytest.approx(best, abs=1e-4)


def test_masks_of_photographs_are_computed_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.segmenter(tmp_path / "clip").proposer.save_pretrained(tmp_path / "proposer")
    task, data = MiningTask(tiny.clip(tmp_path / "plain"), str(tmp_path / "proposer")), batch(masks=False)
    at_once, sizes = mine(task, data), []
    interpolate = F.interpolate

    def observed(values: torch.Tensor, size: Any = None, **options: Any) -> torch.Tensor:
        if size in data.sizes:
            sizes.append(values.shape[1])
        return interpolate(values, size, **options)

    monkeypatch.setattr("ovseg.tasks.mining.F.interpolate", observed)
    monkeypatch.setattr("ovseg.bands.BAND_VALUES", 2 * max(h * w for h, w in data.sizes))
    assert mine(task, data) == at_once
    assert 2 in sizes and max(sizes) < 6


def test_objectness_weighs_the_score_of_a_proposal(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Mask2FormerConfig(**tiny.mask2former(), num_labels=7)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path / "hf")
    task = MiningTask(tiny.clip(tmp_path / "clip"), str(tmp_path / "hf")).eval()
    assert task.proposer is not None
    weighed = mine(task, batch(masks=False))
    with torch.no_grad():
        objectness = task.proposer(batch().images)[-1].objectness
    task.proposer.embed_queries()  # then it has none
    for pair, plain in zip(weighed, mine(task, batch(masks=False)), strict=True):
        assert pair._replace(proposal_score=0) == plain._replace(proposal_score=0)
        factors = objectness[[7, 9].index(pair.image_id)]  # type: ignore[index]
        assert (factors - pair.proposal_score / plain.proposal_score).abs().min() < 1e-5
    assert len(weighed) == 5


def test_nouns_and_cosines_are_of_full_precision_in_a_run_of_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data, seen = MiningTask(tiny.clip(tmp_path)), batch(), []
    encode = task.clip.encode_regions
    monkeypatch.setattr(task.clip, "encode_regions", lambda *regions: seen.append(encode(*regions)) or seen[-1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pairs = task.predict_step(data, 0)
    with torch.no_grad():
        task.predict_step(data, 0)
    regions, full = seen
    assert not torch.equal(regions, full)  # the run is one of half precision
    found = [pair.similarity for pair in pairs]
    with torch.no_grad():
        texts = [task.text.encode(nouns) for nouns in NOUNS]
    cosines = [nouns @ of_image.T for nouns, of_image in zip(texts, regions.float().split([2, 2]), strict=True)]
    assert found == pytest.approx(torch.cat([rows.max(dim=1).values for rows in cosines]).tolist(), abs=1e-6)


def test_with_one_region_the_margin_is_the_similarity(tmp_path: Path) -> None:
    data = batch()
    assert data.masks is not None
    pairs = mine(MiningTask(tiny.clip(tmp_path)), data._replace(masks=[masks[:1] for masks in data.masks]))
    assert len(pairs) == 5 and all(pair.margin == pair.similarity for pair in pairs)


def test_images_without_regions_or_nouns_give_no_pairs(tmp_path: Path) -> None:
    data, task = batch(), MiningTask(tiny.clip(tmp_path))
    assert data.masks is not None
    assert [p.image_id for p in mine(task, data._replace(masks=[data.masks[0][2:], data.masks[1]]))] == [9, 9]
    assert [p.image_id for p in mine(task, data._replace(masks=[data.masks[0][:0], data.masks[1]]))] == [9, 9]
    assert [p.image_id for p in mine(task, data._replace(nouns=[[], NOUNS[1]]))] == [9, 9]


def test_templates_are_what_the_nouns_are_asked_by(tmp_path: Path) -> None:
    clip = tiny.clip(tmp_path)
    bare = mine(MiningTask(clip, templates="bare"), batch())
    assert [pair.similarity for pair in bare] != [pair.similarity for pair in mine(MiningTask(clip), batch())]


def test_without_regions_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mining needs regions: set --model\.proposer to a network, or --data\.masks"):
        mine(MiningTask(tiny.clip(tmp_path)), batch(masks=False))


def test_the_reference_above_uses_plain_open_clip(tmp_path: Path) -> None:
    """The loop calls the tower that `create_model` builds, and its public path gives the same features."""
    clip = tiny.clip(tmp_path / "new")
    clip.save_pretrained(tmp_path / "saved")
    plain = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain.encode_image(pixels), clip.clip.visual.visual(pixels))


def test_a_label_keeps_its_own_mask(tmp_path: Path) -> None:
    clip, data = tiny.clip(tmp_path), batch()
    assert data.masks is not None
    labels = [["cat", "sofa", "nothing"], ["sky", "cat"]]  # the third mask of the first image is empty
    data = data._replace(nouns=labels, caption_ids=[[-1] * 3, [-1] * 2], labelled=True)
    pairs = mine(MiningTask(clip), data)
    assert [(pair.image_id, pair.noun) for pair in pairs] == [(7, "cat"), (7, "sofa"), (9, "sky"), (9, "cat")]
    for index, (nouns, count) in enumerate(zip(labels, (2, 2), strict=True)):
        masks = data.masks[index][:count]
        cosines = similarities(clip, data.images[index], masks, nouns[:count])
        for place in range(count):
            pair = pairs[2 * index + place]
            assert torch.equal(rle.decode([pair.counts], pair.size)[0], masks[place])
            assert pair.similarity == pytest.approx(cosines[place, place].item(), abs=1e-3)
            assert pair.margin == pytest.approx((cosines[place, place] - cosines[place, 1 - place]).item(), abs=1e-3)


def test_given_scores_are_those_of_the_pairs(tmp_path: Path) -> None:
    data = batch()._replace(mask_scores=[torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.6, 0.5])])
    pairs = mine(MiningTask(tiny.clip(tmp_path)), data)
    assert {pair.proposal_score for pair in pairs} <= {0.8999999761581421, 0.800000011920929, 0.6000000238418579, 0.5}


def test_regions_of_all_images_go_through_clip_together(tmp_path: Path) -> None:
    segmenter = tiny.segmenter(tmp_path / "clip")
    segmenter.proposer.save_pretrained(tmp_path / "proposer")
    clip, data = tiny.clip(tmp_path / "plain"), batch(masks=False)
    sizes: list[int] = []
    clip.visual.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    whole = mine(MiningTask(clip, str(tmp_path / "proposer"), mask_threshold=0.6), data)
    assert len(sizes) == 1 and sizes[0] > 6
    regions = sizes.pop()
    parts = mine(
        MiningTask(
            clip,
            str(tmp_path / "proposer"),
            mask_threshold=0.6,
            region_encoder=partial(CropEncoder, regions_per_batch=4),
        ),
        data,
    )
    assert sizes == [4] * (regions // 4) + [regions % 4] * (regions % 4 > 0)
    for one, other in zip(whole, parts, strict=True):
        assert one[:7] == other[:7] and one.proposal_score == other.proposal_score
        assert (one.similarity, one.margin) == pytest.approx((other.similarity, other.margin), abs=1e-5)


def test_a_batch_gives_the_same_bits_after_any_other(tmp_path: Path) -> None:
    task, data = MiningTask(tiny.clip(tmp_path)), batch()
    first = mine(task, data)
    mine(task, data._replace(nouns=[["a longer noun than those", "cat"], ["plant"]]))
    assert mine(task, data) == first


def test_regions_and_masks_at_once_are_refused(tmp_path: Path) -> None:
    tiny.proposer().save_pretrained(tmp_path / "proposer")
    with pytest.raises(InputError, match=r"--model\.proposer and --data\.masks are both set; set one of them to null"):
        mine(MiningTask(tiny.clip(tmp_path / "clip"), str(tmp_path / "proposer")), batch())


# Filters


def test_without_filters_all_but_empty_regions_stay() -> None:
    masks = torch.tensor([[[1, 1]], [[0, 0]], [[1, 1]]], dtype=torch.bool)
    assert PairFilters().regions(masks, torch.ones(3)).tolist() == [0, 2]


def test_small_regions_are_left_out() -> None:
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, 0, :4] = masks[1, 0, :5] = masks[2] = True
    assert PairFilters(min_area=0.05).regions(masks, torch.ones(3)).tolist() == [1, 2]


def test_of_overlapping_regions_the_best_stays() -> None:
    masks = torch.zeros(4, 1, 10, dtype=torch.bool)
    masks[0, :, :6] = masks[1, :, 2:8] = masks[2, :, :8] = masks[3, :, 9:] = True
    expected = torch.tensor([[6, 4, 6, 0], [4, 6, 6, 0], [6, 6, 8, 0], [0, 0, 0, 1]]) / torch.tensor(
        [[6, 8, 8, 7], [8, 6, 8, 7], [8, 8, 8, 9], [7, 7, 9, 1]]
    )
    torch.testing.assert_close(mask_overlaps(masks), expected)
    scores = torch.tensor([0.7, 0.9, 0.8, 0.1])
    assert PairFilters(max_overlap=0.6).regions(masks, scores).tolist() == [0, 1, 3]  # the third overlaps the second
    assert PairFilters(max_overlap=0.4).regions(masks, scores).tolist() == [1, 3]
    assert PairFilters(max_overlap=0.6).regions(masks, torch.ones(4)).tolist() == [0, 1, 3]  # the first counts


def test_pairs_are_filtered_by_similarity_and_margin(tmp_path: Path) -> None:
    clip = tiny.clip(tmp_path)
    pairs = mine(MiningTask(clip), batch())
    similarity, margin = sorted(pair.similarity for pair in pairs)[2], sorted(pair.margin for pair in pairs)[2]
    similar = mine(MiningTask(clip, filters=PairFilters(min_similarity=similarity)), batch())
    assert similar == [pair for pair in pairs if pair.similarity >= similarity] and len(similar) == 3
    distinct = mine(MiningTask(clip, filters=PairFilters(min_margin=margin)), batch())
    assert distinct == [pair for pair in pairs if pair.margin >= margin] and len(distinct) == 3


def test_filters_refuse_numbers_that_mean_nothing() -> None:
    with pytest.raises(InputError, match=r"filters\.max_overlap is 50; give a number from 0 to 1"):
        PairFilters(max_overlap=50)


def test_settings_tell_networks_by_their_weights(tmp_path: Path) -> None:
    first = MiningTask(tiny.clip(tmp_path / "a")).settings()
    assert MiningTask(tiny.clip(tmp_path / "b"), mask_threshold=0.3).settings() == first  # there are no proposals
    assert MiningTask(tiny.clip(tmp_path / "c", seed=1)).settings()["clip"] != first["clip"]
    other = MiningTask(tiny.clip(tmp_path / "d"), filters=PairFilters(min_area=0.1)).settings()
    assert {name for name in first if first[name] != other[name]} == {"min_area"}
