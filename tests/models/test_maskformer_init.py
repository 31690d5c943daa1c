"""A MaskFormer has the release's initial distributions, worked out by hand for the paper's widths."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from ovseg.models import MaskProposer

UNIFORM = {  # parameters outside the backbone → standard deviation of a uniform distribution about 0
    r"decoder\.layers\.\d\.(self|encoder)_attn\.[qkv]_proj\.weight": (2 / (768 + 256))
    ** 0.5,  # bound of the joint matrix
    r"decoder\.layers\.\d\.(self|encoder)_attn\.o_proj\.weight": (2 / (256 + 256)) ** 0.5,
    r"decoder\.layers\.\d\.mlp\.fc[12]\.weight": (2 / (256 + 2048)) ** 0.5,
    r"decoder\.layers\.\d\.mlp\.fc1\.bias": (3 * 256) ** -0.5,
    r"decoder\.layers\.\d\.mlp\.fc2\.bias": (3 * 2048) ** -0.5,
    r"fpn\.stem\.0\.weight": (9 * 2048) ** -0.5,
    r"fpn\.layers\.0\.proj\.0\.weight": 1024**-0.5,
    r"fpn\.layers\.1\.proj\.0\.weight": 512**-0.5,
    r"fpn\.layers\.2\.proj\.0\.weight": 256**-0.5,
    r"fpn\.layers\.\d\.block\.0\.weight|mask_projection\.weight": (9 * 256) ** -0.5,
    r"input_projection\.weight": 2048**-0.5,
    r"^mask_head\.\d\.0\.(weight|bias)|query_head\.0\.(weight|bias)": (3 * 256) ** -0.5,
    r"query_head\.2\.(weight|bias)": (3 * 1024) ** -0.5,
}
NORMAL = {r"queries_embedder\.weight": 1.0, r"no_object_embedding": 512**-0.5}
ZERO = r"_proj\.bias|mask_projection\.bias|input_projection\.bias|norm\.bias|(stem|proj|block)\.1\.bias"
ONE = r"norm\.weight|(stem|proj|block)\.1\.weight"


@pytest.fixture(scope="module")
def parameters() -> dict[str, Tensor]:
    torch.manual_seed(0)
    backbone = {"model_type": "deeplab_resnet", "depths": [1, 1, 1, 3]}
    decoder = {"model_type": "detr", "num_queries": 100, "decoder_layers": 2}
    model = {"model_type": "maskformer", "backbone_config": backbone, "decoder_config": decoder}
    named = MaskProposer(model, text_dim=512).named_parameters()
    return {name: parameter.detach() for name, parameter in named if ".encoder." not in name}


def test_initial_distributions(parameters: dict[str, Tensor]) -> None:
    remaining = dict(parameters)
    for kind, table in (("uniform", UNIFORM), ("normal", NORMAL)):
        for pattern, deviation in table.items():
            names = [name for name in remaining if re.search(pattern, name)]
            assert names, pattern
            for name in names:
                values = remaining.pop(name).flatten().double()
                tolerance = 5 / (2 * len(values)) ** 0.5  # 5 standard errors of a normal distribution
                assert values.std().item() == pytest.approx(deviation, rel=tolerance), name
                assert abs(values.mean().item()) < 5 * deviation / len(values) ** 0.5, name
                assert (values.abs().max() <= 3**0.5 * deviation * 1.00001) == (kind == "uniform"), name
    for name, values in remaining.items():  # constants
        expected = 0.0 if re.search(ZERO, name) else 1.0 if re.search(ONE, name) else None
        assert expected is not None and (values == expected).all(), name


def test_layers_are_initialised_independently(parameters: dict[str, Tensor]) -> None:
    first, second = (f"model.transformer_module.decoder.layers.{layer}.mlp.fc1.weight" for layer in (0, 1))
    assert not torch.equal(parameters[first], parameters[second])
