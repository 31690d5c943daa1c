"""Stage 1: train the proposal network on label maps, classified by fixed text features (paper §3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import lightning as L
from torch import Tensor
from torch.optim import AdamW

from ovseg.checkpoint import ARCHITECTURES
from ovseg.limits import check_at_least
from ovseg.losses import Mask2FormerLoss, MaskClassificationLoss
from ovseg.metrics import MeanBestIoU, MeanIoU
from ovseg.models import CLIPAdapter, MaskProposer, TextEncoder
from ovseg.ops import mask_probabilities, proposal_scores, semantic_labels
from ovseg.optim import WarmupPolyLR, param_groups
from ovseg.structures import EvalBatch, Proposals, SegmentationBatch, Vocabulary


class ProposalTask(L.LightningModule):
    """Train a `MaskProposer` to find the segments of the training vocabulary and to embed them in CLIP's text space.

    The datamodule provides the vocabulary; the task computes its text features when a run starts.

    Args:
        proposer: the network to train.
        clip: computes the text features; it is frozen and saved in no checkpoint.
        lr: learning rate of everything but the backbone.
        backbone_lr_factor: the backbone's learning rate over `lr`; the paper uses 0.1 for ResNets and 1 for Swin.
        weight_decay: weight decay, except of norms and embeddings.
        warmup_steps: steps of linear warm-up, multiplied by the poly decay of power 0.9.
        loss: class of the loss, constructed with the number of classes; `Mask2FormerLoss` by default.

    Raises:
        InputError: a number is negative.
    """

    monitor: ClassVar[str] = "val/mean_best_iou"  # selects the best checkpoint

    def __init__(
        self,
        proposer: MaskProposer,
        clip: CLIPAdapter,
        lr: float = 6e-5,
        backbone_lr_factor: float = 1.0,
        weight_decay: float = 0.01,
        warmup_steps: int = 1500,
        loss: Callable[[int], MaskClassificationLoss] | None = None,
    ) -> None:
        super().__init__()
        check_at_least(0, lr=lr, backbone_lr_factor=backbone_lr_factor)
        check_at_least(0, weight_decay=weight_decay, warmup_steps=warmup_steps)
        proposer.embed_queries()
        self.proposer = proposer
        self._clip = (clip,)  # a tuple hides it from the module, so it is neither trained, saved nor kept on the device
        self.lr, self.backbone_lr_factor = lr, backbone_lr_factor
        self.weight_decay, self.warmup_steps = weight_decay, warmup_steps
        # with a class as the default, jsonargparse would pass Mask2Former's weights to the class that replaces it
        self.make_loss = loss or Mask2FormerLoss
        self.recall = MeanBestIoU()

    def setup(self, stage: str) -> None:
        vocabulary: Vocabulary = self.trainer.datamodule.vocabulary  # type: ignore[attr-defined]
        self.loss = self.make_loss(len(vocabulary))
        self.miou = MeanIoU(vocabulary.names)
        self.vocabulary = vocabulary
        self.proposer.text_features = None  # an earlier run may have used another vocabulary

    def on_fit_start(self) -> None:
        self._encode_vocabulary()

    def on_validation_start(self) -> None:
        self._encode_vocabulary()

    def training_step(self, batch: SegmentationBatch, batch_index: int) -> Tensor:
        losses = self.loss(self.proposer(batch.images), batch.labels, batch.regions)
        total = {"train/loss": losses["loss"]}
        terms = {f"train/{name}": value for name, value in losses.items() if name != "loss"}
        self.log_dict(total, prog_bar=True, batch_size=len(batch.images))
        self.log_dict(terms, batch_size=len(batch.images))
        loss: Tensor = losses["loss"]
        return loss

    def validation_step(self, batch: EvalBatch, batch_index: int) -> None:
        proposals: Proposals = self.proposer(batch.images)[-1]
        assert proposals.class_logits is not None  # on_validation_start encodes the vocabulary
        for index, (image, labels) in enumerate(zip(batch.images, batch.labels, strict=True)):
            probs = mask_probabilities(proposals.mask_logits[index].float(), (image.shape[1], image.shape[2]))
            scores = proposal_scores(proposals.class_logits[index].float())
            size = (labels.shape[0], labels.shape[1])
            self.miou.update(semantic_labels(scores, probs, size), labels)
            self.recall.update(probs > 0.5, labels)
        self.log("val/mean_best_iou", self.recall, prog_bar=True, batch_size=len(batch.images))

    def on_validation_epoch_end(self) -> None:
        result = self.miou.compute()
        self.log_dict({f"val/{name}": result[name].float() for name in ("miou_union", "miou_target")}, sync_dist=True)
        self.miou.reset()

    def configure_optimizers(self) -> Any:
        factors = {"model.pixel_level_module.encoder": self.backbone_lr_factor}
        optimizer = AdamW(param_groups(self.proposer, self.lr, self.weight_decay, factors))
        total = int(self.trainer.estimated_stepping_batches)
        schedule = WarmupPolyLR(optimizer, total, min(self.warmup_steps, total // 2))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[ARCHITECTURES] = {"proposer": self.proposer.architecture()}

    def _encode_vocabulary(self) -> None:
        if self.proposer.text_features is None:
            clip = self._clip[0].to(self.device).eval()
            self.proposer.set_text_features(TextEncoder(clip)(self.vocabulary.names))
            clip.cpu()
