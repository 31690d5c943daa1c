"""Time a sweep of settings as a multiple of one evaluation."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from benchmarks.report import report, seconds
from ovseg.metrics import MeanIoU
from ovseg.models import CLIPAdapter, CropEncoder, MaskProposer, OpenVocabSegmenter
from ovseg.structures import ImageProposals, Vocabulary
from ovseg.tasks.sweep import labels_of_grid

PAPER = Path(__file__).parents[2] / "conf" / "paper" / "model" / "maskformer_r101c.yaml"
WEIGHTS, THRESHOLDS = [0.6, 0.65, 0.7, 0.75, 0.8], [0.35, 0.4, 0.45]  # the release's grid


class DrawnMasks(OpenVocabSegmenter):
    """Runs its network, then returns drawn masks, because random weights may propose only empty ones."""

    drawn: Tensor  # (Q, h, w)

    def propose(self, images: Tensor | list[Tensor]) -> list[ImageProposals]:  # type: ignore[override]
        return [proposals._replace(mask_probs=self.drawn) for proposals in super().propose(images)]


@torch.no_grad()
def sweep(
    model: str = "ViT-B-16-quickgelu",
    classes: int = 150,
    proposals: int = 100,
    network: tuple[int, int] = (640, 853),
    size: tuple[int, int] = (512, 683),
    threads: int = 1,
    device: str = "cpu",
) -> None:
    """Time one image through proposals, CLIP, scoring and metrics: 1 setting, 5 weights, and 5 weights x 3 thresholds.

    The proposals come from the paper's MaskFormer with R101c. Text features are random, as a run computes them once.

    Args:
        model: an open_clip model name; all weights are random.
        classes: number of classes.
        proposals: number of regions for CLIP.
        network: height and width of the image at network resolution.
        size: height and width of the label map.
        threads: CPU threads.
        device: cpu or cuda.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    segmenter = make_segmenter(model, classes, proposals, network).to(device).eval()
    image, labels = torch.rand(3, *network, device=device), torch.randint(0, classes, size, device=device)
    names = [str(number) for number in range(classes)]
    counts = [MeanIoU(names).to(device) for _ in range(len(WEIGHTS) * len(THRESHOLDS))]

    def once() -> None:
        counts[0].update(segmenter.labels([image], [size])[0], labels)

    def grid(thresholds: list[float]) -> None:
        answers = labels_of_grid(segmenter, image, size, thresholds, WEIGHTS)
        for miou, found in zip(counts, answers, strict=False):
            miou.update(found, labels)

    segmenter.propose([image])  # warms up
    segmenter.classify_regions(image, segmenter.drawn[:2] > 0.5)
    measured = {
        "one evaluation": seconds(once),
        "5 weights": seconds(lambda: grid(THRESHOLDS[:1])),
        "5 weights x 3 thresholds": seconds(lambda: grid(THRESHOLDS)),
    }
    report(f"{proposals} proposals, {classes} classes, {model}, {network[0]} x {network[1]} pixels", measured)
    one, five, fifteen = measured.values()
    print(f"\nin evaluations: 5 weights cost {five / one:.2f}, the grid of 15 costs {fifteen / one:.2f}")


def make_segmenter(model: str, classes: int, proposals: int, network: tuple[int, int]) -> DrawnMasks:
    """Build the paper's networks with random weights, smooth blobs as masks, and a vocabulary of random features."""
    values = yaml.safe_load(PAPER.read_text(encoding="utf-8"))["init_args"]["proposer"]["init_args"]["model"]
    values["decoder_config"]["num_queries"] = proposals
    clip = CLIPAdapter(model, prompt_depth=3)
    segmenter = DrawnMasks(MaskProposer(values, clip.dim), CropEncoder(clip), mask_threshold=THRESHOLDS[0])
    masks = F.interpolate(torch.randn(1, proposals, 4, 4) * 4, network, mode="bicubic")[0].sigmoid()
    segmenter.register_buffer("drawn", masks)
    segmenter.text_features = F.normalize(torch.randn(classes, clip.dim), dim=1)
    segmenter.proposer.set_text_features(segmenter.text_features)
    segmenter.class_of_phrase = torch.arange(classes)
    segmenter.vocabulary = Vocabulary(tuple(str(number) for number in range(classes)))
    return segmenter
