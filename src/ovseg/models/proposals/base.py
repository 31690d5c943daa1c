"""The interface of proposers: images in, proposals out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import get_args

from torch import Tensor, nn

from ovseg.checkpoint import Architecture
from ovseg.ops import Classifier
from ovseg.structures import ImageProposals, InputError, Vocabulary


class Proposer(nn.Module, ABC):
    """Base of networks and other sources that propose masks and may classify them.

    A subclass must implement `propose`. One with class logits also overrides `checked_classifier` and, if it computes
    them from texts, `set_text_features` and `text_dim`.
    """

    text_dim: int | None = None
    """Width D of the text features that class logits are computed from; None without such logits."""

    @abstractmethod
    def propose(self, images: Tensor | Sequence[Tensor], vocabulary: Vocabulary | None = None) -> list[ImageProposals]:
        """Propose masks for each image.

        Args:
            images: (3, h, w) in [0, 1] each, at network resolution.
            vocabulary: the K classes of `class_logits`.
        """

    def set_text_features(self, features: Tensor) -> None:
        """Set the L2-normalised features (S, D) of the vocabulary's phrases; does nothing unless overridden."""

    def checked_classifier(self, classifier: Classifier | None) -> Classifier:
        """Return a supported classifier unchanged, and the best one for None.

        `clip` multiplies CLIP's class scores by the proposals' objectness. For proposals without class logits,
        `ensemble` is the geometric mean of both, weighted by the ensemble weight.

        Raises:
            InputError: the classifier is unknown, or needs class logits that the proposals do not have.
        """
        if classifier not in (None, *get_args(Classifier)):
            raise InputError(f"classifier is {classifier!r}; give one of {', '.join(get_args(Classifier))}")
        if classifier == "proposals":
            raise InputError(
                f"classifier 'proposals' needs class logits, which {type(self).__name__} does not have; use 'clip'"
            )
        return classifier or "clip"

    def architecture(self) -> Architecture:
        """Return what identifies the proposer besides its weights; training checkpoints store it to rebuild it."""
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}"}
