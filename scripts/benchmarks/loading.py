"""Time reading region-text pairs for adapter training, now and before."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2.functional import resized_crop

from benchmarks.report import report
from ovseg import rle
from ovseg.data.loading import ResumableLoader, seeded, train_loader
from ovseg.data.pairs import Pairs, read_pairs, write_pairs
from ovseg.data.pairs.datamodule import PairSampling, RegionTextDataModule
from ovseg.data.pairs.region_transform import RATIO, SCALE, RegionTransform
from ovseg.data.pairs.regions import RegionText
from ovseg.images import read_image, to_tensor
from ovseg.ops import CLIP_MEAN, masks_to_boxes
from ovseg.structures import RegionTextBatch, RegionTextPair

COCO_SIZE = (480, 640)


def loading(
    images: int = 60,
    pairs_an_image: tuple[float, ...] = (3.7, 11.0),
    size: int = 224,
    batch_size: int = 64,
    workers: int = 0,
    threads: int = 1,
    store: Path | None = None,
    image_folder: Path | None = None,
) -> None:
    """Measure the CPU time for reading the regions of an epoch, ready for CLIP.

    Images are multi-scale noise, 480 x 640, as JPEG of quality 95: 160 KB each, like COCO's. Masks are ellipses with
    ragged borders, a tenth to nine tenths of the image in each direction. Before, each pair was drawn independently and
    decoded its own image, run lengths were decoded over the whole image, and torchvision resized the regions.

    Args:
        images: number of images.
        pairs_an_image: mean number of regions per image, one table each; 3.7 is one caption per image, 11 all captions.
        size: side of the regions.
        batch_size: regions per batch.
        workers: processes that read; 0 reads in this process.
        threads: CPU threads.
        store: real pairs to use instead.
        image_folder: folder that the names in the store are relative to.
    """
    torch.set_num_threads(threads)
    if store is not None and image_folder is not None:
        compare(store, image_folder, size, batch_size, workers, str(store))
        return
    for number in pairs_an_image:
        with tempfile.TemporaryDirectory() as folder:
            write_pairs(Path(folder) / "pairs", write_images(Path(folder), images, number))
            title = f"{images} images of 480 x 640 with {number} pairs each"
            compare(Path(folder) / "pairs", Path(folder), size, batch_size, workers, title)
            print()


def compare(store: Path, images: Path, size: int, batch_size: int, workers: int, title: str) -> None:
    """Print the table for one store, and how far the regions differ."""
    transform, pairs = RegionTransform(size), read_pairs(store)
    data = RegionTextDataModule(store, images, transform, total_batch_size=batch_size, num_workers=workers)
    single = RegionTextDataModule(
        store, images, transform, PairSampling(by_image=False), total_batch_size=batch_size, num_workers=workers
    )
    for module in (data, single):
        module.setup("fit")
    plain = PlainRegions(pairs, images, size)
    loaders = {
        "before: each pair's image decoded": train_loader(plain, batch_size, 0, workers, join_regions),
        "each pair drawn on its own": single.train_dataloader(),
        "pairs of an image together": data.train_dataloader(),
    }
    for loader in loaders.values():  # starts the workers and fills the page cache
        list(loader)
    measured = {name: sum(batches) for name, batches in batch_seconds(loaders, workers).items()}
    number = len(pairs) // batch_size * batch_size
    report(f"{number} of {len(pairs)} regions, {title}, {workers or 'no'} workers", measured)
    rates = [1000 * time / number for time in measured.values()]
    print(f"\n{', '.join(f'{rate:.2f}' for rate in rates)} ms a region")
    differences = [(plain[key].region - data.dataset[key].region).abs().max().item() for key in range(number)]
    print(f"regions differ by at most {max(differences):.1e}")


def batch_seconds(loaders: dict[str, ResumableLoader], workers: int) -> dict[str, list[float]]:
    """Time each batch of an epoch, best of five; in CPU time, which other work on the machine affects less."""
    clock = time.perf_counter if workers else time.process_time
    best = {name: [float("inf")] * len(loader) for name, loader in loaders.items()}
    for _ in range(5):
        for name, loader in loaders.items():
            loader.position, batches = None, iter(loader)
            for index in range(len(loader)):
                start = clock()
                next(batches)
                best[name][index] = min(best[name][index], clock() - start)
            next(batches, None)
    return best


class PlainRegions(torch.utils.data.Dataset[RegionText]):
    """Yield what `RegionTexts` does, without its optimisations."""

    def __init__(self, pairs: Pairs, images: Path, size: int) -> None:
        self.pairs, self.images, self.size = pairs, images, size
        self.ids = {noun: index for index, noun in enumerate(pairs.nouns())}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int) -> RegionText:
        pair = self.pairs[key % len(self)]
        x0, y0, x1, y1 = pair.box
        crop = to_tensor(read_image(self.images / pair.file_name).crop(pair.box))
        mask = rle.decode([pair.counts], pair.size)[:, y0:y1, x0:x1]
        with seeded(0, key):
            top, left, height, width = RandomResizedCrop.get_params(crop, list(SCALE), list(RATIO))
            if not mask[:, top : top + height, left : left + width].any():
                top, left, (height, width) = 0, 0, mask.shape[1:]
            filled = torch.where(mask, crop, torch.tensor(CLIP_MEAN)[:, None, None])
            window, square = (top, left, height, width), [self.size, self.size]
            region = resized_crop(filled, *window, square, InterpolationMode.BICUBIC, antialias=False)
            small = resized_crop(mask.float(), *window, square, InterpolationMode.NEAREST, antialias=False)[0] > 0
        return RegionText(region, small, pair.noun, self.ids[pair.noun])


def join_regions(samples: list[RegionText]) -> RegionTextBatch:
    """Collate samples into a batch."""
    regions, masks, texts, ids = zip(*samples, strict=True)
    return RegionTextBatch(torch.stack(regions), torch.stack(masks), list(texts), torch.tensor(ids))


def write_images(folder: Path, images: int, pairs_an_image: float) -> list[RegionTextPair]:
    """Write JPEG files and return their pairs."""
    pairs: list[RegionTextPair] = []
    for number in range(images):
        generator = torch.Generator().manual_seed(number)
        name = f"{number:06d}.jpg"
        picture(generator).save(folder / name, quality=95)
        while len(pairs) < round((number + 1) * pairs_an_image):
            pairs.append(region(generator, number, name, f"noun {len(pairs)}"))
    return pairs


def picture(generator: torch.Generator) -> Image.Image:
    """Draw multi-scale noise."""
    pixels = 3 * torch.randn(3, *COCO_SIZE, generator=generator) + 128
    for rows, contrast in ((4, 60), (16, 40), (64, 25), (240, 12)):
        noise = torch.randn(1, 3, rows, rows * 4 // 3, generator=generator)
        pixels += contrast * F.interpolate(noise, COCO_SIZE, mode="bicubic")[0]
    return Image.fromarray(pixels.clamp(0, 255).byte().permute(1, 2, 0).numpy())


def region(generator: torch.Generator, image: int, name: str, noun: str) -> RegionTextPair:
    """Make a pair whose mask is an ellipse with a ragged border."""
    height, width = COCO_SIZE
    sides = (0.1 + 0.8 * torch.rand(2, generator=generator)) * torch.tensor(COCO_SIZE)
    top, left = ((torch.tensor(COCO_SIZE) - sides) * torch.rand(2, generator=generator)).tolist()
    y = (torch.arange(height) - top)[:, None] / sides[0] * 2 - 1
    x = (torch.arange(width) - left)[None] / sides[1] * 2 - 1
    border = F.interpolate(torch.randn(1, 1, 60, 80, generator=generator), COCO_SIZE, mode="bilinear")[0, 0]
    mask: Tensor = (y**2 + x**2 + 0.1 * border < 0.9)[None]
    x0, y0, x1, y1 = masks_to_boxes(mask)[0].tolist()
    return RegionTextPair(image, name, COCO_SIZE, rle.encode(mask)[0], (x0, y0, x1, y1), noun, image, 0.25, 0.1, 1.0)
