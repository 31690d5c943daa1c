"""Training data for tiny proposals: toy scenes with a mask for every region, drawn as they are needed."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ovseg.data.loading import ResumableLoader, run_seed
from ovseg.data.resumable import ResumableDataModule
from ovseg.data.toy.folder import TRAINING_LABELS
from ovseg.data.toy.scenes import make_scene
from ovseg.data.vocabulary import read_vocabulary
from ovseg.images import to_tensor
from ovseg.structures import IGNORE_INDEX, SegmentationBatch

SPLIT = "proposals"  # scenes that are neither trained nor tested on elsewhere
BASE = IGNORE_INDEX + 1


class _LabelledScenes(Dataset[tuple[Tensor, Tensor]]):
    """Scenes and their labels + BASE x region, by keys as `ovseg.data.loading` wants them; no key shows another's."""

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


class ToyScenesDataModule(ResumableDataModule):
    """Scenes of any nouns with the training classes of the toy world, each thing and each stuff a mask of its own.

    The class areas of `ovseg.data.COCOStuffDataModule` would join unseen nouns, which share a catch-all label. Since no
    scene comes twice, none is changed at random.

    Args:
        scenes: scenes an epoch.
        total_batch_size: scenes of a step, in all processes and accumulated batches.
        seed: of the scenes and their order; that of the run where not given.
    """

    def __init__(
        self, scenes: int = 8000, total_batch_size: int = 16, num_workers: int = 1, seed: int | None = None
    ) -> None:
        super().__init__(total_batch_size)
        self.vocabulary = read_vocabulary("toy_train")
        self.num_workers, self.seed = num_workers, run_seed(seed)
        self.dataset = _LabelledScenes(scenes, self.seed)

    def train_dataloader(self) -> ResumableLoader:
        return self.resumable(self.dataset, self.seed, self.num_workers, _collate)


def _collate(items: list[tuple[Tensor, Tensor]]) -> SegmentationBatch:
    images, targets = zip(*items, strict=True)
    target = torch.stack(targets)
    return SegmentationBatch(torch.stack(images), target % BASE, target // BASE)
