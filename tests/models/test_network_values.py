"""Configs of proposal networks from strangers: only their shape is used, nothing is downloaded or run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from ovseg.models import MaskProposer
from ovseg.models.network_values import MASK_NETWORKS, TEXT_TOWERS, shape_of
from ovseg.structures import InputError
from tests import tiny

CODE = {"auto_map": {"AutoConfig": "payload.Config", "AutoModel": "payload.Model"}}
KERNEL = {"attn_implementation": "somebody/kernel"}
TIMM = {"model_type": "timm_backbone", "backbone": "hf-hub:somebody/tower"}


@pytest.mark.parametrize("place", ["folder", "checkpoint", "values"])
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"backbone_config": TIMM}, "has model_type 'timm_backbone', which is not supported here; use one of swin, "),
        ({"backbone_config": {"model_type": "dinov2"}}, "has model_type 'dinov2'"),
        (
            {"model_type": "oneformer"},
            "has model_type 'oneformer', which is not supported here; use one of mask2former",
        ),
        (
            {"backbone_config": tiny.RESNET | KERNEL},
            "sets 'attn_implementation' of resnet, which is not part of a",
        ),
        (KERNEL, "sets 'attn_implementation' of mask2former, which is not part of a network's shape; remove it"),
        ({"backbone": "somebody/tower"}, "sets 'backbone' of mask2former"),
        (CODE, "sets 'auto_map' of mask2former"),
        ({"quantization_config": {"quant_method": "awq"}}, "sets 'quantization_config' of mask2former"),
        ({"num_queries": "six"}, "no network can be built from"),
    ],
)
def test_values_beyond_the_shape_of_proposals_are_refused(
    tmp_path: Path, place: str, values: dict[str, Any], reason: str
) -> None:
    proposer = tiny.proposer()
    proposer.save_pretrained(tmp_path / "proposer")
    file, model = tmp_path / "proposer" / "proposer.json", proposer.architecture()
    model["model"] |= values
    if place == "folder":
        file.write_text(json.dumps(model))
    elif place == "checkpoint":
        state = {f"proposer.{key}": value for key, value in proposer.state_dict().items()}
        torch.save({"state_dict": state, "architectures": {"proposer": model}}, tmp_path / "last.ckpt")
    source: Any = {"folder": str(file.parent), "checkpoint": str(tmp_path / "last.ckpt"), "values": model["model"]}
    with pytest.raises(InputError, match=rf"^[^\n]*{reason}[^\n]*$"):
        MaskProposer(source[place])


@torch.no_grad()
def test_only_the_shape_is_used_of_a_config_from_hugging_face(tmp_path: Path) -> None:
    """Such files hold many other values, so these are dropped instead of refused."""
    torch.manual_seed(0)
    Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**tiny.mask2former())).save_pretrained(tmp_path)
    expected = MaskProposer(str(tmp_path))
    requests: dict[str, Any] = CODE | KERNEL | {"backbone": "somebody/tower", "use_timm_backbone": True}
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | requests | {"backbone_config": values["backbone_config"] | KERNEL}))
    again = MaskProposer(str(tmp_path))
    for ours, theirs in zip(*(net.eval()(tiny.images((64, 64))) for net in (again, expected)), strict=True):
        assert torch.equal(ours.mask_logits, theirs.mask_logits)
    assert again.model.config._attn_implementation != KERNEL["attn_implementation"]
    config.write_text(json.dumps(values | {"backbone_config": TIMM}))
    with pytest.raises(InputError, match=r"the config\.json of .* has model_type 'timm_backbone'"):
        MaskProposer(str(tmp_path))


DECODER = {"model_type": "detr", "d_model": 32, "decoder_layers": 2, "dropout": 0.1, "num_queries": 7}
MASKFORMER = {"model_type": "maskformer", "backbone_config": tiny.SWIN, "decoder_config": DECODER}


@pytest.mark.parametrize("values", [MASKFORMER, tiny.mask2former(tiny.SWIN), tiny.mask2former(), *TEXT_TOWERS])
def test_the_shape_rebuilds_the_config(values: Any) -> None:
    """A config built from the shape alone equals the original config of transformers."""
    kind = values if isinstance(values, str) else values.get("model_type", "mask2former")
    arguments = {"vocab_size": 9} if isinstance(values, str) else {k: v for k, v in values.items() if k != "model_type"}
    config = CONFIG_MAPPING[kind](**arguments)
    shape = shape_of(config.to_dict(), "this", (kind,), strict=kind in MASK_NETWORKS)
    again = CONFIG_MAPPING[shape.pop("model_type")](**shape)
    assert again.to_dict() == config.to_dict()
    assert shape.items() >= arguments.items() if isinstance(values, str) else shape.keys() >= arguments.keys()
