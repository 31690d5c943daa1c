"""The data set of toy proposal training: scenes with a mask per region, generated on the fly.

Workers import this module, so it does not import Lightning.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ovseg.data.toy.folder import TRAINING_LABELS
from ovseg.data.toy.scenes import make_scene
from ovseg.images import to_tensor
from ovseg.structures import IGNORE_INDEX, SegmentationBatch

SPLIT = "proposals"  # scenes used nowhere else, neither for training nor for testing
BASE = IGNORE_INDEX + 1


class LabelledScenes(Dataset[tuple[Tensor, Tensor]]):
    """Images and targets `label + BASE * region`; every key of `ovseg.data.loading` gives a new scene."""

    def __init__(self, scenes: int, seed: int) -> None:
        self.scenes, self.seed = scenes, seed

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        scene = make_scene(self.seed, key, split=SPLIT)
        target = torch.zeros(scene.image.shape[:2], dtype=torch.int16)
        for number, region in enumerate(scene.regions):
            target[torch.from_numpy(region.mask)] = int(TRAINING_LABELS[region.noun]) + BASE * number
        return to_tensor(Image.fromarray(scene.image)), target


def collate_scenes(items: list[tuple[Tensor, Tensor]]) -> SegmentationBatch:
    """Batch scenes, and split their targets into labels and regions."""
    images, targets = zip(*items, strict=True)
    target = torch.stack(targets)
    return SegmentationBatch(torch.stack(images), target % BASE, target // BASE)
