"""Split open_clip's image towers into stages, so that tokens can be replaced between transformer blocks.

Only this file and those of the two kinds of towers depend on the internals of open_clip's and timm's vision
transformers. `tests/models/test_towers.py` checks that the stages together compute what the public `forward` computes.
"""

from __future__ import annotations

from typing import Any

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from ovseg.models.clip.open_clip_tower import OpenClipTower
from ovseg.models.clip.timm_tower import TimmTower
from ovseg.structures import InputError

Tower = OpenClipTower | TimmTower
PLAIN = (VisionTransformer, TimmViT, Eva)  # exact types, because subclasses may compute something else


def split_tower(visual: nn.Module) -> Tower:
    """Split an image tower into its stages.

    Raises:
        InputError: the tower has no patch tokens, drops some of them, or does not pool them into one feature.
    """
    trunk, kind = _trunk(visual)
    if type(trunk) not in PLAIN:
        raise InputError(
            f"the image tower is a {kind}, which has no patch tokens, but mask prompts and single passes need them; "
            "choose a plain vision transformer from open_clip, such as ViT-B-16, ViT-B-16-SigLIP or EVA02-B-16"
        )
    check_pooled(visual)
    if not isinstance(getattr(trunk, "rope", None), RotaryEmbeddingCat | None):
        raise InputError(
            f"the image tower, a {kind}, has rotary position embeddings of an unsupported kind; choose another CLIP"
        )
    dropout = getattr(trunk, "patch_dropout", getattr(trunk, "patch_drop", None))
    if not isinstance(dropout, nn.Identity | None):
        raise InputError("the image tower drops patches in training, but mask prompts need all; set patch_dropout: 0")
    return TimmTower(visual) if isinstance(visual, TimmModel) else OpenClipTower(visual)


def check_pooled(visual: nn.Module) -> None:
    """Check that a vision transformer pools its tokens into one feature.

    Raises:
        InputError: it returns the tokens.
    """
    trunk, kind = _trunk(visual)
    pools = (getattr(trunk, "pool_type", None), getattr(trunk, "global_pool", None))
    if type(trunk) in PLAIN and (pools[0] == "none" or pools[1] == ""):
        raise InputError(f"the image tower, a {kind}, does not pool its tokens into one feature; choose one that does")


def _trunk(visual: nn.Module) -> tuple[Any, str]:
    """Return the network inside an image tower and the name of its class."""
    trunk = visual.trunk if isinstance(visual, TimmModel) else visual
    return trunk, type(trunk).__name__
