"""Stage 3 without texts: teach a single pass the features that adapted crops have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ovseg.models import CLIPAdapter, CropEncoder, MaskProposer, Proposer, RegionEncoder, SinglePassEncoder
from ovseg.structures import ImageTextBatch, InputError, RegionFeatures, RegionTextBatch
from ovseg.tasks.adapter import AdapterTask


class DistillationTask(AdapterTask):
    """Train a region encoder that sees whole images to reproduce the features of crops.

    The loss is the cosine distance to the features that a frozen `CropEncoder`, the teacher, has for all proposals of
    an image. It needs no texts; the contrastive loss of the pairs can be added.

    Args:
        teacher: the adapted CLIP of the crops: a `.ckpt` of adapter training, a folder, or `toy`.
        proposer: proposes the masks; a string is the `model` of a `MaskProposer`: a `.ckpt`, a folder, a hub name or
            `toy`. By default, the masks are those of the pairs.
        contrastive_weight: factor on the contrastive loss of the pairs, added to the distance; 0 leaves it out.
        mask_threshold: probability above which a pixel belongs to a proposal's region.
        region_encoder: class of the region encoder, constructed with `clip`.
        options: arguments of `AdapterTask`.

    Raises:
        InputError: the teacher's embedding space is another one, the encoder sees crops, or a number is out of range.
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
        crops = CropEncoder(CLIPAdapter(teacher))
        _check_teacher(crops.clip, self.clip, teacher)
        proposer = MaskProposer(proposer) if isinstance(proposer, str) else proposer
        # a tuple hides frozen networks from checkpoints, the optimizer and `train`
        self._frozen = (crops.eval().requires_grad_(False), proposer and proposer.eval().requires_grad_(False))
        self.contrastive_weight, self.mask_threshold = contrastive_weight, mask_threshold

    def on_fit_start(self) -> None:
        super().on_fit_start()
        for network in self._frozen:
            if network is not None:
                network.to(self.device)

    def training_step(self, batch: RegionTextBatch | ImageTextBatch, batch_index: int) -> Tensor:
        """Return the mean cosine distance over the proposals of this process, plus the weighted contrastive loss."""
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
        regions: list[RegionFeatures] = self.region_encoder(batch.images, masks)
        loss = _distance([each.features[count:] for each, count in zip(regions, pairs, strict=True)], targets)
        log = {"train/distance": loss}
        if all_texts:
            features = torch.cat([each.features[:count] for each, count in zip(regions, pairs, strict=True)])
            contrastive, log["train/accuracy"] = self.contrast(features, all_texts)
            loss = loss + self.contrastive_weight * contrastive
        self.log_dict({"train/loss": loss, **log}, prog_bar=True, batch_size=len(batch.texts))
        return loss

    @torch.no_grad()
    def _proposals(self, batch: ImageTextBatch) -> list[Tensor]:
        """Return the masks (Q, h, w) bool of each image."""
        proposer = self._frozen[1]
        if proposer is None:
            return batch.masks
        return [proposals.mask_probs > self.mask_threshold for proposals in proposer.propose(batch.images)]


def _distance(features: list[Tensor], targets: list[RegionFeatures]) -> Tensor:
    """Return the mean cosine distance over all valid regions of all images; 0 without any."""
    cosines = torch.cat([(own * target.features).sum(dim=1) for own, target in zip(features, targets, strict=True)])
    valid = torch.cat([target.valid for target in targets])
    return ((1 - cosines) * valid).sum() / valid.sum().clamp(min=1)


def _check_teacher(teacher: CLIPAdapter, student: CLIPAdapter, name: str) -> None:
    """Check that two CLIPs share their text tower, hence their embedding space; adaptation leaves it unchanged."""
    weights, expected = (
        {key: value for key, value in clip.clip.state_dict().items() if not key.startswith(("visual.", "logit_"))}
        for clip in (teacher, student)
    )
    if weights.keys() != expected.keys() or not all(torch.equal(weights[key], expected[key]) for key in expected):
        raise InputError(
            f"the teacher {name} is not an adapted version of the CLIP that is trained, because their text towers "
            "differ; give a checkpoint of `ovseg fit` that started from the same CLIP"
        )
