"""What the benchmark of region encoders measures: the straightforward form, drawn masks, and a stopwatch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from benchmarks.report import wait
from ovseg.models import MaskProposer, RegionEncoder
from ovseg.ops import CLIP_MEAN, masks_to_boxes
from ovseg.structures import ImageProposals, RegionFeatures, Vocabulary

PAPER = Path(__file__).parents[2] / "conf" / "paper" / "model" / "maskformer_r101c.yaml"
SHARPNESS = 20.0  # of drawn masks: the logit falls from this at the centre to 0 at the border


class PlainCrops(RegionEncoder):
    """Crop one region at a time, and encode all crops as a single batch in fp32, as ovseg did at commit 06909f8.

    Mask prompts are not supported.
    """

    def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[RegionFeatures]:
        return [self._encode(image, image_masks) for image, image_masks in zip(images, masks, strict=True)]

    def _encode(self, image: Tensor, masks: Tensor) -> RegionFeatures:
        size, colour = self.clip.image_size, image.new_tensor(CLIP_MEAN)[:, None, None]
        regions = colour.expand(len(masks), 3, size, size).clone()
        region_masks = masks.new_zeros((len(masks), size, size))  # which CLIP ignores without prompts
        boxes = masks_to_boxes(masks)
        for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            if x0 < x1:
                mask = masks[index, y0:y1, x0:x1]
                region = torch.where(mask, image[:, y0:y1, x0:x1], colour)
                regions[index] = F.interpolate(region[None], (size, size), mode="bicubic", align_corners=False)[0]
                region_masks[index] = F.interpolate(mask[None, None].float(), (size, size), mode="nearest")[0, 0] > 0
        valid = boxes[:, 2] > boxes[:, 0]
        normalised = (regions[valid] - self.clip.mean) / self.clip.std
        features = F.normalize(self.clip.visual.visual(normalised), dim=-1)  # open_clip's own forward
        return RegionFeatures(features.new_zeros((len(masks), self.clip.dim)).index_put((valid,), features), valid)


class DrawnMasks(MaskProposer):
    """The paper's network with random weights; it runs, but returns drawn masks in place of its own, which are noise.

    Args:
        proposals: number of queries.
        text_dim: width of CLIP's text features.
    """

    def __init__(self, proposals: int, text_dim: int) -> None:
        values = yaml.safe_load(PAPER.read_text(encoding="utf-8"))["init_args"]["proposer"]["init_args"]["model"]
        values["decoder_config"]["num_queries"] = proposals
        super().__init__(values, text_dim)
        self.proposals = proposals
        self._drawn: dict[tuple[int, int], Tensor] = {}

    def drawn(self, image: Tensor) -> Tensor:
        """Return the masks (Q, h, w) in [0, 1] for an image; they depend on its size only."""
        size = (image.shape[1], image.shape[2])
        if size not in self._drawn:
            self._drawn[size] = draw_masks(self.proposals, size)
        return self._drawn[size]

    def propose(self, images: Tensor | Sequence[Tensor], vocabulary: Vocabulary | None = None) -> list[ImageProposals]:
        return [
            proposals._replace(mask_probs=self.drawn(image))
            for image, proposals in zip(images, super().propose(images, vocabulary), strict=True)
        ]


def draw_masks(count: int, size: tuple[int, int]) -> Tensor:
    """Return soft ellipses of many sizes, from a thirtieth to half of each side, (count, H, W) in [0, 1]."""
    return _paint(*_draw_ellipses(count), size)


def draw_regions(count: int, size: tuple[int, int]) -> Tensor:
    """Return the pixels of `draw_masks` above one half, (count, H, W) bool, without holding all masks as floats."""
    centres_and_radii = _draw_ellipses(count)
    return torch.cat(
        [_paint(*part, size) > 0.5 for part in zip(*(t.split(50) for t in centres_and_radii), strict=True)]
    )


def _draw_ellipses(count: int) -> tuple[Tensor, Tensor]:
    """Return centres and radii (count, 2) of ellipses, in heights and widths of the image."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(count, 2, generator=generator)
    return centres, torch.empty(count, 2).uniform_(-4.1, -1.4, generator=generator).exp()


def _paint(centres: Tensor, radii: Tensor, size: tuple[int, int]) -> Tensor:
    down, across = (
        ((torch.linspace(0, 1, side) - centres[:, axis, None]) / radii[:, axis, None]).square()
        for axis, side in enumerate(size)
    )
    return (SHARPNESS * (1 - down[:, :, None] - across[:, None, :])).sigmoid_()


class Stopwatch:
    """Add up the seconds that modules and functions take; what they call counts as well."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.results: dict[str, Any] = {}
        self._starts: dict[str, float] = {}

    def watch(self, name: str, module: nn.Module) -> None:
        """Measure a module, and copies of it, whenever it is called, and keep its last result."""
        module.register_forward_pre_hook(lambda *_: self._begin(name))
        module.register_forward_hook(lambda _module, _arguments, result: self._end(name, result))

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is measured whenever it is called."""

        def measured(*arguments: Any) -> Any:
            self._begin(name)
            result = function(*arguments)
            self._end(name, result)
            return result

        return measured

    def run(self, function: Callable[[], Any]) -> tuple[dict[str, float], Any]:
        """Return the seconds of a call and of what it runs, and its result."""
        self.seconds.clear()
        result = self.watched("total", function)()
        return dict(self.seconds), result

    def _begin(self, name: str) -> None:
        wait()
        self._starts[name] = time.perf_counter()

    def _end(self, name: str, result: Any) -> None:
        wait()
        self.seconds[name] += time.perf_counter() - self._starts[name]
        self.results[name] = result
