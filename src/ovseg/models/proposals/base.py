"""The seam for sources of masks: images in, proposals out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import get_args

from torch import Tensor, nn

from ovseg.checkpoint import Architecture
from ovseg.ops import Classifier
from ovseg.structures import ImageProposals, InputError, Vocabulary


class Proposer(nn.Module, ABC):
    """Proposes masks, and may classify them.

    A subclass implements `propose`, and what else differs from the defaults here.
    """

    text_dim: int | None = None
    """Width D of the text features that its class logits are made from; None where it makes none from texts."""

    @abstractmethod
    def propose(self, images: Tensor | Sequence[Tensor], vocabulary: Vocabulary | None = None) -> list[ImageProposals]:
        """Propose masks for each image.

        Args:
            images: (3, h, w) in [0, 1] each, at network resolution.
            vocabulary: the K classes of `class_logits`.
        """

    def set_text_features(self, features: Tensor) -> None:
        """Take the L2-normalised features of all phrases of the vocabulary, (S, D); ignored unless overridden."""

    def checked_classifier(self, classifier: Classifier | None) -> Classifier:
        """The classifier to use for these proposals: the given one, or the best that they allow.

        `clip` weights CLIP's class scores by the proposals' objectness. Where proposals have no class logits,
        `ensemble` does so too, objectness and CLIP with exponents that add up to 1.

        Raises:
            InputError: it is unknown, or needs class logits that the proposals do not have.
        """
        if classifier not in (None, *get_args(Classifier)):
            raise InputError(f"classifier is {classifier!r}; give one of {', '.join(get_args(Classifier))}")
        if classifier == "proposals":
            raise InputError(
                f"classifier 'proposals' needs class logits, which {type(self).__name__} does not have; use 'clip'"
            )
        return classifier or "clip"

    def architecture(self) -> Architecture:
        """What identifies the proposals beside the weights; what a training checkpoint keeps to rebuild the network."""
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}"}
