"""The whole model compared with the released implementation (golden g4), loaded from a file in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.losses import MaskFormerLoss
from ovseg.models import MaskProposer, import_released
from tests.parity import goldens

NAMES = ("swin", "r50c")


def released_file(name: str, folder: Path) -> Path:
    """Return the golden weights in the layout of the authors' file."""
    weights = goldens.state(f"g4_{name}_state")
    rows, ids = weights.pop("token_rows"), weights.pop("token_ids")
    embedding = torch.zeros(49408, rows.shape[1])
    embedding[ids] = rows
    weights["clip_adapter.clip_model.token_embedding.weight"] = embedding
    path = folder / f"ovseg_{name}.pth"
    torch.save({"model": weights, "iteration": 120000}, path)
    return path


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    name: str = request.param
    path = released_file(name, tmp_path_factory.mktemp(name))
    segmenter = import_released(path, decoder_heads=4, mask_threshold=0.5)
    arrays, details = goldens.arrays(f"g4_{name}"), goldens.details(f"g4_{name}")
    segmenter.set_vocabulary(details["class_names"])
    return segmenter, arrays, details


def images(arrays: dict[str, Tensor]) -> list[Tensor]:
    return [arrays[f"image{index}"].float() / 255 for index in (0, 1)]


def as_stored(scores: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
    """Select the pixels whose scores are stored: every one, or every third."""
    step = -(-scores.shape[1] // stored.shape[1])
    return scores[:, ::step, ::step], stored


def close_scores(part: str, scores: Tensor, expected: Tensor) -> None:
    goldens.close(part, scores, expected, 0, 1e-3)
    differing = float((scores.argmax(0) != expected.argmax(0)).float().mean())
    goldens.record("whole model: share of pixels with another label", differing, expected[0].numel())
    assert differing <= 0.0005


@torch.no_grad()
def test_proposals_equal_the_release(golden: tuple[Any, ...]) -> None:
    segmenter, arrays, _ = golden
    answer = segmenter.proposer(images(arrays))[-1]
    goldens.close("proposals: query embeddings", answer.query_embeddings, arrays["pred_embed"])
    goldens.close("proposals: mask logits", answer.mask_logits, arrays["pred_masks"])
    for index in (0, 1):
        expected = arrays[f"i{index}_sim_logits"]
        goldens.close("proposals: class logits (up to 100)", answer.class_logits[index], expected, 2e-4, 2e-4)


@torch.no_grad()
def test_scores_equal_the_release(golden: tuple[Any, ...]) -> None:
    segmenter, arrays, _ = golden
    sizes = [tuple(size) for size in arrays["out_sizes"].tolist()]
    for index, scores in enumerate(segmenter(images(arrays), sizes)):
        close_scores("whole model: scores", *as_stored(scores, arrays[f"i{index}_sem_seg"]))


def test_training_equals_the_release(golden: tuple[Any, ...]) -> None:
    segmenter, arrays, details = golden
    proposer: MaskProposer = segmenter.proposer
    criterion = MaskFormerLoss(len(details["class_names"]))
    masks = []
    for index, image in enumerate(images(arrays)):
        unpacked = goldens.unpack(arrays[f"train_masks{index}_packed"], -1, *image.shape[1:]).float()
        masks.append(F.pad(unpacked, (0, 128 - image.shape[2], 0, 96 - image.shape[1])))
    classes = [arrays[f"train_labels{index}"].long() for index in (0, 1)]
    layers = proposer(images(arrays))
    for suffix, layer in zip(("_0", "_1", ""), layers, strict=True):
        losses = criterion.of_masks([layer], masks, classes)
        for ours, theirs in (("cross_entropy", "ce"), ("mask", "mask"), ("dice", "dice")):
            expected = details["losses"][f"loss_{theirs}{suffix}"]
            goldens.close("training: losses", losses[f"loss_{ours}"].detach(), torch.tensor(expected), 1e-4, 1e-6)
    proposer.zero_grad()
    criterion.of_masks(layers, masks, classes)["loss"].backward()
    for name, parameter in {
        "sem_seg_head.predictor.query_embed.weight": proposer.model.transformer_module.queries_embedder.weight,
        "clip_adapter.non_object_embedding": proposer.no_object_embedding,
        "sem_seg_head.predictor.class_embed.layers.1.weight": proposer.query_head[2].weight,
        "sem_seg_head.pixel_decoder.mask_features.bias": proposer.model.pixel_level_module.decoder.mask_projection.bias,
    }.items():
        assert parameter.grad is not None
        goldens.close("training: gradients", parameter.grad, arrays[f"grad__{name}"])


@torch.no_grad()
@pytest.mark.parametrize("variant", ["noprompt", "noensemble", "cliponly"])
def test_variants_equal_the_release(golden: tuple[Any, ...], variant: str) -> None:
    segmenter, arrays, _ = golden
    prompt, classifier = segmenter.clip.visual.prompt, segmenter.classifier
    segmenter.classifier = {"noensemble": "proposals", "cliponly": "clip"}.get(variant, classifier)
    if variant == "noprompt":
        segmenter.clip.visual.prompt = None
    try:
        sizes = [tuple(size) for size in arrays["out_sizes"].tolist()]
        for index, scores in enumerate(segmenter(images(arrays), sizes)):
            stored = arrays[f"var_{variant}_i{index}"]
            close_scores(f"whole model: scores, {variant}", *as_stored(scores, stored))
    finally:
        segmenter.clip.visual.prompt, segmenter.classifier = prompt, classifier


@torch.no_grad()
def test_invalid_proposals_equal_the_release(golden: tuple[Any, ...]) -> None:
    segmenter, arrays, _ = golden
    threshold, classifier = segmenter.mask_threshold, segmenter.classifier
    segmenter.mask_threshold = float(arrays["thrhi_value"])
    try:
        for name, kind in (("var_thrhi_i0", "ensemble"), ("var_thrhi_cliponly_i0", "clip")):
            segmenter.classifier = kind
            stored = arrays[name]
            (scores,) = segmenter(images(arrays)[:1], [tuple(stored.shape[1:])])
            goldens.close("whole model: scores, invalid proposals", scores, stored, 0, 1e-3)
    finally:
        segmenter.mask_threshold, segmenter.classifier = threshold, classifier
