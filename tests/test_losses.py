"""Losses against CLIP's own, HF's own, and numbers worked out by hand."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
import torch.nn.functional as F
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from ovseg.losses import Mask2FormerLoss, MaskFormerLoss, RegionTextLoss
from ovseg.structures import IGNORE_INDEX, Proposals
from tests import tiny

CLASSES = 4
WEIGHTS = {"class_weight": 1.5, "mask_weight": 3.0, "dice_weight": 2.0, "no_object_weight": 0.2}


def features(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("repeated_texts", ["positives", "negatives"])
def test_unique_texts_equal_clip_s_loss(repeated_texts: str) -> None:
    regions, texts = features(6, 0), features(6, 1)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    ours = RegionTextLoss(repeated_texts)(10 * regions @ texts.T, order)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, open_clip.ClipLoss()(regions, texts[order], torch.tensor(10.0)))


def test_repeated_texts_as_negatives_equal_clip_s_loss() -> None:
    regions, texts = features(5, 0), features(3, 1)
    order = torch.tensor([2, 0, 0, 1, 0])
    ours = RegionTextLoss("negatives")(10 * regions @ texts.T, order)
    torch.testing.assert_close(ours, open_clip.ClipLoss()(regions, texts[order], torch.tensor(10.0)))


def test_repeated_texts_as_positives_by_hand() -> None:
    """Regions 0 and 1 share text 0."""
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    to_text = -sum(math.log(math.exp(x) / (math.exp(x) + 1)) for x in (2, 1, 1)) / 3
    first, second = math.exp(2) + math.exp(1) + 1, 2 + math.exp(1)
    to_region = -((2 - math.log(first) + 1 - math.log(first)) / 2 + (1 - math.log(second))) / 2
    ours = RegionTextLoss()(logits, torch.tensor([0, 0, 1]))
    assert ours.item() == pytest.approx((to_text + to_region) / 2, abs=1e-6)


def test_as_positives_equal_texts_do_not_repel() -> None:
    """A batch of one noun alone: nothing is wrong with it, whatever the release says."""
    logits, target = torch.full((4, 1), 3.0), torch.zeros(4, dtype=torch.int64)
    best = math.log(4) / 2  # a text cannot say which of its four regions it is
    assert RegionTextLoss()(logits, target).item() == pytest.approx(best)
    assert RegionTextLoss("negatives")(logits, target).item() == pytest.approx(2 * best)


def labels(size: int = 64) -> torch.Tensor:
    """Two images: three classes and unlabelled columns; one class alone."""
    result = torch.full((2, size, size), IGNORE_INDEX)
    result[0, :, :20], result[0, :30, 20:40], result[0, 30:, 20:40] = 0, 1, 3
    result[1] = 2
    return result


def layers(seed: int = 0, size: int = 16) -> list[Proposals]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Proposals(
            torch.randn(2, 6, size, size, generator=generator).requires_grad_(),
            torch.zeros(2, 6, 1),
            torch.randn(2, 6, CLASSES + 1, generator=generator).requires_grad_(),
        )
        for _ in range(3)
    ]


def test_mask_loss_equals_hf_s_own() -> None:
    config = Mask2FormerConfig(
        **tiny.mask2former(),
        num_labels=CLASSES,
        **WEIGHTS,
        train_num_points=64,
    )
    hf = Mask2FormerForUniversalSegmentation(config)
    *auxiliary, last = layers()
    classes = [torch.tensor([0, 1, 3]), torch.tensor([2])]
    masks = [(image == present[:, None, None]).float() for image, present in zip(labels(), classes, strict=True)]
    earlier = [
        {"masks_queries_logits": layer.mask_logits, "class_queries_logits": layer.class_logits} for layer in auxiliary
    ]
    torch.manual_seed(0)
    theirs = hf.get_loss_dict(last.mask_logits, last.class_logits, masks, classes, earlier)
    torch.manual_seed(0)  # HF begins with the last layer
    ours = Mask2FormerLoss(CLASSES, **WEIGHTS, num_points=64)([last, *auxiliary], labels())
    torch.testing.assert_close(ours["loss"], hf.get_loss(theirs))
    for part in ("loss_cross_entropy", "loss_mask", "loss_dice"):
        torch.testing.assert_close(ours[part], sum(value for name, value in theirs.items() if name.startswith(part)))


@pytest.mark.parametrize("seed", range(20))  # in half precision, two of these match other queries
def test_half_precision_around_it_changes_nothing(seed: int) -> None:
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(Mask2FormerLoss(CLASSES, **WEIGHTS, num_points=64)(layers(seed), labels()))
    assert losses[0] == losses[1]


def test_perfect_masks_cost_nothing() -> None:
    """Also where the labels are smaller than the padded input that the mask logits cover."""
    target = labels()[:, :48, :40]
    mask_logits, class_logits = torch.full((2, 6, 64, 64), -50.0), torch.full((2, 6, CLASSES + 1), -50.0)
    class_logits[..., -1] = 50
    for image, classes in enumerate(([0, 1, 3], [2])):
        for query, index in enumerate(classes):
            mask_logits[image, query, :48, :40][target[image] == index] = 50
            class_logits[image, query, index], class_logits[image, query, -1] = 50, -50
    quarter = Proposals(mask_logits[:, :, ::4, ::4], torch.zeros(2, 6, 1), class_logits)
    loss = Mask2FormerLoss(CLASSES, num_points=512)([quarter], target)
    empty = Proposals(torch.full_like(quarter.mask_logits, -50), quarter.query_embeddings, class_logits)
    nothing = Mask2FormerLoss(CLASSES, num_points=512)([empty], target)
    assert loss["loss_cross_entropy"].item() < 1e-6
    assert loss["loss_dice"].item() < 0.15 * nothing["loss_dice"].item()  # edges are blurred at a quarter


def test_regions_of_a_class_are_masks_of_their_own() -> None:
    """Two regions that share a class weigh as they would with classes of their own, but for the class."""
    target, proposals = labels()[1:], [Proposals(*(part[1:] for part in layer[:3])) for layer in layers()]  # type: ignore[index]
    regions = torch.zeros_like(target)
    regions[:, :, :10] = 1
    regions[:, :, 10:12], target[:, :, 10:12] = 7, IGNORE_INDEX  # counts as no region
    masks = [torch.stack([target[0] == 2, target[0] == 2]).float()]
    masks[0][0, :, :12], masks[0][1, :, 12:] = 0, 0
    criterion = Mask2FormerLoss(CLASSES, **WEIGHTS, num_points=64)
    torch.manual_seed(0)
    ours = criterion(proposals, target, regions)
    torch.manual_seed(0)
    by_hand = criterion.of_masks(proposals, masks, [torch.tensor([2, 2])])
    torch.testing.assert_close(ours, by_hand)
    assert ours["loss_cross_entropy"] != criterion(proposals, target)["loss_cross_entropy"]


@pytest.mark.parametrize("unlabelled", [[0], [1], [0, 1]])
def test_images_without_labels_teach_no_object(unlabelled: list[int]) -> None:
    target, proposals = labels(), layers()
    target[unlabelled] = IGNORE_INDEX
    loss = Mask2FormerLoss(CLASSES, **WEIGHTS, num_points=64)(proposals, target)
    loss["loss"].backward()
    for layer in proposals:
        assert layer.class_logits is not None and layer.class_logits.grad is not None
        assert bool((layer.class_logits.grad[unlabelled, :, -1] < 0).all())
        assert layer.mask_logits.grad is None or not layer.mask_logits.grad[unlabelled].any()
    if len(unlabelled) == 2:
        assert loss["loss_mask"] == 0 and loss["loss_dice"] == 0


def test_the_loss_is_in_no_checkpoint() -> None:
    assert not Mask2FormerLoss(CLASSES).state_dict() and not MaskFormerLoss(CLASSES).state_dict()


def test_without_class_logits_it_says_what_to_do() -> None:
    bare = [layer._replace(class_logits=None) for layer in layers()]
    with pytest.raises(ValueError, match="set_text_features"):
        Mask2FormerLoss(CLASSES)(bare, labels())
