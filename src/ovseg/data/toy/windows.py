"""Training data for a tiny CLIP: windows of toy scenes, each with a caption of what it shows."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ovseg.data.loading import ResumableLoader, run_seed
from ovseg.data.resumable import ResumableDataModule
from ovseg.data.toy.cutting import VIEWS, FlippedWindows, SceneWindows, collate_windows
from ovseg.structures import InputError


class ToyWindowsDataModule(ResumableDataModule):
    """Windows of generated scenes with captions; `setup` generates them and keeps them in memory as bytes.

    Args:
        scenes: number of scenes to cut from.
        windows: number of windows; 100,000 windows of 64 pixels take 1.2 GB.
        size: side of a window in pixels.
        total_batch_size: windows per optimizer step, summed over processes and accumulated batches.
        seed: seed of the windows and their order; defaults to the seed of the run.
        view: `close` windows show one or two nouns; `wide` windows show most of a scene, like photographs.
        num_workers: processes that generate the windows; reading them needs none.

    Raises:
        InputError: there are more scenes than windows.
    """

    def __init__(
        self,
        scenes: int = 8000,
        windows: int = 100_000,
        size: int = 64,
        total_batch_size: int = 128,
        seed: int | None = None,
        view: Literal["close", "wide"] = "close",
        num_workers: int = 2,
    ) -> None:
        super().__init__(total_batch_size, num_workers)
        if not 1 <= scenes <= windows:
            raise InputError(f"{scenes} scenes are too many for {windows} windows; give at least one window per scene")
        self.scenes, self.windows, self.size = scenes, windows, size
        self.seed = run_seed(seed)
        self.view = VIEWS[view]
        self.data: FlippedWindows | None = None
        self.texts: list[str] = []  # the distinct captions in the order of their ids, set by `setup`

    def setup(self, stage: str) -> None:
        """Generate the windows, once."""
        if self.data is not None:
            return
        counts = [len(part) for part in np.array_split(np.arange(self.windows), self.scenes)]
        # the loader serves as a process pool here; it keeps the order, whichever worker finishes first
        scenes = SceneWindows(counts, self.size, self.seed, self.view)
        loader = DataLoader(scenes, batch_size=None, num_workers=self.num_workers)
        pixels = torch.empty(self.windows, 3, self.size, self.size, dtype=torch.uint8)
        texts: list[str] = []
        for cut, captions in tqdm(loader, desc="generating windows", unit="scene"):
            pixels.numpy()[len(texts) : len(texts) + len(captions)] = cut.numpy()  # torch would start its threads
            texts.extend(captions)
        self.texts = sorted(set(texts))
        ids = {text: index for index, text in enumerate(self.texts)}
        self.data = FlippedWindows(pixels, self.texts, [ids[text] for text in texts], self.seed)

    def train_dataloader(self) -> ResumableLoader:
        """Return the resumable loader of `RegionTextBatch`es, whose masks cover the whole window."""
        if self.data is None:
            raise RuntimeError("call setup() first; it generates the windows")
        return self.resumable(self.data, self.seed, num_workers=0, collate=collate_windows)
