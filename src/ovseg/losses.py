"""Losses: the region-text contrast, and mask classification with Hugging Face's Hungarian matching."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss as HFMask2FormerLoss
from transformers.models.maskformer.modeling_maskformer import MaskFormerHungarianMatcher
from transformers.models.maskformer.modeling_maskformer import MaskFormerLoss as HFMaskFormerLoss

from ovseg.structures import IGNORE_INDEX, Proposals


class RegionTextLoss(nn.Module):
    """Symmetric contrastive loss between regions and texts, where several regions may share a text.

    Args:
        repeated_texts: `positives`: regions with equal texts are positives of one text. `negatives`: every repetition
            counts as a separate text, as in the release and in CLIP, so equal nouns repel each other.
    """

    def __init__(self, repeated_texts: Literal["positives", "negatives"] = "positives") -> None:
        super().__init__()
        self.repeated_texts = repeated_texts

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean of both directions, a scalar.

        Args:
            logits: (N, U) scaled cosines of N regions and the U unique texts of the batch.
            target: (N,) index of each region's text; every text has at least one region.
        """
        if self.repeated_texts == "negatives":
            logits = logits[:, target]  # (N, N)
            target = torch.arange(len(logits), device=logits.device)
        matches = F.one_hot(target, logits.shape[1]).to(logits.dtype)  # (N, U)
        shares = matches / matches.sum(dim=0)  # the regions of a text share its probability equally
        region_to_text = F.cross_entropy(logits, target)
        text_to_region = F.cross_entropy(logits.T, shares.T)
        return (region_to_text + text_to_region) / 2


class MaskClassificationLoss(nn.Module, ABC):
    """Base of the mask losses: build masks from label maps and sum the weighted losses of every decoder layer.

    A subclass chooses the criterion, which matches queries to masks and compares them. A loss for `ProposalTask` is
    constructed with the number of classes as its first argument.

    Args:
        criterion: Hugging Face's loss of one layer. Call: (mask logits, class logits, masks, classes) → unweighted
            `loss_cross_entropy`, `loss_mask` and `loss_dice`.
        class_weight: weight of the cross-entropy.
        mask_weight: weight of the pixel-wise mask loss.
        dice_weight: weight of the dice loss.
    """

    @abstractmethod  # or jsonargparse would construct this class where a config gives weights but no class
    def __init__(self, criterion: nn.Module, class_weight: float, mask_weight: float, dice_weight: float) -> None:
        super().__init__()
        self.criterion = criterion
        self.weights = {"loss_cross_entropy": class_weight, "loss_mask": mask_weight, "loss_dice": dice_weight}

    def forward(self, layers: list[Proposals], labels: Tensor, regions: Tensor | None = None) -> dict[str, Tensor]:
        """Return the weighted losses, each summed over all layers.

        Args:
            layers: the proposals of every decoder layer, with class logits.
            labels: (B, h, w) class indices or `IGNORE_INDEX`.
            regions: (B, h, w) region numbers from 0; pixels of one class and one region form a mask. By default all
                pixels of a class in an image form one mask.

        Returns:
            `loss` and its parts `loss_cross_entropy`, `loss_mask`, `loss_dice`.
        """
        base = IGNORE_INDEX + 1
        segments = labels if regions is None else labels + base * regions
        present = [image[image % base != IGNORE_INDEX].unique() for image in segments]
        height, width = layers[-1].mask_logits.shape[2] * 4, layers[-1].mask_logits.shape[3] * 4
        # the mask logits cover the padded input at a quarter of its resolution
        segments = F.pad(segments, (0, width - labels.shape[2], 0, height - labels.shape[1]), value=IGNORE_INDEX)
        masks = [(image == ids[:, None, None]).float() for image, ids in zip(segments, present, strict=True)]
        return self.of_masks(layers, masks, [ids % base for ids in present])

    def of_masks(self, layers: list[Proposals], masks: list[Tensor], classes: list[Tensor]) -> dict[str, Tensor]:
        """Return the same losses from masks instead of label maps.

        Args:
            layers: the proposals of every decoder layer, with class logits.
            masks: per image (M, h, w) float, at the size of the padded input.
            classes: per image (M,) class indices.
        """
        parts = dict.fromkeys(self.weights, layers[-1].mask_logits.new_zeros((), dtype=torch.float32))
        # half precision is too coarse for matching costs, and HF's point sampling does not support it on a CPU
        with torch.autocast(layers[-1].mask_logits.device.type, enabled=False):
            for layer in layers:
                losses = self.criterion(layer.mask_logits.float(), _classes(layer).float(), masks, classes)
                for name, value in losses.items():
                    parts[name] = parts[name] + self.weights[name] * value
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}


class Mask2FormerLoss(MaskClassificationLoss):
    """The loss of Mask2Former: cross-entropy, and binary cross-entropy and dice on sampled points.

    The weights apply to Hungarian matching too. The defaults are Mask2Former's.

    Args:
        num_classes: number of classes without "no object".
        class_weight: weight of the cross-entropy.
        mask_weight: weight of the binary cross-entropy of masks.
        dice_weight: weight of the dice loss of masks.
        no_object_weight: weight of "no object" within the cross-entropy.
        num_points: points sampled per mask.
    """

    def __init__(
        self,
        num_classes: int,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
    ) -> None:
        config = Mask2FormerConfig(
            num_labels=num_classes,  # type: ignore[call-arg]  # of PreTrainedConfig
            class_weight=class_weight,
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            no_object_weight=no_object_weight,
            train_num_points=num_points,
        )
        super().__init__(_PointCriterion(config, {}), class_weight, mask_weight, dice_weight)
        _keep_out_of_checkpoints(self.criterion)


class MaskFormerLoss(MaskClassificationLoss):
    """The loss of MaskFormer: cross-entropy, and focal loss and dice on all pixels.

    The weights apply to Hungarian matching too. The defaults are MaskFormer's, which OVSeg's release uses.

    Args:
        num_classes: number of classes without "no object".
        class_weight: weight of the cross-entropy.
        mask_weight: weight of the focal loss of masks.
        dice_weight: weight of the dice loss of masks.
        no_object_weight: weight of "no object" within the cross-entropy.
    """

    def __init__(
        self,
        num_classes: int,
        class_weight: float = 1.0,
        mask_weight: float = 20.0,
        dice_weight: float = 1.0,
        no_object_weight: float = 0.1,
    ) -> None:
        matcher = MaskFormerHungarianMatcher(cost_class=class_weight, cost_mask=mask_weight, cost_dice=dice_weight)
        criterion = _DenseCriterion(num_classes, matcher, {}, no_object_weight)
        super().__init__(criterion, class_weight, mask_weight, dice_weight)
        _keep_out_of_checkpoints(self.criterion)


class _PointCriterion(HFMask2FormerLoss):
    """Hugging Face's Mask2Former loss, with the mask count averaged over Lightning's processes."""

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:  # type: ignore[override]
        return _masks_per_process(class_labels, device)


class _DenseCriterion(HFMaskFormerLoss):
    """Hugging Face's MaskFormer loss, with the mask count averaged over Lightning's processes."""

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:  # type: ignore[override]
        return _masks_per_process(class_labels, device)


def _keep_out_of_checkpoints(criterion: nn.Module) -> None:
    """Make the class weights non-persistent; their size depends on the vocabulary, which no checkpoint contains."""
    empty_weight = criterion.get_buffer("empty_weight")
    del criterion.empty_weight
    criterion.register_buffer("empty_weight", empty_weight, persistent=False)


def _masks_per_process(class_labels: list[Tensor], device: torch.device) -> Tensor:
    """Return the mean number of masks per process, at least 1; HF averages under accelerate but not under DDP."""
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
