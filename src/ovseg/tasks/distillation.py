"""Stage 3 without texts: teach a single pass the features that adapted crops have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ovseg.models import CLIPAdapter, MaskProposer, Proposer, RegionEncoder, SinglePassEncoder
from ovseg.models.clip.compare import equal_weights
from ovseg.models.regions.saved import saved_encoder
from ovseg.structures import ImageTextBatch, InputError, RegionFeatures, RegionTextBatch
from ovseg.tasks.adapter import AdapterTask


class DistillationTask(AdapterTask):
    """Train a region encoder that sees whole images to reproduce the features of crops.

    The loss is the mean cosine distance to the features that a frozen `CropEncoder`, the teacher, has for all proposals
    of the images of all processes. It needs no texts; the contrastive loss of the pairs can be added.

    Args:
        teacher: the adapted CLIP of the crops: a folder, `toy`, or a `.ckpt` of adapter training, whose region encoder
            is used with its settings.
        proposer: proposes the masks; a string is the `model` of a `MaskProposer`: a `.ckpt`, a folder, a hub name or
            `toy`. By default, the masks are those of the pairs.
        contrastive_weight: factor on the contrastive loss of the pairs, added to the distance; 0 leaves it out.
        mask_threshold: probability above which a pixel belongs to a proposal's region.
        region_encoder: class of the region encoder, constructed with `clip`.
        options: arguments of `AdapterTask`.

    Raises:
        InputError: the teacher's embedding space is another one, the encoder sees crops, the text tower is to be
            trained without texts, or a number is out of range.
    """

    def __init__(
        self,
        teacher: str,
        proposer: Proposer | str | None = None,
        contrastive_weight: float = 0.0,
        mask_threshold: float = 0.5,
        region_encoder: Callable[[CLIPAdapter], RegionEncoder] = SinglePassEncoder,
        **options: Any,
    ) -> None:
        super().__init__(region_encoder=region_encoder, **options)
        if not self.region_encoder.whole_images:
            raise InputError(
                f"{type(self.region_encoder).__name__} sees crops, but distillation trains encoders that see whole "
                "images; use ovseg.models.SinglePassEncoder"
            )
        if not contrastive_weight >= 0:
            raise InputError(f"contrastive_weight is {contrastive_weight}; give a number of at least 0")
        if not 0 <= mask_threshold <= 1:
            raise InputError(f"mask_threshold is {mask_threshold}; give a number from 0 to 1")
        if self.text_trained and not contrastive_weight:
            raise InputError(
                "train: all trains the text tower, which distillation does not use; use train: visual, or set "
                "contrastive_weight, for example to 1"
            )
        if not contrastive_weight:
            self.clip.logit_scale.requires_grad_(False)  # cosines have no temperature, and DDP needs every gradient
        crops = saved_encoder(CLIPAdapter(teacher))
        _check_teacher(crops.clip, self.clip, teacher)
        proposer = MaskProposer(proposer) if isinstance(proposer, str) else proposer
        # a tuple hides frozen networks from checkpoints, the optimizer and `train`
        self._frozen = (crops.eval().requires_grad_(False), proposer and proposer.eval().requires_grad_(False))
        self.contrastive_weight, self.mask_threshold = contrastive_weight, mask_threshold

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.region_encoder.settings().get("precision") is not None:  # its copy of the image tower is frozen
            raise InputError("precision: bf16 is for inference only; train with --model.region_encoder.precision null")
        for network in self._frozen:
            if network is not None:
                network.to(self.device)

    def training_step(self, batch: RegionTextBatch | ImageTextBatch, batch_index: int) -> Tensor:
        """Return the mean cosine distance, plus the weighted contrastive loss.

        The losses of all processes average to those of a single process with all their images.
        """
        if not isinstance(batch, ImageTextBatch):
            raise InputError("distillation needs whole images, but the data brings regions; use RegionTextDataModule")
        all_texts = self._texts_of_all_processes(batch) if self.contrastive_weight else []
        proposals = self._proposals(batch)
        with torch.no_grad():
            targets = self._frozen[0](batch.images, proposals)
        pairs = [len(masks) if all_texts else 0 for masks in batch.masks]  # the regions before the proposals
        masks = [
            torch.cat([own[:count], proposed])
            for own, count, proposed in zip(batch.masks, pairs, proposals, strict=True)
        ]
        idle = not any(len(image_masks) for image_masks in masks)
        if idle:  # encode something, because DDP needs gradients of all weights from every process
            masks[0] = masks[0].new_ones((1, *masks[0].shape[1:]))
        regions: list[RegionFeatures] = self.region_encoder(batch.images, masks)
        parts = zip(regions, pairs, targets, strict=True)
        loss = self._distance([each.features[count:][: len(target.valid)] for each, count, target in parts], targets)
        if idle:
            loss = loss + 0 * regions[0].features.sum()
        log = {"train/distance": loss}
        if all_texts:
            features = torch.cat([each.features[:count] for each, count in zip(regions, pairs, strict=True)])
            contrastive, log["train/accuracy"] = self.contrast(features, all_texts)
            loss = loss + self.contrastive_weight * contrastive
        self.log_dict({"train/loss": loss, **log}, prog_bar=True, batch_size=len(batch.texts), sync_dist=True)
        return loss

    @torch.no_grad()
    def _proposals(self, batch: ImageTextBatch) -> list[Tensor]:
        """Return the masks (Q, h, w) bool of each image."""
        proposer = self._frozen[1]
        if proposer is None:
            return batch.masks
        return [proposals.mask_probs > self.mask_threshold for proposals in proposer.propose(batch.images)]

    def _distance(self, features: list[Tensor], targets: list[RegionFeatures]) -> Tensor:
        """Return the sum of this process's distances over the mean number of valid regions per process, 0 without any.

        Args:
            features: (N, D) of the N regions of each image.
            targets: the teacher's.
        """
        pairs = zip(features, targets, strict=True)
        cosines = torch.cat([(own * target.features).sum(dim=1) for own, target in pairs])
        valid = torch.cat([target.valid for target in targets])
        total: Tensor = self.all_gather(valid.sum()).sum()  # type: ignore[union-attr]
        return ((1 - cosines) * valid).sum() * (self.trainer.world_size / total.clamp(min=1))


def _check_teacher(teacher: CLIPAdapter, student: CLIPAdapter, name: str) -> None:
    """Check that two CLIPs share their text tower, hence their embedding space; adaptation leaves it unchanged."""
    if not equal_weights(teacher, student, image_tower=False):
        raise InputError(
            f"the teacher {name} is not an adapted version of the CLIP that is trained, because their text towers "
            "differ; give a checkpoint of `ovseg fit` that started from the same CLIP"
        )
