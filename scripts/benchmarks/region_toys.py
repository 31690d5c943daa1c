"""Parts of the benchmark of region encoders: mining, results on the toy world, and memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mine_toy import verdict
from torch import Tensor

from benchmarks.mining import ours, toy_captions
from benchmarks.region_parts import DrawnMasks, PlainCrops, draw_regions
from benchmarks.regions_memory import peak_memory
from benchmarks.report import seconds
from ovseg import rle
from ovseg.data.masks import CocoMasks
from ovseg.data.toy import NOUNS, make_scene, write_toy
from ovseg.images import to_tensor
from ovseg.models import CLIPAdapter, CropEncoder, OpenVocabSegmenter, RegionEncoder, SinglePassEncoder
from ovseg.structures import CaptionBatch, RegionTextPair
from ovseg.tasks import MiningTask

Values = dict[str, Any]
TOY_SIDE = 128  # of a scene, in pixels


def mining_speed(clip: CLIPAdapter, proposer: DrawnMasks, image: Tensor) -> Values:
    """Time mining one image, from its pixels to its pairs."""
    size = (image.shape[1], image.shape[2])
    batch = CaptionBatch([image], [size], ["photo.jpg"], [1], [["dog", "tree", "sky"]], [[1, 1, 1]], None)
    encoders: dict[str, RegionEncoder] = {
        "baseline": PlainCrops(clip),
        "crops": CropEncoder(clip),
        "single pass": SinglePassEncoder(clip),
    }
    taken = {}
    for name, encoder in encoders.items():
        task = MiningTask(clip, proposer, region_encoder=lambda _, encoder=encoder: encoder).eval()
        encoder([image], [draw_regions(2, size)])  # warms up
        taken[name] = seconds(lambda task=task: ours(task, batch))
        print(f"mining, {name}: {taken[name]:.2f} s an image", flush=True)
    return {"seconds": taken}


def pixel_agreement(scenes: int = 50) -> Values:
    """Compare labels of crops in bf16 with those in fp32 on toy scenes."""
    images = [to_tensor(make_scene(7, index, TOY_SIDE, "val2017").image) for index in range(scenes)]
    names = [noun.name for noun in NOUNS]

    def labels(make_encoder: Callable[[CLIPAdapter], RegionEncoder]) -> Tensor:
        segmenter = OpenVocabSegmenter.from_pretrained("toy", make_encoder)
        segmenter.set_vocabulary(names)
        return torch.stack(segmenter.labels(images))

    same = labels(CropEncoder) == labels(lambda clip: CropEncoder(clip, precision="bf16"))
    return {"bf16": {"scenes": scenes, "equal_pixels": same.float().mean().item()}}


def mining_agreement(images: int = 100) -> Values:
    """Mine toy scenes with crops and with a single pass, and compare the regions that each noun is paired with."""
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        write_toy(world, images, seed=7, val_scenes=1)
        data = toy_captions(world, TOY_SIDE, 8)
        true = CocoMasks(world / "annotations" / "regions_train2017.json")
        stores, right = {}, {}
        for name, make_encoder in {"crops": CropEncoder, "single pass": _toy_single_pass}.items():
            task = MiningTask(CLIPAdapter("toy"), "toy", region_encoder=make_encoder).eval()
            pairs = [pair for batch in data.predict_dataloader() for pair in ours(task, batch)]
            stores[name] = {(pair.image_id, pair.noun): pair for pair in pairs}
            verdicts = [verdict(pair, true(Path(pair.file_name), pair.size, pair.image_id)) for pair in pairs]
            right[name] = sum(is_right for is_right, _ in verdicts) / len(pairs)
    shared = stores["crops"].keys() & stores["single pass"].keys()
    overlaps = torch.tensor([_iou(stores["crops"][key], stores["single pass"][key]) for key in shared])
    agreement = {"images": images, "pairs": len(shared), "right": right}
    agreement |= {"same": (overlaps == 1).float().mean().item(), "overlap": (overlaps >= 0.5).float().mean().item()}
    return {"mining": agreement}


def single_pass_memory(model: str = "ViT-L-14", size: tuple[int, int] = (640, 960)) -> list[Values]:
    """Return the peak memory of labelling an image from few and many masks, and that of the masks, in bytes.

    The tower has one block, which changes the time but not the memory.
    """
    measured = {count: peak_memory("single pass", count, model, 1, size, 10, 1) for count in (100, 1000)}
    return [{"proposals": count, "peak": peak, "masks": masks} for count, (peak, masks) in measured.items()]


def _toy_single_pass(clip: CLIPAdapter) -> RegionEncoder:
    return SinglePassEncoder(clip, TOY_SIDE)


def _iou(first: RegionTextPair, second: RegionTextPair) -> float:
    """Return the intersection over union of the regions of two pairs of the same image."""
    one, other = rle.decode([first.counts, second.counts], first.size)
    return ((one & other).sum() / (one | other).sum()).item()
