"""The datamodule of adapter training: regions with the nouns that name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader

from ovseg.data.benchmarks.base import EvalDataModule
from ovseg.data.loading import ResumableLoader, no_collate, run_seed
from ovseg.data.pairs import Pairs, read_pairs
from ovseg.data.pairs.region_transform import RegionTransform
from ovseg.data.pairs.regions import RegionTexts
from ovseg.data.pairs.whole_images import SHORT_SIDE, ImageTexts
from ovseg.data.resumable import ResumableDataModule
from ovseg.limits import check_at_least
from ovseg.structures import EvalBatch, InputError, Vocabulary


@dataclass(frozen=True)
class PairSampling:
    """Which pairs of a store to train on, and how to batch them.

    Args:
        min_similarity: drop pairs with a lower similarity.
        max_per_noun: keep at most this many pairs per noun, the most similar ones.
        by_image: put the pairs of an image into the same batch, or into consecutive ones if they do not fit, so that
            each batch decodes an image once. If false, pairs are drawn independently, which reads more slowly. Region
            encoders that see whole images always get the pairs of an image together.

    Raises:
        InputError: `max_per_noun` is below 1.
    """

    min_similarity: float | None = None
    max_per_noun: int | None = None
    by_image: bool = True

    def __post_init__(self) -> None:
        check_at_least(1, max_per_noun=self.max_per_noun)


class RegionTextDataModule(ResumableDataModule):
    """Shuffled region-text pairs from a store; their regions are cut from the original images and augmented.

    A task tells it CLIP's resolution through `configure`, and whether its region encoder sees whole images.

    Args:
        pairs: the store that `ovseg mine` wrote, or the table of the released pairs (`coco_proposal_1cap.csv`).
        images: the folder that the store's file names are relative to.
        transform: how regions are cut and augmented.
        sampling: which pairs are used, and how they are batched.
        total_batch_size: pairs per optimizer step, summed over processes and accumulated batches.
        num_workers: processes that read images; their number does not change the batches.
        seed: seed of the order and the augmentation; defaults to the seed of the run.
        val: a benchmark whose ground-truth segments CLIP classifies after each epoch or `val_check_interval`. Unless it
            sets `resize`, its images keep their own size, from which training regions are cut as well.

    Raises:
        InputError: `total_batch_size` is below 1, or `num_workers` is negative.
    """

    def __init__(
        self,
        pairs: Path,
        images: Path,
        transform: RegionTransform = RegionTransform(),  # noqa: B008 (frozen)
        sampling: PairSampling = PairSampling(),
        total_batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
        val: EvalDataModule | None = None,
    ) -> None:
        super().__init__(total_batch_size, num_workers)
        self.val = val
        self.pairs, self.images, self.transform, self.sampling = Path(pairs), Path(images), transform, sampling
        self.seed = run_seed(seed)

    def prepare_data(self) -> None:
        """Check the pairs and images before a log or checkpoint is written, once per machine.

        Raises:
            InputError: there are no pairs, or images are missing.
        """
        super().prepare_data()
        names = self._read().column("file_name").unique().to_pylist()
        if missing := [name for name in names if not (self.images / name).is_file()]:
            raise InputError(
                f"{len(missing)} of {len(names)} images of {self.pairs} are missing from {self.images}, the first is "
                f"{missing[0]}; give the folder that these names are relative to"
            )

    def setup(self, stage: str) -> None:
        """Open the pairs as a memory map.

        Raises:
            InputError: there are no pairs.
        """
        self.dataset: RegionTexts | ImageTexts = RegionTexts(self._read(), self.images, self.transform, self.seed)
        if self.val is not None:
            self.val.setup(stage)

    def _read(self) -> Pairs:
        threshold = self.sampling.min_similarity
        pairs = read_pairs(self.pairs).filter(threshold, self.sampling.max_per_noun)
        if not pairs:
            raise InputError(
                f"no pair in {self.pairs} has a similarity of at least {threshold}; lower sampling.min_similarity"
            )
        return pairs

    @property
    def texts(self) -> list[str]:
        """All nouns of the pairs in the order of their ids; available after `setup`."""
        return self.dataset.texts

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary of the validation data, None without any."""
        return None if self.val is None else self.val.vocabulary

    def configure(self, size: int, whole_images: bool = False) -> None:
        """Adapt to the region encoder, after `setup`.

        Args:
            size: CLIP's resolution, the side of the regions in pixels; `transform.size` overrides it.
            whole_images: whether the encoder sees whole images.

        Raises:
            InputError: whole images are needed, but the pairs are crops or are to be resized like crops.
        """
        if not whole_images:
            if self.transform.size is None and isinstance(self.dataset, RegionTexts):
                self.dataset.size = size
            return
        if "released" in self.dataset.pairs.provenance:
            raise InputError(
                f"{self.pairs} lists crops, but the region encoder sees whole images; mine pairs with `ovseg mine`, or "
                "use ovseg.models.CropEncoder"
            )
        if self.transform.resize != "inference":
            raise InputError(
                f"transform.resize is {self.transform.resize!r}, which applies to crops, but the region encoder sees "
                "whole images; remove it"
            )
        self.dataset = ImageTexts(self.dataset.pairs, self.images, self.transform.size or SHORT_SIDE, self.seed)

    def train_dataloader(self) -> ResumableLoader:
        """Return the resumable loader of `RegionTextBatch`es, or of `ImageTextBatch`es for whole images."""
        grouped = self.sampling.by_image or isinstance(self.dataset, ImageTexts)
        images = self.dataset.pairs.image_indices() if grouped else None
        return self.resumable(self.dataset, self.seed, self.num_workers, no_collate, images)

    def val_dataloader(self) -> DataLoader[EvalBatch] | list[DataLoader[EvalBatch]]:
        """Return the loader of the validation data, or none without validation data."""
        return super().val_dataloader() if self.val is None else self.val.val_dataloader()
