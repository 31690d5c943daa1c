"""The device reproduces the numbers of the released implementation and of a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ovseg.losses import MaskFormerLoss, RegionTextLoss
from ovseg.metrics import MeanIoU
from ovseg.models import OpenVocabSegmenter, import_released
from ovseg.models.views import Views
from ovseg.ops import crop_regions, ensemble_scores, semantic_scores
from ovseg.structures import CaptionBatch, Vocabulary
from ovseg.tasks import MiningTask, SegmentationTask
from ovseg.tasks.segmentation import Oracle
from ovseg.tasks.sweep import labels_of_grid
from tests import tiny
from tests.gpu.conftest import GPU
from tests.gpu.test_waits import same_pairs, squares
from tests.parity import goldens, test_crops, test_mask_prompt, test_released, test_scores

VOCABULARY = Vocabulary(("cat", "red sky", "grass", "a dog"), (("cat", "kitten"), ("red sky",), ("grass",), ("a dog",)))


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    assert actual.device.type == "cuda"
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=atol)


@pytest.fixture(autouse=True)
def _no_gradients(gpu: GPU) -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("depth", [1, 3])
def test_mask_prompts_equal_the_release(gpu: GPU, depth: int) -> None:
    golden = test_mask_prompt.G1
    tower = test_mask_prompt.tower(depth).to(gpu.device)
    features = tower(golden["regions"].to(gpu.device), golden["masks"][:, 0].to(gpu.device))
    close(features, golden[f"feat_depth{depth}"])


def test_regions_equal_the_release(gpu: GPU) -> None:
    golden, mean = test_crops.G2, test_crops.MEAN
    masks = (golden["mask_prob"] > 0.5).to(gpu.device)
    crops = crop_regions(test_crops.IMAGE.to(gpu.device), masks, 224, mean)
    assert {part.device.type for part in crops} == {"cuda"}
    regions, region_masks, valid = (part.cpu() for part in crops)
    assert torch.equal(valid, golden["A_valid"])
    assert torch.equal(region_masks[valid], goldens.unpack(golden["A_masks_packed"], -1, 224, 224))
    torch.testing.assert_close(regions[valid][..., ::8, ::8], golden["A_unnorm_s8"], rtol=0, atol=1e-3)


def test_the_ensemble_equals_the_release(gpu: GPU) -> None:
    parts = test_scores.CLASS_LOGITS, test_scores.clip_logits(), test_scores.VALID
    scores = ensemble_scores(*(part.to(gpu.device) for part in parts), 0.7)
    close(semantic_scores(scores, test_scores.MASK_PROBS.to(gpu.device)), test_scores.G3["sem_w0.7_somevalid"])


@pytest.mark.parametrize("name", test_released.NAMES)
def test_the_whole_model_and_its_losses_equal_the_release(gpu: GPU, name: str, tmp_path: Path) -> None:
    segmenter = import_released(test_released.released_file(name, tmp_path), decoder_heads=4, mask_threshold=0.5)
    arrays, details = goldens.arrays(f"g4_{name}"), goldens.details(f"g4_{name}")
    segmenter.to(gpu.device).set_vocabulary(details["class_names"])
    images = [image.to(gpu.device) for image in test_released.images(arrays)]
    sizes = [tuple(size) for size in arrays["out_sizes"].tolist()]
    for index, scores in enumerate(segmenter(images, sizes)):
        computed, stored = test_released.as_stored(scores, arrays[f"i{index}_sem_seg"])
        close(computed, stored, 1e-3)
    criterion = MaskFormerLoss(len(details["class_names"])).to(gpu.device)
    masks, classes = [], []
    for index, image in enumerate(test_released.images(arrays)):
        unpacked = goldens.unpack(arrays[f"train_masks{index}_packed"], -1, *image.shape[1:]).float()
        padding = (0, 128 - image.shape[2], 0, 96 - image.shape[1])
        masks.append(torch.nn.functional.pad(unpacked, padding).to(gpu.device))
        classes.append(arrays[f"train_labels{index}"].long().to(gpu.device))
    losses = criterion.of_masks(segmenter.proposer(images)[-1:], masks, classes)
    for ours, theirs in (("cross_entropy", "ce"), ("mask", "mask"), ("dice", "dice")):
        assert float(losses[f"loss_{ours}"]) == pytest.approx(details["losses"][f"loss_{theirs}"], rel=1e-4, abs=1e-6)


def test_metrics_equal_those_of_the_cpu(gpu: GPU) -> None:
    generator = torch.Generator().manual_seed(0)
    preds, target = torch.randint(0, 4, (2, 50, 60), generator=generator)
    here, there = (MeanIoU(VOCABULARY.names, seen=(True, False, True, False)) for _ in range(2))
    there.to(gpu.device)
    here.update(preds, target)
    there.update(preds.to(gpu.device), target.to(gpu.device))
    for name, value in here.compute().items():
        assert float(there.compute()[name]) == pytest.approx(float(value), abs=1e-12)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("segmenter")
    tiny.segmenter(root / "clip").save_pretrained(root / "saved")
    return str(root / "saved")


def same_labels(labels: Tensor, expected: Tensor) -> None:
    assert labels.device.type == "cuda"
    assert float((labels.cpu() == expected).float().mean()) > 0.999


@pytest.mark.parametrize("views", [Views(), Views(mirror=True)], ids=["whole", "mirrored"])
def test_labels_equal_those_of_the_cpu(gpu: GPU, saved: str, views: Views) -> None:
    here, there = OpenVocabSegmenter.from_pretrained(saved), OpenVocabSegmenter.from_pretrained(saved).to(gpu.device)
    images, sizes = tiny.images((50, 70)), [(80, 70)]
    for segmenter in (here, there):
        segmenter.views = views
        segmenter.set_vocabulary(VOCABULARY)
    on_gpu = [image.to(gpu.device) for image in images]
    for labels, expected in zip(there.labels(on_gpu, sizes), here.labels(images, sizes), strict=True):
        same_labels(labels, expected)
    settings = (80, 70), [0.5], [0, 0.7]
    grids = labels_of_grid(there, on_gpu[0], *settings), labels_of_grid(here, images[0], *settings)
    for labels, expected in zip(*grids, strict=True):
        same_labels(labels, expected)


@pytest.mark.parametrize("oracle", [None, "masks", "classes"])
def test_results_of_a_test_equal_those_of_the_cpu(gpu: GPU, saved: str, oracle: Oracle | None) -> None:
    (image,), labels = tiny.images((64, 64)), torch.randint(0, 4, (8, 7), generator=torch.Generator().manual_seed(0))
    labels = labels.repeat_interleave(10, 0).repeat_interleave(10, 1)
    labels[:5] = 255
    answers = []
    for device in ("cpu", gpu.device):
        task = SegmentationTask(saved, oracle=oracle).to(device)
        task.vocabulary = VOCABULARY
        task.segmenter.set_vocabulary(VOCABULARY)
        answers.append(task.answer(image.to(device), labels.to(device)))
    here, there = answers
    same_labels(there.labels, here.labels)
    assert torch.equal(there.names.cpu(), here.names) and torch.equal(there.segments.cpu(), here.segments)


def test_mined_pairs_equal_those_of_the_cpu(gpu: GPU, saved: str) -> None:
    (image,) = tiny.images((64, 64))
    mined: list[Any] = []
    for device in ("cpu", gpu.device):
        torch.manual_seed(0)
        clip = OpenVocabSegmenter.from_pretrained(saved).clip
        for proposals, masks in ((f"{saved}/proposer", None), (None, [squares(5).to(device)])):
            task = MiningTask(clip, proposals, mask_threshold=0.4).eval().to(device)
            size, nouns = (96, 96) if masks is None else (64, 64), ["cat", "sky"]
            batch = CaptionBatch([image.to(device)], [size], ["a.jpg"], [1], [nouns], [[1, 2]], masks)
            mined.append(task.predict_step(batch, 0))
    for expected, pairs in zip(mined[:2], mined[2:], strict=True):
        same_pairs(pairs, expected)


def test_losses_equal_those_of_the_cpu(gpu: GPU, saved: str) -> None:
    """Forward only, because a simulated GPU has no backward pass."""
    segmenter = OpenVocabSegmenter.from_pretrained(saved)
    labels = torch.randint(0, 4, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[:, :3] = 255
    images, regions = (torch.stack(tiny.images(*[(side, side)] * count)) for side, count in ((64, 2), (32, 3)))
    all_losses = []
    for device in ("cpu", gpu.device):
        segmenter.to(device).set_vocabulary(VOCABULARY.names)
        criterion = MaskFormerLoss(4, class_weight=2, mask_weight=5, dice_weight=5).to(device)
        proposals = segmenter.proposer(images.to(device))
        losses = criterion(proposals, labels.to(device))
        features = segmenter.clip.encode_regions(regions.to(device), torch.ones(3, 32, 32, device=device))
        texts = segmenter.clip.encode_text(["cat", "a dog"])
        target = torch.tensor([0, 1, 0]).to(device)
        all_losses.append([*losses.values(), RegionTextLoss()(10 * features @ texts.T, target)])
    for here, there in zip(*all_losses, strict=True):
        assert there.device.type == "cuda" and float(there) == pytest.approx(float(here), rel=1e-3)
