"""Run the text tower of a CLIP on as many positions as the longest text of a batch needs."""

from __future__ import annotations

from threading import Lock
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from ovseg.structures import InputError

_SWAP = Lock()  # `functional_call` replaces parameters of the module while it runs


def encode_tokens(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Return L2-normalised text features equal to `clip.encode_text(tokens, normalize=True)`.

    A causal tower that pools at the end-of-text token never attends to later positions, so the context is cut after
    the last of these tokens in the batch. Any other tower gets the full context.

    Args:
        clip: an open_clip model.
        tokens: (K, context) on any device.

    Returns:
        (K, D).

    Raises:
        InputError: the tokens exceed the tower's vocabulary.
    """
    tower: Any = getattr(clip, "text", clip)
    prefix = "" if tower is clip else "text."
    _check_vocabulary(tower, tokens)
    positions = _positions_needed(tower, tokens)  # on the CPU, to avoid waiting for a GPU
    tokens = tokens.to(next(clip.parameters()).device)
    if positions is None:
        features: Tensor = clip.encode_text(tokens, normalize=True)  # type: ignore[operator]
        return features
    # open_clip adds both at full length; replace them for this call, in a way that gradients pass through
    with _SWAP:
        cut = {
            f"{prefix}positional_embedding": tower.positional_embedding[:positions],
            f"{prefix}attn_mask": tower.attn_mask[:positions, :positions],
        }
        _, features, *_ = functional_call(clip, cut, kwargs={"text": tokens[:, :positions]})
    return features


def _check_vocabulary(tower: Any, tokens: Tensor) -> None:
    """Refuse tokens that the embedding of the tower does not have."""
    embedding = getattr(tower, "token_embedding", None) or tower.transformer.get_input_embeddings()
    largest = int(tokens.max()) if tokens.numel() else 0
    if largest >= embedding.num_embeddings:
        raise InputError(
            f"the tokenizer of this CLIP yields token {largest:,}, but its text tower has only "
            f"{embedding.num_embeddings:,} tokens; copy the tokenizer's files, such as merges.txt.gz, from where you "
            "got the weights"
        )


def _positions_needed(tower: nn.Module, tokens: Tensor) -> int | None:
    """Return the length of the longest text; None if the tower attends beyond its end or is of an unknown kind."""
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
