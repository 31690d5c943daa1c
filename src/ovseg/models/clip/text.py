"""Encode class names as text features averaged over prompt templates (the release uses the 14 templates of ViLD)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.models.clip.adapter import IMAGENET_TEMPLATES, CLIPAdapter
from ovseg.models.clip.text_cache import cache_key, load_or_compute
from ovseg.structures import InputError

PROMPT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "vild": (
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
        *(f"a photo of a {size} {{}}." for size in ("small", "medium", "large")),
        *(f"This is a photo of a {size} {{}}." for size in ("small", "medium", "large")),
        *(f"There is a {size} {{}} in the scene." for size in ("small", "medium", "large")),
    ),
    "imagenet": IMAGENET_TEMPLATES,
    "single": ("a photo of a {}.",),
    "bare": ("{}",),  # used in adapter training
}
_LOG = logging.getLogger(__name__)
_MAX_LISTED = 5  # names spelled out in a warning


class TextEncoder:
    """Encode class names with the text tower of a CLIP.

    Calls are cached on disk, see `ovseg.models.clip.text_cache`.

    Args:
        clip: provides the text tower and the tokenizer.
        templates: a key of `PROMPT_TEMPLATES`, or sentences with `{}` in place of the name.

    Raises:
        InputError: the templates are unknown or empty, or a sentence lacks `{}`.
    """

    def __init__(self, clip: CLIPAdapter, templates: str | Sequence[str] = "vild") -> None:
        if isinstance(templates, str):
            if templates not in PROMPT_TEMPLATES:
                raise InputError(
                    f"there are no prompt templates {templates!r}; choose from {', '.join(PROMPT_TEMPLATES)}"
                )
            templates = PROMPT_TEMPLATES[templates]
        if not templates or any("{}" not in sentence for sentence in templates):
            raise InputError("every prompt template needs {} in place of the class name; add it")
        self.clip, self.templates = clip, tuple(templates)
        self._features: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, names: Sequence[str]) -> Tensor:
        """Return the features of class names: the mean over all templates, L2-normalised before and after.

        Names that do not fit into CLIP's context are truncated, with a warning.

        Args:
            names: K phrases; each is inserted into the templates unchanged, commas included.

        Returns:
            (K, D) on the device of `clip`.

        Raises:
            InputError: `names` is empty.
        """
        if not names:
            raise InputError("there are no class names to encode; pass at least one")
        tokens: Tensor = self.clip.tokenizer(self._sentences(names))
        self._warn_about_truncation(names, tokens.shape[1])
        device = self.clip.mean.device
        with torch.autocast(device.type, enabled=False):  # cached features have full precision
            key = cache_key(self.clip, tokens.view(len(names), len(self.templates), -1))
            return load_or_compute(key, lambda: self.encode(names)).to(device)

    @torch.no_grad()
    def encode(self, names: Sequence[str], batch_size: int = 128) -> Tensor:
        """Like `__call__`, but without the cache and without the warning.

        Args:
            batch_size: sentences encoded at once.
        """
        sentences = self._sentences(names)
        # sorted by length, because each batch costs as many positions as its longest sentence has
        order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        ordered = torch.cat([self.clip.encode_text([sentences[index] for index in batch]) for batch in batches])
        features = ordered[torch.tensor(order).argsort().to(ordered.device)]
        return F.normalize(features.view(len(names), len(self.templates), -1).mean(dim=1), dim=-1)

    def cached(self, names: Sequence[str]) -> Tensor:
        """Like `__call__`, but memoised per name; call `clear()` after the text tower changes."""
        if missing := [name for name in dict.fromkeys(names) if name not in self._features]:
            self._features |= zip(missing, self.encode(missing), strict=True)
        return torch.stack([self._features[name] for name in names])

    def clear(self) -> None:
        """Drop the features that `cached` memoised, after the weights of the text tower changed or moved."""
        self._features.clear()

    def _warn_about_truncation(self, names: Sequence[str], context: int) -> None:
        """Log the names that are longer than the context."""
        # a token is at least one byte long, so most names need no second tokenisation to know that they fit
        max_bytes = context - 3 - max(len(template.encode()) for template in self.templates)
        truncated = [name for name in names if len(name.encode()) > max_bytes and self._is_truncated(name, context)]
        if truncated:
            listed = ", ".join(repr(name if len(name) < 60 else f"{name[:59]}…") for name in truncated[:_MAX_LISTED])
            more = f" and {len(truncated) - _MAX_LISTED} more" if len(truncated) > _MAX_LISTED else ""
            _LOG.warning("truncated to CLIP's context of %d tokens: %s%s", context, listed, more)

    def _is_truncated(self, name: str, context: int) -> bool:
        """Whether tokens are lost: truncation overwrites the last one, so a longer context gives other tokens."""
        sentences = self._sentences([name])
        longer = self.clip.tokenizer(sentences, context_length=context + 1)
        return not torch.equal(longer[:, :context], self.clip.tokenizer(sentences))

    def _sentences(self, names: Sequence[str]) -> list[str]:
        return [template.replace("{}", name) for name in names for template in self.templates]
