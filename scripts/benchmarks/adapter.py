"""Time steps of adapter training against the same training written directly with open_clip."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning as L
import open_clip
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import report, seconds, wait
from ovseg.data.vocabulary import read_vocabulary
from ovseg.models import CLIPAdapter
from ovseg.structures import RegionTextBatch
from ovseg.tasks import AdapterTask


def adapter(
    model: str = "ViT-B-16",
    batch_size: int = 32,
    steps: int = 5,
    threads: int = 1,
    device: str = "cpu",
    precision: str = "32-true",
) -> None:
    """Time a step of fine-tuning that runs the text tower every time, and one that caches every noun's features.

    FLOPs count the matrix products of forward and backward pass. Pixels are random; reading images is not measured.

    Args:
        model: an open_clip name, with random weights, or `toy`.
        batch_size: regions per step.
        steps: number of timed steps; as many precede them as warm-up.
        threads: CPU threads.
        device: cpu or cuda.
        precision: 32-true; on a GPU also bf16-mixed or 16-mixed.
    """
    torch.set_num_threads(threads)
    clip = CLIPAdapter(model)
    batches = make_batches(clip.image_size, batch_size, steps)
    plain = plain_step(copy.deepcopy(clip).to(device), batches, device, precision)
    ours = train(AdapterTask(clip, "visual"), batches, device, precision)
    with FlopCounterMode(display=False) as plain_flops:
        plain(0)
    measured = {
        f"open_clip, the text tower in every step ({plain_flops.get_total_flops() / 1e9:,.1f} GFLOP)": (
            seconds(lambda: [plain(index) for index in range(steps)]) / steps
        ),
        f"ours, text features cached ({ours.flops.get_total_flops() / 1e9:,.1f} GFLOP)": ours.seconds / steps,
    }
    bound = plain_flops.get_total_flops() / ours.flops.get_total_flops()
    report(f"a step of {batch_size} regions, {model}, {precision}; {bound:.2f} x fewer FLOPs", measured)


def make_batches(size: int, batch_size: int, steps: int) -> list[RegionTextBatch]:
    """Make batches of random regions with names of COCO-Stuff, few of which repeat within a batch."""
    names = read_vocabulary("coco_stuff_171").names
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(steps):
        regions = torch.rand(batch_size, 3, size, size, generator=generator)
        masks = torch.ones(batch_size, size, size, dtype=torch.bool)
        masks[:, : size // 3] = False
        chosen = torch.randint(len(names), (batch_size,), generator=generator)
        batches.append(RegionTextBatch(regions, masks, [names[index] for index in chosen.tolist()], chosen))
    return batches


def plain_step(
    adapter: CLIPAdapter, batches: list[RegionTextBatch], device: str, precision: str
) -> Callable[[int], None]:
    """Return a step of fine-tuning with a frozen text tower; texts are tokenised beforehand, as by a loader."""
    clip: Any = adapter.clip
    clip.visual = clip.visual.visual  # open_clip's own again
    clip.requires_grad_(False)
    clip.visual.requires_grad_(True)
    clip.logit_scale.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in clip.parameters() if p.requires_grad], lr=5e-6, weight_decay=0.2)
    loss = open_clip.ClipLoss()
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    scaler = torch.amp.GradScaler(device, enabled=precision == "16-mixed")
    tokens = [adapter.tokenizer(batch.texts) for batch in batches]

    def step(index: int) -> None:
        images = (batches[index].regions.to(device) - adapter.mean) / adapter.std
        with torch.autocast(device, half) if half else nullcontext():
            image_features = clip.encode_image(images, normalize=True)
            text_features = clip.encode_text(tokens[index].to(device), normalize=True)
            total = loss(image_features, text_features, clip.logit_scale.exp())
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        clip.logit_scale.data.clamp_(max=math.log(100))

    return step


def train(task: AdapterTask, batches: list[RegionTextBatch], device: str, precision: str) -> Watch:
    """Run Lightning's Trainer as `ovseg fit` does: a warm-up epoch, a timed one, and a step for counting FLOPs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    watch = Watch()
    trainer = L.Trainer(
        accelerator=device,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=2 * len(batches) + 1,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task.train(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return watch


class Watch(L.Callback):
    """Record the seconds of the second epoch and the FLOPs of the first step after it."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0
        self.flops = FlopCounterMode(display=False)

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        wait()
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        wait()
        if trainer.current_epoch == 1:
            self.seconds = time.perf_counter() - self.started

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 2:
            self.flops.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 2:
            self.flops.__exit__(None, None, None)
