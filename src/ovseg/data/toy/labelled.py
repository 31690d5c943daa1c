"""Training data for tiny proposal networks: toy scenes with a mask per region, generated on the fly."""

from __future__ import annotations

from ovseg.data.loading import ResumableLoader, run_seed
from ovseg.data.resumable import ResumableDataModule
from ovseg.data.toy.labelled_scenes import LabelledScenes, collate_scenes
from ovseg.data.vocabulary import read_vocabulary


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
        super().__init__(total_batch_size, num_workers)
        self.vocabulary = read_vocabulary("toy_train")
        self.seed = run_seed(seed)
        self.dataset = LabelledScenes(scenes, self.seed)

    def train_dataloader(self) -> ResumableLoader:
        """Return the resumable loader of `SegmentationBatch`es."""
        return self.resumable(self.dataset, self.seed, self.num_workers, collate_scenes)
