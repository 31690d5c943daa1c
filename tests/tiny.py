"""The real networks at the smallest size their libraries allow, with random weights; cheap to build."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from ovseg.models import CLIPAdapter, CropEncoder, MaskProposer, OpenVocabSegmenter

DIM = 32  # width of CLIP's embedding space
TOY_CLIP = Path(__file__).parent.parent / "conf" / "toy" / "clip"  # its small tokenizer loads fast

CLIP: dict[str, Any] = {
    "embed_dim": DIM,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 916, "width": 64, "heads": 2, "layers": 1},
}

RN: dict[str, Any] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
"""The image tower of a CLIP without patch tokens."""

STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "out_features": STAGES,
}
SWIN: dict[str, Any] = {
    "model_type": "swin",
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window_size": 4,
    "image_size": 64,
    "out_features": STAGES,
}


def mask2former(backbone: dict[str, Any] = RESNET) -> dict[str, Any]:
    """Return values of a `Mask2FormerConfig` with 6 queries and 2 decoder layers."""
    return {
        "backbone_config": backbone,
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "encoder_layers": 1,
        "decoder_layers": 3,  # HF counts the initial queries
        "num_attention_heads": 2,
        "num_queries": 6,
    }


def proposer(backbone: dict[str, Any] = RESNET, text_dim: int = DIM, seed: int = 0) -> MaskProposer:
    torch.manual_seed(seed)
    return MaskProposer(mask2former(backbone), text_dim, head_width=32).eval()


def clip_folder(folder: Path, **changes: Any) -> str:
    """Write a folder with the config and tokenizer of a CLIP, without weights; `changes` update its `model_cfg`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP | changes}))
    shutil.copy(TOY_CLIP / "merges.txt.gz", folder)
    return str(folder)


def clip(folder: Path, prompt_depth: int | None = None, seed: int = 0) -> CLIPAdapter:
    torch.manual_seed(seed)
    return CLIPAdapter(clip_folder(folder), prompt_depth=prompt_depth).eval()


def segmenter(folder: Path, fill: Literal["mean", "zero"] = "mean", **settings: Any) -> OpenVocabSegmenter:
    """Build an untrained segmenter, scaled so that masks differ, classes compete and both branches disagree."""
    network, texts = proposer(seed=4), clip(folder, prompt_depth=2)
    with torch.no_grad():
        network.model.transformer_module.queries_features.weight.mul_(10)
        for name, parameter in network.named_parameters():
            if "mask_embedder" in name and parameter.ndim == 2:
                parameter.mul_(4)
            if "mask_projection" in name:
                parameter.mul_(3 if parameter.ndim > 1 else 0)
            if "query_head" in name and parameter.ndim == 1:
                parameter.zero_()
        for name, parameter in texts.clip.named_parameters():
            if any(part in name for part in ("out_proj.weight", "c_proj.weight", "token_embedding")):
                parameter.mul_(30)
    return OpenVocabSegmenter(network, CropEncoder(texts, fill), resize=(64, 128), **settings).eval()


def images(*sizes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    """Return random smooth images (3, h, w) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.rand(1, 3, 5, 5, generator=generator) for _ in sizes]
    return [
        torch.nn.functional.interpolate(image, size, mode="bilinear")[0]
        for image, size in zip(coarse, sizes, strict=True)
    ]
