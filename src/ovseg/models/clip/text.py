"""Class names as text features: templates, averaging, normalisation (reference of the release: 14 templates)."""

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
    "bare": ("{}",),  # what the adapter is trained with
}
_LOG = logging.getLogger(__name__)
_SHOWN = 5  # names that a warning spells out


class TextEncoder:
    """Text features of class names by a CLIP model.

    Those of a vocabulary are kept in the user's cache, see `ovseg.models.clip.text_cache`.

    Args:
        clip: holds the text tower.
        templates: a name in `PROMPT_TEMPLATES`, or sentences with `{}` in the name's place.

    Raises:
        InputError: no such templates, or a sentence without `{}`.
    """

    def __init__(self, clip: CLIPAdapter, templates: str | Sequence[str] = "vild") -> None:
        if isinstance(templates, str):
            if templates not in PROMPT_TEMPLATES:
                raise InputError(
                    f"no prompt templates are called {templates!r}; choose from {', '.join(PROMPT_TEMPLATES)}"
                )
            templates = PROMPT_TEMPLATES[templates]
        if not templates or any("{}" not in sentence for sentence in templates):
            raise InputError("prompt templates are sentences with {} where the class name goes")
        self.clip, self.templates = clip, tuple(templates)
        self._features: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, names: Sequence[str]) -> Tensor:
        """L2-normalised mean of the normalised features over all templates, (K, D).

        Names that do not fit into CLIP's context are logged as a warning, and cut.

        Args:
            names: K phrases, at least one; each goes into the templates whole, commas included.
        """
        if not names:
            raise InputError("there are no class names to embed; give at least one")
        tokens: Tensor = self.clip.tokenizer(self._sentences(names))
        self._warn_of_cut(names, tokens.shape[1])
        device = self.clip.mean.device
        with torch.autocast(device.type, enabled=False):  # what is kept is of full precision
            key = cache_key(self.clip, tokens.view(len(names), len(self.templates), -1))
            return load_or_compute(key, lambda: self.encode(names)).to(device)

    @torch.no_grad()
    def encode(self, names: Sequence[str], batch_size: int = 128) -> Tensor:
        """The same, computed.

        Args:
            batch_size: sentences that go through the tower at once.
        """
        sentences = self._sentences(names)
        # of like lengths together, as the tower works on as many positions as the longest of a batch has
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

    def _warn_of_cut(self, names: Sequence[str], context: int) -> None:
        """Say which names are longer than the context: what is beyond it has no say."""
        # a token has a byte at least; most names are known to fit without being tokenised twice
        rest = context - 3 - max(len(template.encode()) for template in self.templates)
        cut = [name for name in names if len(name.encode()) > rest and self._is_cut(name, context)]
        if cut:
            shown = ", ".join(repr(name if len(name) < 60 else f"{name[:59]}…") for name in cut[:_SHOWN])
            more = f" and {len(cut) - _SHOWN} more" if len(cut) > _SHOWN else ""
            _LOG.warning("longer than CLIP's context of %d tokens, and cut there: %s%s", context, shown, more)

    def _is_cut(self, name: str, context: int) -> bool:
        """Whether a longer context holds other tokens of a name: where a text is cut its end is put in their place."""
        sentences = self._sentences([name])
        longer = self.clip.tokenizer(sentences, context_length=context + 1)
        return not torch.equal(longer[:, :context], self.clip.tokenizer(sentences))

    def _sentences(self, names: Sequence[str]) -> list[str]:
        return [template.replace("{}", name) for name in names for template in self.templates]
