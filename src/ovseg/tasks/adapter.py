"""Stage 3: adapt CLIP to masked regions, by mask prompt tuning and by fine-tuning (paper §3.2, §3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ovseg.checkpoint import ARCHITECTURES, check_fit
from ovseg.limits import check_at_least
from ovseg.losses import RegionTextLoss
from ovseg.metrics import MaskAccuracy
from ovseg.models import CLIPAdapter, CropEncoder, RegionEncoder, TextEncoder
from ovseg.models.ensemble import RegionLogits
from ovseg.models.phrases import PhraseFeatures
from ovseg.models.regions.saved import NAME, build_encoder, description
from ovseg.optim import WarmupCosineLR, param_groups
from ovseg.structures import EvalBatch, ImageTextBatch, InputError, RegionTextBatch, Vocabulary
from ovseg.tasks.segments import name_segments


class AdapterTask(L.LightningModule):
    """Train a CLIP on region-text pairs with a symmetric contrastive loss.

    If the datamodule has labelled images and a vocabulary, validation measures the share of ground-truth segments that
    CLIP classifies correctly: `val/mask_accuracy`, as `ovseg test` reports it for the same images and resolution.

    The loss contrasts the regions of all processes. The processes exchange `text_ids`, look them up in the datamodule's
    `texts` and merge equal texts. If the regions do not fit into memory, set the encoder's `regions_per_batch`;
    `accumulate_grad_batches` would only contrast the regions of one batch with each other.

    Args:
        clip: the network to adapt.
        train: the weights to train. `prompt`: the mask prompts, or the region encoder's own parameters (prompt keys,
            learned masks), which leaves CLIP unchanged; `visual`: the image tower and the temperature; `both`: prompts,
            image tower and temperature; `all`: CLIP as a whole, from scratch.
        lr: learning rate of CLIP's weights.
        prompt_lr: learning rate of the prompts, which have no weight decay.
        weight_decay: weight decay of CLIP's weights, except norms, embeddings, biases and the temperature.
        warmup_steps: steps of linear warm-up before the cosine decay.
        loss: class of the loss; any module with `forward(logits, target)`, whose shapes `RegionTextLoss` documents.
        region_encoder: class of the region encoder, constructed with `clip`. If `clip` is a `.ckpt` that was trained in
            this class, the encoder continues with its own weights from there.

    Raises:
        InputError: prompts are to be trained but there are none, or a number is out of range.
    """

    monitor: ClassVar[str] = "val/mask_accuracy"  # selects the best checkpoint

    def __init__(
        self,
        clip: CLIPAdapter,
        train: Literal["prompt", "visual", "both", "all"] = "prompt",
        lr: float = 5e-6,
        prompt_lr: float = 0.05,
        weight_decay: float = 0.2,
        warmup_steps: int = 100,
        loss: Callable[[], nn.Module] = RegionTextLoss,
        region_encoder: Callable[[CLIPAdapter], RegionEncoder] = CropEncoder,
    ) -> None:
        super().__init__()
        check_at_least(0, lr=lr, prompt_lr=prompt_lr, weight_decay=weight_decay, warmup_steps=warmup_steps)
        self.clip = clip
        self.region_encoder = build_encoder(clip, region_encoder)
        prompts = self.region_encoder.prompt_parameters()
        if train in ("prompt", "both") and not prompts:
            raise InputError(f"train: {train} needs {self.region_encoder.prompts_missing}")
        # CLIP is registered twice in this module, but saved only once
        self.register_state_dict_post_hook(_drop_second_clip)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_expect_no_second_clip)  # type: ignore[no-untyped-call]
        self.lr, self.prompt_lr, self.weight_decay, self.warmup_steps = lr, prompt_lr, weight_decay, warmup_steps
        self.loss = loss()
        self.text_trained = train == "all"
        self.text = TextEncoder(clip, "bare")
        clip.requires_grad_(train == "all")
        clip.visual.requires_grad_(train != "prompt")
        clip.logit_scale.requires_grad_(train != "prompt")
        if clip.visual.prompt is not None:  # unused by encoders of whole images
            clip.visual.prompt.requires_grad_(False)
        for parameter in prompts:
            parameter.requires_grad_(train in ("prompt", "both"))

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "configure"):  # datamodules with batches in memory need no configuration
            options = {"whole_images": True} if self.region_encoder.whole_images else {}
            data.configure(size=self.clip.image_size, **options)
        self.vocabulary: Vocabulary | None = getattr(data, "vocabulary", None)
        self.phrases: PhraseFeatures | None = None
        if self.vocabulary is not None:
            self.mask_accuracy = MaskAccuracy(len(self.vocabulary.scored_names), self.vocabulary.scored_seen)

    def on_fit_start(self) -> None:
        self.text.clear()  # weights may have been loaded from a checkpoint in the meantime

    def training_step(self, batch: RegionTextBatch | ImageTextBatch, batch_index: int) -> Tensor:
        """Return the loss over the regions and texts of all processes."""
        all_texts = self._texts_of_all_processes(batch)  # first, while the host need not wait for the device
        loss, accuracy = self.contrast(self.region_encoder.encode_batch(batch), all_texts)
        log = {"train/loss": loss, "train/accuracy": accuracy}
        self.log_dict(log, prog_bar=True, batch_size=len(all_texts))
        return loss

    def contrast(self, region_features: Tensor, all_texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return the contrastive loss, and the share of regions that are most similar to their own text.

        Args:
            region_features: (N, D) of this process.
            all_texts: texts of the regions of all processes, in rank order.
        """
        texts, text_of_region = _unique(all_texts)
        target = torch.tensor(text_of_region, device=self.device)
        text_features = self.clip.encode_text(texts) if self.text_trained else self._cached(texts)
        scale = self.clip.logit_scale.clamp(max=math.log(100)).exp()
        with torch.autocast(self.device.type, enabled=False):  # half precision is too coarse for logits up to 100
            # Every process computes the whole loss. The gradients of gathered features are summed in the process that
            # computed them, so DDP's mean over processes is the gradient of a single process with the whole batch.
            all_features = self.all_gather(region_features.float(), sync_grads=True)
            all_features = all_features.view(len(all_texts), -1)  # type: ignore[union-attr]  # (processes, B, D) or (B, D)
            logits = scale * all_features @ text_features.float().T  # (N, U)
        loss: Tensor = self.loss(logits, target)
        accuracy = (logits.argmax(dim=1) == target).float().mean()
        return loss, accuracy

    def on_validation_start(self) -> None:
        if self.vocabulary is None:
            raise InputError("validation needs class names for the labels; set --data.val to a benchmark")
        if self.phrases is None or self.text_trained:
            text = TextEncoder(self.clip)
            encode = text.encode if self.text_trained else text  # do not fill the disk cache while the tower changes
            with torch.autocast(self.device.type, enabled=False):
                features = encode(self.vocabulary.phrases)
            class_of_phrase = torch.tensor(self.vocabulary.class_of_phrase, device=self.device)
            self.phrases = PhraseFeatures(features, class_of_phrase, len(self.vocabulary))

    def validation_step(self, batch: EvalBatch, batch_index: int) -> None:
        assert self.vocabulary is not None  # checked in on_validation_start
        for image, labels in zip(batch.images, batch.labels, strict=True):
            classes, predictions = name_segments(image, labels, self.vocabulary, self._classify)
            self.mask_accuracy.update(predictions, classes)

    def on_validation_epoch_end(self) -> None:
        result = {f"val/{name}": value.float() for name, value in self.mask_accuracy.compute().items()}
        self.mask_accuracy.reset()
        # the values are equal in all processes; without `sync_dist`, Lightning would warn
        self.log_dict(result, prog_bar=True, sync_dist=True)

    def _classify(self, image: Tensor, masks: Tensor) -> RegionLogits:
        assert self.phrases is not None  # set in on_validation_start
        return self.phrases.classify(self.region_encoder([image], [masks])[0])

    def _texts_of_all_processes(self, batch: RegionTextBatch | ImageTextBatch) -> list[str]:
        """Return the texts of all processes in rank order; every process has the list of all texts of the data."""
        if self.trainer.world_size == 1:
            return batch.texts
        texts: list[str] | None = getattr(self.trainer.datamodule, "texts", None)  # type: ignore[attr-defined]
        if texts is None:
            data = type(self.trainer.datamodule).__name__  # type: ignore[attr-defined]
            raise InputError(f"{data} has no `texts`, which training on several devices needs; set --trainer.devices 1")
        ids: Any = self.all_gather(batch.text_ids)  # (processes, B)
        return [texts[index] for index in ids.flatten().tolist()]

    def _cached(self, texts: list[str]) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):  # cached features have full precision
            return self.text.cached(texts)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        if self.clip.logit_scale.requires_grad:
            self.clip.logit_scale.data.clamp_(max=math.log(100))

    def configure_optimizers(self) -> Any:
        prompts = [parameter for parameter in self.region_encoder.prompt_parameters() if parameter.requires_grad]
        groups = [{"params": prompts, "lr": self.prompt_lr, "weight_decay": 0.0}] if prompts else []
        prompt_set = set(prompts)
        for group in param_groups(self.region_encoder, self.lr, self.weight_decay, decay_biases=False):
            group["params"] = [parameter for parameter in group["params"] if parameter not in prompt_set]
            if group["params"]:
                groups.append(group)
        optimizer = AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = WarmupCosineLR(optimizer, total, min(self.warmup_steps, total // 2))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture, such as prompt keys for other layers, in one sentence."""
        check_fit(self, checkpoint["state_dict"], "the checkpoint that training continues from")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[ARCHITECTURES] = {"clip": self.clip.architecture(), NAME: description(self.region_encoder)}


def _drop_second_clip(task: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Remove the region encoder's CLIP from a state dict, as a hook; it is the task's `clip`."""
    own = task.region_encoder.own_weights()  # type: ignore[operator, union-attr]
    for key in [key for key in state if key.startswith(f"{prefix}{NAME}.")]:
        if key.removeprefix(f"{prefix}{NAME}.") not in own:
            del state[key]


def _expect_no_second_clip(task: nn.Module, keys: Any) -> None:
    """Accept state dicts without the region encoder's CLIP, as a hook."""
    own = {f"{NAME}.{key}" for key in task.region_encoder.own_weights()}  # type: ignore[operator, union-attr]
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith(f"{NAME}.") or key in own]


def _unique(texts: list[str]) -> tuple[list[str], list[int]]:
    """Return the distinct texts in order of appearance, and the index of each text among them."""
    index = {text: position for position, text in enumerate(dict.fromkeys(texts))}
    return list(index), [index[text] for text in texts]
