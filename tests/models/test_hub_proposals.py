"""Mask2Former and MaskFormer checkpoints from Hugging Face as proposers, compared with their own outputs."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
)

from ovseg.models import CropEncoder, MaskProposer, OpenVocabSegmenter
from ovseg.models.proposals.queries import IMAGE_MEAN, IMAGE_STD
from ovseg.structures import InputError
from tests import tiny
from tests.stages import ovseg

CLASSES = 5
LABELS: dict[str, Any] = {"id2label": {index: f"thing {index}" for index in range(CLASSES)}}
DECODER: dict[str, Any] = {
    "model_type": "detr",
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "num_queries": 6,
}
NAMES = ["cat", "red sky", "grass"]


def checkpoint(folder: Path, kind: str = "mask2former", backbone: dict[str, Any] = tiny.RESNET) -> Any:
    """Save a network with random weights to `folder` in the format of the hub."""
    torch.manual_seed(0)
    model: Any
    if kind == "mask2former":
        config = Mask2FormerConfig(**tiny.mask2former(backbone), **LABELS)
        model = Mask2FormerForUniversalSegmentation(config)
        model.model.transformer_module.queries_features.weight.data.mul_(10)  # makes the queries differ
    else:
        sizes: dict[str, Any] = {"fpn_feature_size": 32, "mask_feature_size": 32}
        model = MaskFormerForInstanceSegmentation(
            MaskFormerConfig(backbone_config=backbone, decoder_config=DECODER, **sizes, **LABELS)
        )
        model.model.transformer_module.queries_embedder.weight.data.mul_(1000)
        for name, parameter in model.model.transformer_module.named_parameters():
            parameter.data.mul_(10 if "attn" in name and parameter.ndim == 2 else 1)
    model.class_predictor.weight.data.mul_(3)
    model.save_pretrained(folder)
    return model.eval()


def segmenter(folder: Path, **settings: Any) -> OpenVocabSegmenter:
    checkpoint(folder / "hf")
    model = OpenVocabSegmenter(
        MaskProposer(str(folder / "hf")), CropEncoder(tiny.clip(folder / "clip")), **settings
    ).eval()
    model.set_vocabulary(NAMES)
    return model


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@pytest.mark.parametrize("kind", ["mask2former", "maskformer"])
def test_masks_and_objectness_equal_those_of_hugging_face(tmp_path: Path, kind: str, backbone: str) -> None:
    hf = checkpoint(tmp_path, kind, {"swin": tiny.SWIN, "resnet": tiny.RESNET}[backbone])
    proposer = MaskProposer(str(tmp_path)).eval()
    images = torch.stack(tiny.images((64, 96), (64, 96)))
    mean, std = torch.tensor(IMAGE_MEAN)[:, None, None], torch.tensor(IMAGE_STD)[:, None, None]
    expected, answer = hf((images - mean) / std), proposer(images)[-1]
    torch.testing.assert_close(answer.mask_logits, expected.masks_queries_logits)
    assert answer.objectness is not None and answer.objectness.shape == (2, 6)
    torch.testing.assert_close(answer.objectness, expected.class_queries_logits.softmax(-1)[..., :CLASSES].sum(-1))
    assert answer.objectness.std() > 0.01  # guards against a trivial comparison


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mask2former", "maskformer"])
def test_a_saved_proposer_is_the_same_without_class_names(tmp_path: Path, kind: str) -> None:
    checkpoint(tmp_path / "hf", kind)
    proposer = MaskProposer(str(tmp_path / "hf"))
    assert all(module.training for module in proposer.modules())  # Lightning keeps the mode of a network
    proposer.save_pretrained(tmp_path / "ours")
    again = MaskProposer(str(tmp_path / "ours"), text_dim=16)
    assert again.text_dim is None and again.no_object_embedding.shape == (1, 16)  # not learned yet
    for ours, theirs in zip(*(net.eval()(tiny.images((64, 64))) for net in (proposer, again)), strict=True):
        assert ours.objectness is not None and theirs.objectness is not None
        assert torch.equal(ours.mask_logits, theirs.mask_logits) and torch.equal(ours.objectness, theirs.objectness)
    assert "thing" not in (tmp_path / "ours" / "proposer.json").read_text()
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    assert not [key for key in weights if key.startswith(("query_head", "no_object"))]


def test_discarding_the_class_head_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint(tmp_path / "hf")
    with caplog.at_level(logging.INFO, "ovseg"):
        MaskProposer(str(tmp_path / "hf")).save_pretrained(tmp_path / "ours")
        MaskProposer(str(tmp_path / "ours"))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'hf'}: its class head (5 classes) is discarded, and CLIP alone classifies its masks until "
        "you train it with `ovseg fit --config conf/proposals.yaml`"
    ]


@torch.no_grad()
def test_scores_are_those_of_clip_times_objectness(tmp_path: Path) -> None:
    model = segmenter(tmp_path, mask_threshold=0.5)
    assert model.classifier == "clip"
    images = tiny.images((64, 64), (50, 70))
    answer = model.proposer(images)[-1]
    assert answer.class_logits is None and answer.objectness is not None
    for index, (image, (scores, probs)) in enumerate(zip(images, model.score_proposals(images), strict=True)):
        clip_logits, valid = model.classify_regions(image, probs > 0.5)
        for query in range(6):
            expected = answer.objectness[index, query] * clip_logits[query].softmax(0) * valid[query]
            torch.testing.assert_close(scores[query], expected)
        assert scores.sum() > 0
        by_hand = sum(score[:, None, None] * prob for score, prob in zip(scores, probs, strict=True))
        torch.testing.assert_close(model(images)[index], by_hand)


def test_classifiers_without_class_logits_are_refused(tmp_path: Path) -> None:
    model = segmenter(tmp_path)
    others: list[Any] = ["ensemble", "proposals"]
    for wanted in others:
        with pytest.raises(InputError, match=rf"'{wanted}' needs proposals that were trained.*conf/proposals\.yaml"):
            OpenVocabSegmenter(model.proposer, model.region_encoder, classifier=wanted)
        with pytest.raises(InputError, match="or use classifier 'clip'"):
            model.classifier = wanted
    assert model.classifier == "clip"
    with pytest.raises(InputError, match="classifier is 'both'; give one of ensemble, clip, proposals"):
        model.classifier = "both"  # type: ignore[assignment]


@torch.no_grad()
def test_a_bundle_with_any_clip_gives_the_same_labels(tmp_path: Path) -> None:
    model = segmenter(tmp_path)
    model.clip.save_pretrained(tmp_path / "saved")  # its width differs from all defaults
    ovseg("bundle", "--proposer", tmp_path / "hf", "--clip", tmp_path / "saved", "--out", tmp_path / "out")
    again = OpenVocabSegmenter.from_pretrained(tmp_path / "out")
    again.set_vocabulary(NAMES)
    assert again.classifier == "clip"
    images = tiny.images((64, 64))
    assert torch.equal(again(images)[0], model(images)[0])


def test_backbone_weights_apply_to_random_networks_only(tmp_path: Path) -> None:
    """A config that sets `backbone` can therefore start from a checkpoint."""
    hf = checkpoint(tmp_path)
    encoder = MaskProposer(str(tmp_path), backbone="somebody/something").model.pixel_level_module.encoder
    for key, value in hf.model.pixel_level_module.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[key], value)


def test_half_precision_weights_become_single(tmp_path: Path) -> None:
    checkpoint(tmp_path).half().save_pretrained(tmp_path)
    proposer = MaskProposer(str(tmp_path))
    assert {tensor.dtype for tensor in proposer.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert proposer.objectness_head is not None


def test_a_swin_saved_by_transformers_4_is_complete(tmp_path: Path) -> None:
    """Published checkpoints lack an unused norm, and hold a table determined by the window."""
    hf, file = checkpoint(tmp_path, backbone=tiny.SWIN), tmp_path / "model.safetensors"
    weights = {key: value for key, value in load_file(file).items() if ".swin.layernorm." not in key}
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self"
    save_file(weights | {f"{block}.relative_position_index": torch.zeros(16, 16)}, file, {"format": "pt"})
    assert len(weights) == len(hf.state_dict()) - 2
    expected = hf.model.state_dict()
    for key, value in MaskProposer(str(tmp_path)).model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def change_weights(folder: Path, drop: str = "", add: str = "") -> None:
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not drop or not k.startswith(drop)}
    save_file(weights | ({add: torch.zeros(1)} if add else {}), folder / "model.safetensors", {"format": "pt"})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES: dict[str, tuple[Any, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"no proposal network in .*hf; use a \.ckpt"),
    "half a config": (lambda f: cut(f / "config.json"), r"could not be loaded \(.*not a valid JSON"),
    "another kind": (lambda f: change_config(f, model_type="detr"), "is not a mask proposal network .* detr"),
    "no kind": (lambda f: change_config(f, model_type=None), "is not a mask proposal network .* None"),
    "another network": (
        lambda f: change_config(f, model_type="maskformer"),
        r"do not fit its config.json: \d+ missing",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors.*fetch its config"),
    "half the weights": (lambda f: cut(f / "model.safetensors"), r"could not be loaded \(.*fetch its config\.json"),
    "missing": (lambda f: change_weights(f, "class_predictor"), r"2 missing \(class_predictor\.bias, …\); fetch both"),
    "unexpected": (lambda f: change_weights(f, add="adapter"), r"1 unexpected \(adapter, …\)"),
    "of another shape": (
        lambda f: change_config(f, num_queries=7),
        r"2 of another shape \(model\.transformer_module\.queries_",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    checkpoint(tmp_path / "hf")
    spoil, problem = DAMAGES[damage]
    spoil(tmp_path / "hf")
    with pytest.raises(InputError, match=problem) as refusal:
        MaskProposer(str(tmp_path / "hf"))
    assert "\n" not in str(refusal.value)


def test_a_missing_path_is_not_requested_from_the_hub(tmp_path: Path) -> None:
    for name in (tmp_path / "nothing", "./nothing", "../some/where"):
        with pytest.raises(InputError, match=r"no proposal network in .*(nothing|where); use a \.ckpt"):
            MaskProposer(str(name))


class Payload:
    """Create a folder when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_pickled_weights_are_loaded_but_payloads_never_run(tmp_path: Path) -> None:
    hf = checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    file, trace = tmp_path / "hf" / "pytorch_model.bin", tmp_path / "trace"
    torch.save(hf.state_dict(), file)
    again = MaskProposer(str(tmp_path / "hf"))
    assert torch.equal(again.objectness_head.weight, hf.class_predictor.weight)  # type: ignore[union-attr]
    torch.save(hf.state_dict() | {"more": Payload(trace)}, file)
    with pytest.raises(InputError, match=r"hold Python objects, which ovseg never executes; use its model\.safet"):
        MaskProposer(str(tmp_path / "hf"))
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()  # proves that the payload works


@pytest.mark.parametrize("width", [16, 700])
def test_text_features_of_any_width_are_accepted(tmp_path: Path, width: int) -> None:
    checkpoint(tmp_path)
    proposer = MaskProposer(str(tmp_path))
    proposer.set_text_features(F.normalize(torch.randn(3, width), dim=-1))
    assert proposer(tiny.images((64, 64)))[-1].class_logits is None
