"""What every source of masks from files offers."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor


class ImageMasks(NamedTuple):
    """The masks of one image, M of them."""

    masks: Tensor  # (M, H, W) bool
    scores: Tensor  # (M,), 1 for ground truth
    names: list[str]  # M class names; each is "" if the file does not name them


class MaskReader(Protocol):
    """Masks of a set of images."""

    images: dict[int, str]
    """Id → file name, in the order of the ids; empty for a plain list of results."""
    named: bool
    """Whether each mask has the name of its class."""

    def identity(self) -> str:
        """Return a hash that changes with the masks."""

    def find(self, image: Path) -> Hashable | None:
        """Return the key under which the masks of an image file are stored, or None if it has no masks.

        Raises:
            InputError: the file name does not tell which masks belong to the image.
        """

    def __call__(self, image: Path, size: tuple[int, int], image_id: int | None = None) -> ImageMasks:
        """Read the masks of an image file.

        Args:
            size: (H, W) of the image.
            image_id: the image's id if it is known; otherwise the file name decides, see `find`.

        Raises:
            InputError: the masks have another size or cannot be read.
        """
