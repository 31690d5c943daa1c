"""Scores of many CLIPs on the same toy scenes: the proposals are made once, each CLIP names regions only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ovseg import rle
from ovseg.data import read_vocabulary
from ovseg.images import read_image, to_tensor
from ovseg.metrics import MeanIoU
from ovseg.models import CLIPAdapter, OpenVocabSegmenter, TextClassifier
from ovseg.models.proposals import LOGIT_SCALE
from ovseg.ops import (
    clip_scores,
    crop_regions,
    ensemble_scores,
    mask_probabilities,
    proposal_scores,
    semantic_labels,
)
from ovseg.structures import Vocabulary


class Crops(NamedTuple):
    """Masks of one scene as CLIP sees them."""

    masks: Tensor  # (M, H, W) in [0, 1]
    regions: Tensor  # (V, 3, s, s), of valid masks only
    region_masks: Tensor  # (V, s, s) bool
    valid: Tensor  # (M,) bool


class ToyScene(NamedTuple):
    """One benchmark scene: its true regions, and what the proposer found."""

    nouns: Tensor  # (M,) class of each true region
    labels: Tensor  # (H, W) int64
    truth: Crops
    proposals: Crops
    class_logits: Tensor  # (Q, K + 1) of the proposals' own classifier


def read_scenes(world: Path, segmenter: OpenVocabSegmenter, mask_threshold: float = 0.5) -> list[ToyScene]:
    """The scenes of a world's `val2017`, whose true regions cover them."""
    content = json.loads((world / "annotations" / "regions_val2017.json").read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    segmenter.set_vocabulary(read_vocabulary("toy"))
    scenes = []
    for image_id, name in files.items():
        found = [region for region in content["annotations"] if region["image_id"] == image_id]
        height, width = found[0]["segmentation"]["size"]
        masks = rle.decode([region["segmentation"]["counts"].encode() for region in found], (height, width))
        nouns = torch.tensor([region["category_id"] - 1 for region in found])
        image = to_tensor(read_image(world / "val2017" / name))
        with torch.no_grad():
            answer = segmenter.proposer([image])[-1]
        assert answer.class_logits is not None
        probs = mask_probabilities(answer.mask_logits[0], (height, width))
        size = segmenter.clip.image_size
        scenes.append(
            ToyScene(
                nouns,
                (masks * nouns[:, None, None]).sum(dim=0),
                _crops(image, masks.float(), 0.5, size),
                _crops(image, probs, mask_threshold, size),
                answer.class_logits[0],
            )
        )
    return scenes


def _crops(image: Tensor, masks: Tensor, threshold: float, size: int) -> Crops:
    regions, region_masks, valid = crop_regions(image, masks > threshold, size)
    return Crops(masks, regions[valid], region_masks[valid], valid)


@torch.no_grad()
def score(clip: CLIPAdapter | None, scenes: Sequence[ToyScene], weights: Sequence[float]) -> dict[str, float]:
    """Percentages of one CLIP, or of the proposals alone where it is None.

    `accuracy` is the share of true regions named right among all nouns, `miou` that of the whole segmenter (mIoU over
    the classes present) with each ensemble weight, `oracle` the mIoU where true regions are the proposals; all three
    also over seen and unseen nouns apart.
    """
    vocabulary = read_vocabulary("toy")
    seen = torch.tensor(vocabulary.seen)
    if clip is None:
        miou = _miou(vocabulary)
        for scene in scenes:
            _update(miou, proposal_scores(scene.class_logits), scene.proposals.masks, scene.labels)
        return _named(miou, "miou_0")
    texts = TextClassifier(clip)(vocabulary.names)
    mious = {f"miou_{weight:g}": _miou(vocabulary) for weight in weights}
    oracle, hits, nouns = _miou(vocabulary), [], []
    for scene in scenes:
        truth, found = _name(clip, texts, scene.truth), _name(clip, texts, scene.proposals)
        hits.append(truth.argmax(dim=1) == scene.nouns)
        nouns.append(scene.nouns)
        _update(oracle, clip_scores(truth, scene.truth.valid), scene.truth.masks, scene.labels)
        for weight, miou in zip(weights, mious.values(), strict=True):
            scores = ensemble_scores(scene.class_logits, found, scene.proposals.valid, weight)
            _update(miou, scores, scene.proposals.masks, scene.labels)
    right, known = torch.cat(hits).double(), seen[torch.cat(nouns)]
    parts = {"accuracy": right, "accuracy_seen": right[known], "accuracy_unseen": right[~known]}
    result = {name: 100 * float(part.mean()) for name, part in parts.items()}
    for name, miou in {**mious, "oracle": oracle}.items():
        result |= _named(miou, name)
    return result


def _name(clip: CLIPAdapter, texts: Tensor, crops: Crops) -> Tensor:
    """(M, K) logits, zero where invalid."""
    logits = torch.zeros(len(crops.valid), len(texts))
    logits[crops.valid] = LOGIT_SCALE * clip.encode_regions(crops.regions, crops.region_masks) @ texts.T
    return logits


def _miou(vocabulary: Vocabulary) -> MeanIoU:
    return MeanIoU(vocabulary.names, seen=vocabulary.seen)


def _update(miou: MeanIoU, scores: Tensor, masks: Tensor, labels: Tensor) -> None:
    miou.update(semantic_labels(scores, masks, (labels.shape[0], labels.shape[1])), labels)


def _named(miou: MeanIoU, name: str) -> dict[str, float]:
    found = miou.compute()
    return {f"{name}{part}": 100 * float(found[f"miou_union{part}"]) for part in ("", "_seen", "_unseen")}
