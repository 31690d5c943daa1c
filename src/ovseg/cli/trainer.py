"""Lightning's Trainer with the verbs that OVSeg adds."""

from __future__ import annotations

import signal
from importlib.metadata import version

import lightning as L

from ovseg import __version__
from ovseg.callbacks import PairsWriter, SegmentationWriter, SweepWriter
from ovseg.callbacks.pairs import wait_for_others
from ovseg.callbacks.sweep import Metric
from ovseg.data.pairs import LOG, PairStore, describe, read_logs
from ovseg.structures import InputError
from ovseg.tasks import MiningTask, SweepTask

PATIENCE = 600.0  # seconds to wait for a shard of another process, or ten times as long as the slowest of one's own


class OVSegTrainer(L.Trainer):
    """A Trainer that can also mine region-text pairs, segment images and sweep settings; writers keep what is found."""

    def mine(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule,
        out: str = "runs/pairs",
        shard_images: int = 512,
    ) -> None:
        """Mine region-text pairs from images and captions; a run that was stopped goes on by the same command.

        Args:
            model: a `MiningTask`.
            datamodule: a `CaptionDataModule`.
            out: folder of the store of pairs.
            shard_images: images a shard: what is lost where a run is stopped, and what processes share.
        """
        from ovseg.data.captions.datamodule import CaptionDataModule  # brings spaCy, which the other verbs do without

        if not isinstance(model, MiningTask) or not isinstance(datamodule, CaptionDataModule):
            raise InputError(
                f"mine needs a MiningTask and a CaptionDataModule, not {type(model).__name__} and "
                f"{type(datamodule).__name__}; see conf/mine.yaml"
            )
        if shard_images < 1:
            raise InputError(f"shard_images is {shard_images}; give at least 1")
        datamodule.configure(shard_images)
        made_by = {name: version(name) for name in ("torch", "transformers", "open_clip_torch")}
        settings = {**model.settings(), **datamodule.settings(), "precision": str(self.precision)}
        store = PairStore(out, {**settings, "ovseg": __version__, **made_by}, datamodule.images)
        writer = PairsWriter(store)
        if self.num_nodes > 1 or not store.complete:  # of two nodes each may see a store of its own
            self._write(model, datamodule, writer)
        if self.is_global_zero:
            if self.world_size > 1 and isinstance(self.limit_predict_batches, float):
                self._wait(store, max(PATIENCE, 10 * writer.longest))
            report(store)

    def segment(self, model: L.LightningModule, datamodule: L.LightningDataModule, out: str = "out") -> None:
        """Segment images into words of your own; a run that was stopped goes on by the same command.

        Args:
            model: a `SegmentationTask`.
            datamodule: an `ImagesDataModule`.
            out: folder of label images, overlays, and segments as COCO's JSON.

        Raises:
            SystemExit: 1 in the end, if images could not be read.
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
            out: folder of the table and the heat map.
            metric: that is shown, and by which the best setting is told.
        """
        if not isinstance(model, SweepTask):
            raise InputError(f"sweep needs a SweepTask, not {type(model).__name__}; see conf/sweep.yaml")
        self.callbacks.append(SweepWriter(out, metric))  # type: ignore[attr-defined]
        self.test(model, datamodule=datamodule, verbose=False)

    def _wait(self, store: PairStore, patience: float) -> None:
        try:
            wait_for_others(store, patience)
        except BaseException:
            if self.strategy.launcher:  # Lightning ends what it has started only while it runs
                self.strategy.launcher.kill(signal.SIGKILL)
            raise

    def _write(self, model: L.LightningModule, datamodule: L.LightningDataModule, writer: L.Callback) -> None:
        self.callbacks.append(writer)  # type: ignore[attr-defined]
        self.predict(model, datamodule=datamodule, return_predictions=False)


def report(store: PairStore) -> None:
    """Print what a store holds.

    Raises:
        InputError: images could not be read, and are not among those that were mined.
    """
    if not store.complete:
        print(f"{len(read_logs(store.folder))} shards in {store.folder}; run the same command again to go on")
        return
    print("\n".join([f"{store.folder}:", *describe(store.folder)]))
    if faults := store.finish():
        raise InputError(
            f"{len(faults)} images could not be used and were left out, the first: {faults[0]}; {store.folder / LOG} "
            "names them all; the pairs of the other images are complete"
        )
