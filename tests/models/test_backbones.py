"""Backbones of proposal networks: pretrained weights of Hugging Face and timm, and stochastic depth."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.resnet import Bottleneck, ResNet
from transformers import SwinConfig, SwinForImageClassification

from ovseg.models import MaskProposer
from ovseg.structures import InputError
from tests import tiny

DEEPLAB: dict[str, Any] = {
    "model_type": "deeplab_resnet",
    "depths": [1, 1, 1, 3],
    "hidden_sizes": [16, 32, 32, 32],
    "stem_size": 16,
}


def maskformer(backbone: dict[str, Any]) -> dict[str, Any]:
    """Return values of a `MaskFormerConfig`."""
    decoder = {"model_type": "detr", "d_model": 32, "decoder_ffn_dim": 32, "decoder_layers": 1}
    return {
        "model_type": "maskformer",
        "backbone_config": backbone,
        "decoder_config": decoder | {"decoder_attention_heads": 2, "num_queries": 6},
        "fpn_feature_size": 32,
        "mask_feature_size": 32,
    }


def encoder_of(model: dict[str, Any], backbone: Path | None = None) -> Any:
    proposer = MaskProposer(model, tiny.DIM, None if backbone is None else str(backbone), head_width=32)
    return proposer.model.pixel_level_module.encoder


def timm_resnet(folder: Path, **changes: Any) -> ResNet:
    """Save a classification network as on timm's hub pages, such as that of resnet101s."""
    settings: dict[str, Any] = {"layers": (1, 1, 1, 3), "stem_width": 8, "channels": (4, 8, 8, 8), "num_classes": 7}
    network = ResNet(Bottleneck, stem_type="deep", **(settings | changes))  # type: ignore[arg-type]
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet101s", "num_classes": 7}))
    return network


def test_deeplab_resnet_loads_weights_of_timm(tmp_path: Path) -> None:
    expected = timm_resnet(tmp_path).state_dict()
    loaded = encoder_of(maskformer(DEEPLAB), tmp_path).network.state_dict()
    assert expected.keys() - loaded.keys() == {"fc.weight", "fc.bias"} | {
        key for key in expected if key.endswith("num_batches_tracked")
    }
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


def test_deeplab_resnet_of_another_depth_is_refused(tmp_path: Path) -> None:
    timm_resnet(tmp_path, layers=(1, 1, 2, 3))
    with pytest.raises(InputError, match=r"do not fit: \d+ unexpected \(network\.layer3\.1"):
        encoder_of(maskformer(DEEPLAB), tmp_path)


@pytest.mark.parametrize("indices", [False, True])
def test_swin_of_maskformer_loads_weights_of_a_classifier(tmp_path: Path, indices: bool) -> None:
    torch.manual_seed(0)
    config = SwinConfig(**{key: value for key, value in tiny.SWIN.items() if key not in ("model_type", "out_features")})
    SwinForImageClassification(config).save_pretrained(tmp_path)
    fresh = encoder_of(maskformer(tiny.SWIN))
    tables = {key: value for key, value in fresh.state_dict().items() if key.endswith("relative_position_index")}
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    if indices:  # older files on the hub have these tables
        save_file({**weights, **{key.replace("model.", "swin."): value for key, value in tables.items()}}, file)
    loaded = encoder_of(maskformer(tiny.SWIN), tmp_path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tables.items())
    expected = {key.replace("swin.", "model."): value for key, value in weights.items() if key.startswith("swin.")}
    assert len(expected) > 60 and expected.keys() == {
        key for key in loaded if key not in tables and "hidden_states_norms" not in key
    }
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


@torch.no_grad()
@pytest.mark.parametrize("branch", ["attention", "mlp"])
@pytest.mark.parametrize("network", ["mask2former", "maskformer"])
def test_stochastic_depth_drops_attention_and_mlp_of_whole_images(network: str, branch: str) -> None:
    """As in Swin's original code, each branch is dropped once; Hugging Face's drops attention only."""
    torch.manual_seed(0)
    swin = tiny.SWIN | {"drop_path_rate": 0.5}
    encoder = copy.deepcopy(encoder_of(tiny.mask2former(swin) if network == "mask2former" else maskformer(swin)))
    block = (encoder.swin if network == "mask2former" else encoder.model).encoder.layers[-1].blocks[0]
    silent = ("attention.",) if branch == "mlp" else ("mlp.", "intermediate.", "output.")
    for name, parameter in block.named_parameters():
        parameter.zero_() if name.startswith(silent) else parameter.normal_()
    tokens = torch.randn(64, 64, block.layernorm_before.normalized_shape[0])  # (B, 8 x 8, C): several windows
    added, kept = block.eval()(tokens, (8, 8))[0] - tokens, block.train()(tokens, (8, 8))[0] - tokens
    dropped = (kept == 0).flatten(1).all(dim=1)
    assert 16 < dropped.sum() < 48
    torch.testing.assert_close(kept[~dropped], 2 * added[~dropped], rtol=1e-4, atol=1e-4)
    encoder.eval()
    assert torch.equal(block(tokens, (8, 8))[0] - tokens, added)
