"""The data set of whole images with the masks and nouns of their pairs, for region encoders that see whole images.

Workers import this module, so it does not import Lightning.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ovseg.data.loading import seeded
from ovseg.data.pairs.region_transform import SCALE
from ovseg.data.pairs.regions import mask_in_box
from ovseg.data.pairs.table import Pairs
from ovseg.images import read_image, resize_short_side, short_side_size, to_tensor
from ovseg.structures import ImageTextBatch, RegionTextPair

SHORT_SIDE = 640  # pixels; the resolution at which the paper proposes masks
Window = tuple[slice, slice]  # rows and columns


class ImageTexts(Dataset[ImageTextBatch]):
    """Images with their pairs' masks and nouns, indexed by the keys of pairs (see `ovseg.data.loading`).

    Each epoch crops an image to a random window of 90 to 100 % of its area, the scale of the paper's random resized
    crop. All pairs of the image share the window. A mask outside the window comes with the uncropped image instead,
    which is then a separate image of the batch. So a pair never depends on the other pairs of its batch.

    Args:
        pairs: the pairs of a store.
        images: the folder that file names are relative to.
        short_side: larger images are reduced to this length of the short side, in pixels.
        seed: seed of the windows.
    """

    def __init__(self, pairs: Pairs, images: Path, short_side: int, seed: int) -> None:
        self.pairs, self.images, self.short_side, self.seed = pairs, images, short_side, seed
        self.texts = pairs.nouns()
        self._text_ids = {text: index for index, text in enumerate(self.texts)}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int) -> ImageTextBatch:
        return self.__getitems__([key])

    def __getitems__(self, keys: list[int]) -> ImageTextBatch:
        """Return the images of these pairs, which torch requests in one call; each image is decoded once.

        Raises:
            InputError: an image cannot be read, its size differs from when it was mined, or a mask is damaged.
        """
        keys_of_image: dict[tuple[int, str], list[int]] = {}
        for key in keys:
            epoch, index = divmod(key, len(self))
            keys_of_image.setdefault((epoch, self.pairs[index].file_name), []).append(key)
        images: list[Tensor] = []
        masks: list[Tensor] = []
        texts: list[str] = []
        for (epoch, name), group in keys_of_image.items():
            pairs = [self.pairs[key % len(self)] for key in group]
            image, image_masks = self._read(name, pairs)
            with seeded(self.seed, epoch, zlib.crc32(name.encode())):
                rows, columns = draw_window(image.shape[1], image.shape[2])
            inside = image_masks[:, rows, columns].flatten(1).any(dim=1)
            for window, chosen in (((rows, columns), inside), ((slice(None), slice(None)), ~inside)):
                if chosen.any():
                    images.append(image[:, *window].contiguous())
                    masks.append(image_masks[chosen][:, *window].contiguous())
                    texts += [pairs[position].noun for position in chosen.nonzero()[:, 0].tolist()]
        return ImageTextBatch(images, masks, texts, torch.tensor([self._text_ids[text] for text in texts]))

    def _read(self, name: str, pairs: list[RegionTextPair]) -> tuple[Tensor, Tensor]:
        """Return an image (3, h, w) with at most `short_side`, and the masks of its pairs, (N, h, w) bool."""
        path = self.images / name
        image = read_image(path)
        full, size = (image.height, image.width), (image.height, image.width)
        if min(full) > self.short_side:
            size = short_side_size(full, self.short_side, 4 * self.short_side)
        masks = torch.empty((len(pairs), *size), dtype=torch.bool)
        for row, pair in enumerate(pairs):  # one at a time, because the masks of a photograph may be large
            masks[row] = _reduce(mask_in_box(pair, image, path, (0, 0, image.width, image.height)), size)
        pixels = image if size == full else resize_short_side(image, self.short_side, 4 * self.short_side)
        return to_tensor(pixels), masks


def draw_window(height: int, width: int) -> Window:
    """Draw a window of 90 to 100 % of an image's area, of any aspect ratio that fits into the image."""
    area, shape = torch.rand(2).tolist()
    log_area = math.log(SCALE[0] + (SCALE[1] - SCALE[0]) * area)
    log_ratio = (2 * shape - 1) * log_area  # of the window's aspect ratio to the image's
    rows, columns = (
        min(max(round(side * math.exp((log_area + sign * log_ratio) / 2)), 1), side)
        for side, sign in ((height, -1), (width, 1))
    )
    top, left = int(torch.randint(height - rows + 1, ())), int(torch.randint(width - columns + 1, ()))
    return slice(top, top + rows), slice(left, left + columns)


def _reduce(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask (H, W) bool to `size` (h, w) by nearest neighbour; a mask that would vanish keeps a pixel."""
    if mask.shape == size:
        return mask
    values = mask[None, None].float()
    reduced = F.interpolate(values, size, mode="nearest")[0, 0] > 0
    return reduced if reduced.any() else F.adaptive_max_pool2d(values, size)[0, 0] > 0
