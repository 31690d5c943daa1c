"""Lightning's Trainer with the verbs that OVSeg adds."""

from __future__ import annotations

import lightning as L

from ovseg.callbacks import PairsWriter, SegmentationWriter


class OVSegTrainer(L.Trainer):
    """A Trainer that can also mine region-text pairs and segment images; both are predictions with a writer."""

    def mine(self, model: L.LightningModule, datamodule: L.LightningDataModule, out: str = "runs/pairs") -> None:
        """Mine region-text pairs from images and captions.

        Args:
            model: a `MiningTask`.
            datamodule: a `CaptionDataModule`.
            out: folder of the store of pairs.
        """
        self._write(model, datamodule, PairsWriter(out, {"task": type(model).__name__}))

    def segment(self, model: L.LightningModule, datamodule: L.LightningDataModule, out: str = "out") -> None:
        """Segment images into words of your own.

        Args:
            model: a `SegmentationTask`.
            datamodule: an `ImagesDataModule`.
            out: folder of the overlays and label images.
        """
        self._write(model, datamodule, SegmentationWriter(out))

    def _write(self, model: L.LightningModule, datamodule: L.LightningDataModule, writer: L.Callback) -> None:
        self.callbacks.append(writer)  # type: ignore[attr-defined]
        self.predict(model, datamodule=datamodule, return_predictions=False)
