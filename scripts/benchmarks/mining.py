"""Time mining against the naive form, one image and one crop at a time, and measure its memory over many images."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import report, seconds
from ovseg import rle
from ovseg.cli.trainer import OVSegTrainer
from ovseg.data.captions.datamodule import CaptionDataModule
from ovseg.data.pairs import read_pairs, write_pairs
from ovseg.data.toy import write_toy
from ovseg.models import CLIPAdapter
from ovseg.ops import crop_regions, mask_probabilities, masks_to_boxes
from ovseg.structures import CaptionBatch, RegionTextPair
from ovseg.tasks import MiningTask

COCO_IMAGES = 118_287  # of train2017


def mining(
    model: str = "toy",
    proposals: str = "toy",
    images: int = 64,
    batch_size: int = 8,
    short_side: int = 128,
    threads: int = 2,
    device: str = "cpu",
    precision: str = "32-true",
) -> None:
    """Time mining toy scenes, including reading files and writing pairs; nouns are extracted beforehand.

    FLOPs count the matrix products and convolutions of one batch.

    Args:
        model: an open_clip name, with random weights, or `toy`.
        proposals: see `ovseg.tasks.MiningTask`.
        images: number of images.
        batch_size: images per batch of ours.
        short_side: short side of the images at network resolution.
        threads: CPU threads.
        device: cpu or cuda.
        precision: of ours; the naive form uses 32-true.
    """
    torch.set_num_threads(threads)
    _quieten()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_toy(root / "world", images, val_scenes=1)
        task = MiningTask(CLIPAdapter(model), proposals).to(device).eval()
        data = toy_captions(root / "world", short_side, batch_size)
        batch = _to(next(iter(data.predict_dataloader())), device)
        flops = []
        for form in (lambda: [pair for one in _split(batch) for pair in plain(task, one)], lambda: ours(task, batch)):
            with FlopCounterMode(display=False) as counter:  # also warms up
                form()
            flops.append(counter.get_total_flops() / len(batch.images) / 1e9)

        def mine() -> None:
            shutil.rmtree(root / "ours", ignore_errors=True)
            _trainer(device, precision).mine(task, data, str(root / "ours"))

        def mine_plainly() -> None:
            shutil.rmtree(root / "plain", ignore_errors=True)
            loader = data.predict_dataloader()
            pairs = [pair for whole in loader for one in _split(_to(whole, device)) for pair in plain(task, one)]
            write_pairs(root / "plain", pairs)

        measured = {
            f"one image, one crop and one noun at a time ({flops[0]:,.1f} GFLOP an image)": seconds(mine_plainly),
            f"ours, batches of {batch_size} images ({flops[1]:,.1f} GFLOP an image)": seconds(mine),
        }
        same = _shares_pairs(root / "ours", root / "plain")
    rate = images / list(measured.values())[1]
    print()
    report(f"{images} images, CLIP {model}, proposals {proposals}; {flops[0] / flops[1]:.2f} x fewer FLOPs", measured)
    print(f"\n{same:.1%} of the pairs are the same; {rate:.2f} images/s: {COCO_IMAGES / rate / 3600:,.1f} h for COCO's")


def mining_memory(images: int = 10_000, side: int = 64, threads: int = 2) -> None:
    """Print the memory of the process at each tenth of mining many small images with the toy world's CLIP.

    Args:
        images: number of images; each has its own noun, so that caches of nouns show.
        side: of the images in pixels.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    _quieten()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_many(root, images, side)
        data = CaptionDataModule(
            root / "images", root / "captions.json", masks=root / "masks.json", short_side=side, batch_size=16
        )
        memory = Memory(images)
        _trainer("cpu", "32-true", memory).mine(MiningTask(CLIPAdapter("toy")), data, str(root / "pairs"))
        size = sum(file.stat().st_size for file in (root / "pairs").glob("*.parquet"))
        print(f"{size / len(read_pairs(root / 'pairs')):.0f} bytes a pair")


@torch.no_grad()
def ours(task: MiningTask, batch: CaptionBatch) -> list[RegionTextPair]:
    """Mine a batch without the Trainer."""
    return task.predict_step(batch, 0)


@torch.no_grad()
def plain(task: MiningTask, batch: CaptionBatch) -> list[RegionTextPair]:
    """Mine the pairs of one image, one crop and one noun at a time."""
    clip, image, size = task.clip, batch.images[0], batch.sizes[0]
    logits = task.proposer([image])[-1].mask_logits[0]  # type: ignore[misc]
    probs = F.interpolate(mask_probabilities(logits, image.shape[1:])[None], size, mode="bilinear")[0]
    masks, features = [], []
    for prob in probs:
        mask = prob > task.mask_threshold
        resized = F.interpolate(mask[None, None].float(), image.shape[1:], mode="nearest")[0] > 0
        if resized.any():
            crop, crop_mask, _ = crop_regions(image, resized, clip.image_size)
            features.append(clip.encode_regions(crop, crop_mask)[0])
            masks.append(mask)
    pairs = []
    for noun, caption in zip(batch.nouns[0], batch.caption_ids[0], strict=True):
        tokens = clip.tokenizer([f"a photo of a {noun}."]).to(image.device)
        text = F.normalize(clip.clip.encode_text(tokens), dim=-1)[0]  # type: ignore[operator]
        ranked = (torch.stack(features) @ text).sort(descending=True)
        best = masks[int(ranked.indices[0])][None].cpu()
        box = tuple(masks_to_boxes(best)[0].tolist())
        value, margin = ranked.values[0].item(), (ranked.values[0] - ranked.values[1]).item()
        name, image_id, counts = batch.names[0], batch.image_ids[0], rle.encode(best)[0]
        pairs.append(RegionTextPair(image_id, name, size, counts, box, noun, caption, value, margin, 1.0))
    return pairs


class Memory(Callback):
    """Print the resident memory of the process at each tenth of the way."""

    def __init__(self, images: int) -> None:
        self.images, self.done, self.shown = images, 0, 0

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: CaptionBatch, *_: Any) -> None:
        self.done += len(batch.images)
        if self.done * 10 // self.images > self.shown:
            self.shown = self.done * 10 // self.images
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(f"{self.done:7,} images  {pages * os.sysconf('SC_PAGE_SIZE') / 2**20:7.0f} MiB", flush=True)


def _write_many(root: Path, images: int, side: int) -> None:
    """Write single-colour images, each with a caption and two masks as run lengths."""
    (root / "images").mkdir()
    listed, captions, masks = [], [], []
    for number in range(images):
        name, mask = f"{number:06d}.jpg", torch.zeros(1, side, side, dtype=torch.bool)
        Image.new("RGB", (side, side), (number % 256, number // 256 % 256, 90)).save(root / "images" / name)
        mask[:, : side // 2, : 1 + number % side] = True
        listed.append({"id": number, "file_name": name, "height": side, "width": side})
        word = "".join(chr(ord("a") + int(digit)) for digit in f"{number:06d}")
        captions.append({"id": number, "image_id": number, "caption": f"a dog and a cat on the {word}"})
        for counts in rle.encode(torch.cat([mask, ~mask])):
            masks.append({"image_id": number, "segmentation": {"size": [side, side], "counts": counts.decode()}})
    (root / "captions.json").write_text(json.dumps({"images": listed, "annotations": captions}))
    (root / "masks.json").write_text(json.dumps(masks))


def toy_captions(world: Path, short_side: int, batch_size: int) -> CaptionDataModule:
    """Return a datamodule of toy scenes whose nouns are already extracted."""
    captions = world / "annotations" / "captions_train2017.json"
    data = CaptionDataModule(world / "train2017", captions, short_side=short_side, batch_size=batch_size)
    data.prepare_data()
    data.setup("predict")
    return data


def _shares_pairs(first: Path, second: Path) -> float:
    """Return the share of pairs with the same mask in both stores; their numbers differ by rounding."""
    masks = [{(pair.image_id, pair.noun): pair.counts for pair in read_pairs(store)} for store in (first, second)]
    assert masks[0].keys() == masks[1].keys()
    return sum(masks[0][key] == masks[1][key] for key in masks[0]) / len(masks[0])


def _split(batch: CaptionBatch) -> list[CaptionBatch]:
    lists = (batch.images, batch.sizes, batch.names, batch.image_ids, batch.nouns, batch.caption_ids)
    return [CaptionBatch(*([item] for item in items), None) for items in zip(*lists, strict=True)]  # type: ignore[arg-type]


def _to(batch: CaptionBatch, device: str) -> CaptionBatch:
    return batch._replace(images=[image.to(device) for image in batch.images])


def _trainer(device: str, precision: str, *callbacks: Callback) -> OVSegTrainer:
    return OVSegTrainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        precision=precision,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _quieten() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
