"""Training data for tiny proposal networks: toy scenes with a mask per region, generated on the fly."""

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

SPLIT = "proposals"  # scenes used nowhere else, neither for training nor for testing
BASE = IGNORE_INDEX + 1


class _LabelledScenes(Dataset[tuple[Tensor, Tensor]]):
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


class ToyScenesDataModule(ResumableDataModule):
    """Toy scenes of all nouns, labelled with the training classes, with one mask per thing and per stuff region.

    The class areas of `ovseg.data.COCOStuffDataModule` would merge unseen nouns, which share a catch-all label. There
    is no augmentation, since no scene occurs twice.

    Args:
        scenes: scenes per epoch.
        total_batch_size: scenes per optimizer step, summed over processes and accumulated batches.
        num_workers: processes that generate the scenes.
        seed: seed of the scenes and their order; defaults to the seed of the run.
    """

    def __init__(
        self, scenes: int = 8000, total_batch_size: int = 16, num_workers: int = 1, seed: int | None = None
    ) -> None:
        super().__init__(total_batch_size)
        self.vocabulary = read_vocabulary("toy_train")
        self.num_workers, self.seed = num_workers, run_seed(seed)
        self.dataset = _LabelledScenes(scenes, self.seed)

    def train_dataloader(self) -> ResumableLoader:
        """Return the resumable loader of `SegmentationBatch`es."""
        return self.resumable(self.dataset, self.seed, self.num_workers, _collate)


def _collate(items: list[tuple[Tensor, Tensor]]) -> SegmentationBatch:
    images, targets = zip(*items, strict=True)
    target = torch.stack(targets)
    return SegmentationBatch(torch.stack(images), target % BASE, target // BASE)
