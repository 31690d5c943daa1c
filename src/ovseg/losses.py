"""Losses: region-text contrast, and mask classification with Hungarian matching (HF's)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss
from transformers.models.maskformer.modeling_maskformer import MaskFormerHungarianMatcher, MaskFormerLoss

from ovseg.structures import IGNORE_INDEX, Proposals


class RegionTextLoss(nn.Module):
    """Symmetric contrastive loss between regions and texts, where several regions may share a text.

    Args:
        repeated_texts: `positives`: regions with equal texts are positives of one text. `negatives`: each repetition is
            a text of its own, as in the release (and in CLIP), so that equal nouns repel each other.
    """

    def __init__(self, repeated_texts: Literal["positives", "negatives"] = "positives") -> None:
        super().__init__()
        self.repeated_texts = repeated_texts

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean of both directions.

        Args:
            logits: (N, U) scaled cosines of N regions and the U unique texts of the batch.
            target: (N,) the text of each region; every text has one.
        """
        if self.repeated_texts == "negatives":
            logits = logits[:, target]  # (N, N)
            target = torch.arange(len(logits), device=logits.device)
        belongs = F.one_hot(target, logits.shape[1]).to(logits.dtype)  # (N, U)
        shares = belongs / belongs.sum(dim=0)  # a text is equally each of its regions
        region_to_text = F.cross_entropy(logits, target)
        text_to_region = F.cross_entropy(logits.T, shares.T)
        return (region_to_text + text_to_region) / 2


@dataclass(frozen=True)
class MaskLossWeights:
    """Weights of the parts of the mask loss, in the matching too; Mask2Former's own by default.

    Args:
        class_weight: of the cross-entropy.
        mask_weight: of the binary cross-entropy of masks.
        dice_weight: of the dice loss of masks.
        no_object_weight: of the no-object class inside the cross-entropy.
        num_points: points sampled a mask; None takes every pixel and the focal loss, as MaskFormer does.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int | None = 12544


class MaskClassificationLoss(nn.Module):
    """The loss of Mask2Former or MaskFormer on every decoder layer; Hungarian matching and losses are HF's.

    Cross-entropy and dice, and binary cross-entropy on sampled points (Mask2Former) or the focal loss on all pixels.
    """

    def __init__(self, num_classes: int, weights: MaskLossWeights = MaskLossWeights()) -> None:
        super().__init__()
        self.weights = {
            "loss_cross_entropy": weights.class_weight,
            "loss_mask": weights.mask_weight,
            "loss_dice": weights.dice_weight,
        }
        self.criterion = (
            _DenseCriterion(num_classes, weights)
            if weights.num_points is None
            else _PointCriterion(num_classes, weights, weights.num_points)
        )

    def forward(self, layers: list[Proposals], labels: Tensor, regions: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted sums over all layers.

        Args:
            layers: every decoder layer's proposals, with class logits.
            labels: (B, h, w) class indices or `IGNORE_INDEX`.
            regions: (B, h, w) numbers from 0; a class's pixels of one number are one mask. The whole area of a class in
                an image is one where not given.

        Returns:
            `loss` and its parts `loss_cross_entropy`, `loss_mask`, `loss_dice`.
        """
        base = IGNORE_INDEX + 1
        segments = labels if regions is None else labels + base * regions
        present = [image[image % base != IGNORE_INDEX].unique() for image in segments]
        height, width = layers[-1].mask_logits.shape[2] * 4, layers[-1].mask_logits.shape[3] * 4
        # the mask logits cover the padded input
        segments = F.pad(segments, (0, width - labels.shape[2], 0, height - labels.shape[1]), value=IGNORE_INDEX)
        masks = [(image == found[:, None, None]).float() for image, found in zip(segments, present, strict=True)]
        return self.of_masks(layers, masks, [found % base for found in present])

    def of_masks(self, layers: list[Proposals], masks: list[Tensor], classes: list[Tensor]) -> dict[str, Tensor]:
        """The same from masks, (M, h, w) float an image at the size of the padded input, and their classes, (M,)."""
        parts = dict.fromkeys(self.weights, layers[-1].mask_logits.new_zeros((), dtype=torch.float32))
        # half precision is too coarse for the costs of matching, and HF's point sampling knows none on a CPU
        with torch.autocast(layers[-1].mask_logits.device.type, enabled=False):
            for layer in layers:
                losses = self.criterion(layer.mask_logits.float(), _classes(layer).float(), masks, classes)
                for name, value in losses.items():
                    parts[name] = parts[name] + self.weights[name] * value
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}


class _PointCriterion(Mask2FormerLoss):
    """HF's loss of Mask2Former, with masks counted as Lightning's processes need it."""

    def __init__(self, num_classes: int, weights: MaskLossWeights, num_points: int) -> None:
        config = Mask2FormerConfig(
            num_labels=num_classes,  # type: ignore[call-arg]  # of PreTrainedConfig
            class_weight=weights.class_weight,
            mask_weight=weights.mask_weight,
            dice_weight=weights.dice_weight,
            no_object_weight=weights.no_object_weight,
            train_num_points=num_points,
        )
        super().__init__(config, {})  # the weights are applied by the caller
        _keep_out_of_checkpoints(self)

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:  # type: ignore[override]
        return _masks_a_process(class_labels, device)


class _DenseCriterion(MaskFormerLoss):
    """HF's loss of MaskFormer, likewise."""

    def __init__(self, num_classes: int, weights: MaskLossWeights) -> None:
        matcher = MaskFormerHungarianMatcher(
            cost_class=weights.class_weight, cost_mask=weights.mask_weight, cost_dice=weights.dice_weight
        )
        super().__init__(num_classes, matcher, {}, weights.no_object_weight)
        _keep_out_of_checkpoints(self)

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:  # type: ignore[override]
        return _masks_a_process(class_labels, device)


def _keep_out_of_checkpoints(criterion: Mask2FormerLoss | MaskFormerLoss) -> None:
    """HF makes the class weights persistent; they are of the size of the vocabulary, which belongs in no checkpoint."""
    empty_weight = criterion.empty_weight
    del criterion.empty_weight
    criterion.register_buffer("empty_weight", empty_weight, persistent=False)


def _masks_a_process(class_labels: list[Tensor], device: torch.device) -> Tensor:
    """Mean number of masks a process, at least 1; HF averages only under accelerate, not under Lightning's DDP."""
    count = torch.tensor(float(sum(len(classes) for classes in class_labels)), device=device)
    processes = 1
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        processes = distributed.get_world_size()
    return (count / processes).clamp(min=1)


def _classes(layer: Proposals) -> Tensor:
    if layer.class_logits is None:
        raise ValueError("proposals have no class logits; call set_text_features first")
    return layer.class_logits
