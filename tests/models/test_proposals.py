"""The proposal network compared with Hugging Face's, its loading and its refusals."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from ovseg.models import MaskProposer
from ovseg.models.proposals.queries import IMAGE_MEAN, IMAGE_STD
from ovseg.structures import InputError
from tests import tiny

CLASSIFIERS = {
    "swin": (tiny.SWIN, SwinConfig, SwinForImageClassification),
    "resnet": (tiny.RESNET, ResNetConfig, ResNetForImageClassification),
}


def classifier(backbone: str, folder: Path, **changes: Any) -> torch.nn.Module:
    """Save a classification network to `folder` in the format of the hub."""
    values, config, network = CLASSIFIERS[backbone]
    model = network(config(**{k: v for k, v in (values | changes).items() if k not in ("model_type", "out_features")}))
    model.save_pretrained(folder)
    return model


def same_answers(one: MaskProposer, other: MaskProposer) -> None:
    """Check that embeddings and masks of every layer are identical."""
    images = tiny.images((64, 64))
    with torch.no_grad():
        for ours, theirs in zip(one.eval()(images), other.eval()(images), strict=True):
            assert torch.equal(ours.mask_logits, theirs.mask_logits)
            assert torch.equal(ours.query_embeddings, theirs.query_embeddings)


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_masks_equal_those_of_hugging_face(tmp_path: Path, backbone: str) -> None:
    torch.manual_seed(0)
    hf = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**tiny.mask2former(CLASSIFIERS[backbone][0]))).eval()
    hf.save_pretrained(tmp_path)
    proposer = MaskProposer(str(tmp_path), tiny.DIM, head_width=32).eval()
    proposer.query_head = hf.class_predictor  # type: ignore[assignment]  # makes HF's class logits our embeddings
    images = torch.stack(tiny.images((64, 96), (64, 96)))
    layers = proposer(images)
    mean, std = torch.tensor(IMAGE_MEAN)[:, None, None], torch.tensor(IMAGE_STD)[:, None, None]
    last = hf((images - mean) / std, output_auxiliary_logits=True)
    expected = [(layer["masks_queries_logits"], layer["class_queries_logits"]) for layer in last.auxiliary_logits]
    expected.append((last.masks_queries_logits, last.class_queries_logits))
    assert len(layers) == 3 and layers[-1].mask_logits.shape == (2, 6, 16, 24)
    for layer, (mask_logits, class_logits) in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.mask_logits, mask_logits)
        torch.testing.assert_close(layer.query_embeddings, class_logits)


@torch.no_grad()
def test_class_logits_by_hand() -> None:
    proposer, texts = tiny.proposer(), F.normalize(torch.randn(3, tiny.DIM), dim=-1)
    images = tiny.images((64, 64))
    assert proposer(images)[-1].class_logits is None
    proposer.set_text_features(texts)
    answer = proposer(images)[-1]
    assert answer.class_logits is not None
    rows = [*texts, proposer.no_object_embedding[0]]
    expected = [[100 * torch.cosine_similarity(query, row, 0) for row in rows] for query in answer.query_embeddings[0]]
    torch.testing.assert_close(answer.class_logits[0], torch.tensor(expected), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_class_logits_keep_their_precision_under_autocast() -> None:
    proposer = tiny.proposer()
    proposer.set_text_features(F.normalize(torch.randn(3, tiny.DIM), dim=-1))
    with torch.autocast("cpu", torch.bfloat16):
        answer = proposer(tiny.images((64, 64)))[-1]
    assert answer.class_logits is not None and answer.class_logits.dtype == torch.float32


@torch.no_grad()
def test_padding_is_zeros_after_normalisation_to_a_multiple_of_32() -> None:
    proposer = tiny.proposer()
    mean = torch.tensor(IMAGE_MEAN)[:, None, None]  # zero once normalised
    small, large = tiny.images((40, 50), (64, 96))
    by_hand = mean.expand(3, 64, 96).clone()
    by_hand[:, :40, :50] = small
    alone = proposer([by_hand])[-1].mask_logits
    torch.testing.assert_close(proposer([small, large])[-1].mask_logits[:1], alone, rtol=1e-4, atol=1e-5)
    # on its own it is padded to 64 × 64: another input, another answer
    assert proposer([small])[-1].mask_logits.shape[2:] == (16, 16)
    torch.testing.assert_close(
        proposer([small])[-1].mask_logits, proposer([by_hand[:, :, :64]])[-1].mask_logits, rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_images_of_a_batch_are_independent() -> None:
    proposer = tiny.proposer()
    one, two = tiny.images((64, 64), (64, 64))
    together = proposer(torch.stack([one, two]))[-1].mask_logits
    torch.testing.assert_close(together[1:], proposer([two])[-1].mask_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_saving_and_loading_preserves_a_network(tmp_path: Path, backbone: str) -> None:
    proposer = tiny.proposer(CLASSIFIERS[backbone][0])
    proposer.set_text_features(torch.randn(5, tiny.DIM))  # the vocabulary is not saved
    proposer.save_pretrained(tmp_path / "saved")
    again = MaskProposer(str(tmp_path / "saved"))
    assert again.text_features is None
    proposer.text_features = None
    same_answers(proposer, again)


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_a_backbone_loads_weights_of_a_classifier(tmp_path: Path, backbone: str) -> None:
    model = classifier(backbone, tmp_path)
    encoder = MaskProposer(
        tiny.mask2former(CLASSIFIERS[backbone][0]), tiny.DIM, backbone=str(tmp_path)
    ).model.pixel_level_module.encoder
    expected = {k: v for k, v in model.state_dict().items() if not k.startswith("classifier")}
    loaded = {k: v for k, v in encoder.state_dict().items() if "hidden_states_norms" not in k}
    prefix = "resnet." if backbone == "resnet" else ""
    assert {prefix + key for key in loaded} == set(expected)
    assert all(torch.equal(value, expected[prefix + key]) for key, value in loaded.items())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"depths": [1, 1, 2, 1]}, r"\d+ unexpected \(swin\.encoder\.layers\.2\.blocks\.1"),
        ({"depths": [1, 1, 1]}, r"\d+ missing \(swin\.encoder"),
        ({"embed_dim": 32}, r"\d+ of another shape \(swin"),
    ],
)
def test_a_backbone_of_another_architecture_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    changes |= {"num_heads": [1] * len(changes.get("depths", "1234"))}
    classifier("swin", tmp_path, **changes)
    with pytest.raises(InputError, match=rf"backbone weights in .* do not fit: .*{problem}.*set backbone_config"):
        MaskProposer(tiny.mask2former(tiny.SWIN), tiny.DIM, backbone=str(tmp_path))


@pytest.mark.parametrize("option", ["model", "backbone"])
def test_an_unreachable_hub_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    arguments: dict[str, Any] = {"model": tiny.mask2former()} | {option: "somebody/something"}
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"'somebody/something' could not be loaded.*download config.*set `{option}`"):
        MaskProposer(**arguments)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("backbone", [None, {}, {"out_features": ["stage1"]}])
def test_a_config_without_a_backbone_is_refused(backbone: Any) -> None:
    with pytest.raises(InputError, match="needs a backbone_config with a model_type"):
        MaskProposer(tiny.mask2former() | {"backbone_config": backbone})


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tiny.proposer().save_pretrained(tmp_path)
    tiny.proposer(text_dim=16).save_pretrained(tmp_path / "other")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"does not fit this MaskProposer: 3 of another shape \(no_object_embedding"):
        MaskProposer(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="weights not found"):
        MaskProposer(str(tmp_path))


def test_texts_of_another_width_are_refused() -> None:
    with pytest.raises(
        InputError, match="text features of width 32, but those of this CLIP have width 512; use the CLIP that"
    ):
        tiny.proposer().set_text_features(torch.zeros(3, 512))


def test_every_trainable_weight_gets_a_gradient() -> None:
    """DDP waits for all of them."""
    for backbone in (tiny.SWIN, tiny.RESNET):
        proposer = tiny.proposer(backbone).train()
        proposer.set_text_features(torch.randn(3, tiny.DIM))
        layers = proposer(tiny.images((64, 64), (64, 64)))
        total = torch.stack([layer.mask_logits.sum() + layer.class_logits.sum() for layer in layers])  # type: ignore[union-attr]
        total.sum().backward()
        assert not [name for name, p in proposer.named_parameters() if p.requires_grad and p.grad is None]
