"""Lightning's Trainer with the verbs that OVSeg adds."""

from __future__ import annotations

import signal
from importlib.metadata import version
from typing import Any

import lightning as L

from ovseg import __version__
from ovseg.callbacks import CLIPCompiler, PairsWriter, SegmentationWriter, SweepWriter
from ovseg.callbacks.pairs import wait_for_others
from ovseg.callbacks.sweep import Metric
from ovseg.data.pairs import LOG, PairStore, describe, read_logs
from ovseg.limits import check_at_least
from ovseg.structures import InputError
from ovseg.tasks import MiningTask, SweepTask

PATIENCE = 600.0  # seconds to wait for another process's next shard, or ten times this process's slowest if longer


class OVSegTrainer(L.Trainer):
    """A Trainer that can also mine region-text pairs, segment images and sweep settings, each with its writer.

    Args:
        compile: whether CLIP's image tower is compiled at its first use, which makes runs over many images faster.
        options: arguments of Lightning's Trainer.
    """

    def __init__(self, *, compile: bool = False, **options: Any) -> None:
        super().__init__(**options)
        if compile:
            self.callbacks.append(CLIPCompiler())  # type: ignore[attr-defined]

    def mine(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule,
        out: str = "runs/pairs",
        shard_images: int = 512,
    ) -> None:
        """Mine region-text pairs from images and captions. A stopped run resumes when you rerun the same command.

        Args:
            model: a `MiningTask`.
            datamodule: a `CaptionDataModule`.
            out: folder for the store of pairs.
            shard_images: images per shard. Processes share the work by shards, and a stopped run loses unfinished ones.

        Raises:
            InputError: the model, the data or `shard_images` is unsuitable, or some images could not be read.
        """
        from ovseg.data.captions.datamodule import CaptionDataModule  # imports spaCy, which no other verb needs

        if not isinstance(model, MiningTask) or not isinstance(datamodule, CaptionDataModule):
            raise InputError(
                f"mine needs a MiningTask and a CaptionDataModule, not {type(model).__name__} and "
                f"{type(datamodule).__name__}; see conf/mine.yaml"
            )
        check_at_least(1, shard_images=shard_images)
        model.check_regions(datamodule.masks is not None)  # before the store is made
        datamodule.configure(shard_images)
        made_by = {name: version(name) for name in ("torch", "transformers", "open_clip_torch")}
        settings = {**model.settings(), **datamodule.settings(), "precision": str(self.precision)}
        store = PairStore(out, {**settings, "ovseg": __version__, **made_by}, datamodule.images)
        writer = PairsWriter(store)
        if self.num_nodes > 1 or not store.complete:  # each node may see a different store
            self._write(model, datamodule, writer)
        if self.is_global_zero:
            if self.world_size > 1 and isinstance(self.limit_predict_batches, float):
                self._wait(store, max(PATIENCE, 10 * writer.longest))
            report(store)

    def segment(self, model: L.LightningModule, datamodule: L.LightningDataModule, out: str = "out") -> None:
        """Segment images into your own words. A stopped run resumes when you rerun the same command.

        Args:
            model: a `SegmentationTask`.
            datamodule: an `ImagesDataModule`.
            out: folder for label images, overlays, and segments as COCO JSON.

        Raises:
            SystemExit: with code 1 after all other images, if some could not be read.
        """
        writer = SegmentationWriter(out)
        self._write(model, datamodule, writer)
        if not writer.conclude(self):
            raise SystemExit(1)

    def sweep(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule,
        out: str = "runs/sweep",
        metric: Metric = "miou_union",
    ) -> None:
        """Score a grid of ensemble weights and mask thresholds in one pass over a benchmark.

        Args:
            model: a `SweepTask`.
            datamodule: a benchmark.
            out: folder for the table and the heat map.
            metric: the metric to show and to choose the best setting by.

        Raises:
            InputError: the model is not a `SweepTask`.
        """
        if not isinstance(model, SweepTask):
            raise InputError(f"sweep needs a SweepTask, not {type(model).__name__}; see conf/sweep.yaml")
        self.callbacks.append(SweepWriter(out, metric))  # type: ignore[attr-defined]
        self.test(model, datamodule=datamodule, verbose=False)

    def _wait(self, store: PairStore, patience: float) -> None:
        try:
            wait_for_others(store, patience)
        except BaseException:
            if self.strategy.launcher:  # Lightning ends the processes it started only during a run
                self.strategy.launcher.kill(signal.SIGKILL)
            raise

    def _write(self, model: L.LightningModule, datamodule: L.LightningDataModule, writer: L.Callback) -> None:
        self.callbacks.append(writer)  # type: ignore[attr-defined]
        self.predict(model, datamodule=datamodule, return_predictions=False)


def report(store: PairStore) -> None:
    """Print statistics of a store, or how many shards are finished.

    Raises:
        InputError: some images could not be read; the pairs of all others are complete.
    """
    if not store.complete:
        print(
            f"{len(read_logs(store.folder))} shards in {store.folder}; mining resumes when you rerun the same command"
        )
        return
    print("\n".join([f"{store.folder}:", *describe(store.folder)]))
    if faults := store.finish():
        raise InputError(
            f"{len(faults)} images could not be used and were left out, the first: {faults[0]}; {store.folder / LOG} "
            "lists them all; the pairs of all other images are complete"
        )
