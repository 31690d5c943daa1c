"""The weights that the release's MaskFormer starts its training from; Hugging Face's starts from others."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

JOINT = ("q_proj", "k_proj", "v_proj")


def start_as_released(model: Any) -> None:
    """Draw the weights of a `transformers.MaskFormerModel` anew, all but its backbone's.

    Decoder: Xavier uniform, queries N(0, 1). Pixel decoder and input projection: Kaiming uniform with a = 1 and zero
    biases, which Caffe2 calls Xavier.
    """
    transformer, pixel_decoder = model.transformer_module, model.pixel_level_module.decoder
    nn.init.normal_(transformer.queries_embedder.weight)
    for name, part in transformer.decoder.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        if "attn" not in name:
            part.reset_parameters()  # torch's biases; those of attention are zero already
        # torch's attention holds queries, keys and values in one matrix (3C, C), and Xavier's bound is that one's
        rows = part.out_features * (3 if name.endswith(JOINT) else 1)
        bound = math.sqrt(6 / (rows + part.in_features))
        nn.init.uniform_(part.weight, -bound, bound)
    for part in (*pixel_decoder.modules(), transformer.input_projection):
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, a=1)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
