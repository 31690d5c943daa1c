"""The text tower of a CLIP, run on no more positions than the longest text of a batch needs."""

from __future__ import annotations

from threading import Lock
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from ovseg.structures import InputError

_SWAP = Lock()  # torch puts the cut parameters into the module for the time of the call


def encode_tokens(clip: nn.Module, tokens: Tensor) -> Tensor:
    """L2-normalised features of tokenised texts, equal to `clip.encode_text(tokens, normalize=True)`.

    A causal tower that pools at the end-of-text token never looks beyond it, so the context is cut behind the last one;
    any other tower gets the full context.

    Args:
        clip: a model of open_clip.
        tokens: (K, context) on any device.

    Returns:
        (K, D).

    Raises:
        InputError: the tokenizer has tokens that the tower does not know.
    """
    tower: Any = getattr(clip, "text", clip)
    prefix = "" if tower is clip else "text."
    _check_vocabulary(tower, tokens)
    positions = _positions_needed(tower, tokens)  # before the tokens are on a device that would have to be waited for
    tokens = tokens.to(next(clip.parameters()).device)
    if positions is None:
        features: Tensor = clip.encode_text(tokens, normalize=True)  # type: ignore[operator]
        return features
    # a swap for this call only, through which gradients pass: open_clip adds both at their full length
    with _SWAP:
        cut = {
            f"{prefix}positional_embedding": tower.positional_embedding[:positions],
            f"{prefix}attn_mask": tower.attn_mask[:positions, :positions],
        }
        _, features, *_ = functional_call(clip, cut, kwargs={"text": tokens[:, :positions]})
    return features


def _check_vocabulary(tower: Any, tokens: Tensor) -> None:
    embedding = getattr(tower, "token_embedding", None) or tower.transformer.get_input_embeddings()
    largest = int(tokens.max()) if tokens.numel() else 0
    if largest >= embedding.num_embeddings:
        raise InputError(
            f"the tokenizer of this CLIP gives token {largest:,}, its text tower knows {embedding.num_embeddings:,}; "
            "bring the tokenizer's files, such as merges.txt.gz, from where the weights are from"
        )


def _positions_needed(tower: nn.Module, tokens: Tensor) -> int | None:
    """Length of the longest text; None where the tower looks further or is not known."""
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = isinstance(getattr(tower, "attn_mask", None), Tensor)
    appends_class_token = getattr(tower, "cls_emb", None) is not None  # CoCa pools there
    if not causal or appends_class_token:
        return None
    if pool == "argmax":
        ends = tokens.argmax(dim=1)
    elif pool == "eos":
        ends = tokens.eq(getattr(tower, "text_eos_id", getattr(tower, "eos_id", 0))).int().argmax(dim=1)
    else:
        return None
    return 1 + max(ends.tolist(), default=0)
