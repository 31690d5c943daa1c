"""Initialise a MaskFormer for training as the release does, which differs from Hugging Face's initialisation."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

JOINT = ("q_proj", "k_proj", "v_proj")


def initialise_as_released(model: Any) -> None:
    """Initialise all weights of a `transformers.MaskFormerModel` except the backbone's.

    Decoder: Xavier uniform; queries: N(0, 1). Pixel decoder and input projection: Kaiming uniform with a = 1 and zero
    biases, which Caffe2 calls Xavier.
    """
    transformer, pixel_decoder = model.transformer_module, model.pixel_level_module.decoder
    nn.init.normal_(transformer.queries_embedder.weight)
    for name, part in transformer.decoder.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        if "attn" not in name:
            part.reset_parameters()  # torch's default biases; those of attention are already zero
        # torch's attention holds queries, keys and values in one matrix (3C, C), whose shape determines Xavier's bound
        rows = part.out_features * (3 if name.endswith(JOINT) else 1)
        bound = math.sqrt(6 / (rows + part.in_features))
        nn.init.uniform_(part.weight, -bound, bound)
    for part in (*pixel_decoder.modules(), transformer.input_projection):
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, a=1)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
