"""Stage 2: match the nouns of captions to masked regions by CLIP (paper §3.2)."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg import rle
from ovseg.models import CLIPAdapter, MaskProposer, TextClassifier
from ovseg.ops import crop_regions, mask_probabilities, masks_to_boxes
from ovseg.structures import CaptionBatch, InputError, RegionTextPair


class MiningTask(L.LightningModule):
    """Gives each noun of an image the region that CLIP finds most similar to it.

    Args:
        clip: embeds regions and nouns; the paper uses plain ViT-L/14.
        proposals: network that proposes the regions: a `.ckpt`, a folder, a hub name or `toy`. Without it the regions
            are the ground-truth masks that the datamodule gives.
        mask_threshold: probability above which a pixel belongs to a region.
        templates: prompt templates of the nouns, see `TextClassifier`.
    """

    def __init__(
        self,
        clip: CLIPAdapter,
        proposals: str | None = None,
        mask_threshold: float = 0.5,
        templates: str | list[str] = "single",
    ) -> None:
        super().__init__()
        self.clip = clip
        self.proposer = None if proposals is None else MaskProposer(proposals)
        self.mask_threshold = mask_threshold
        self.text = TextClassifier(clip, templates)

    def on_predict_start(self) -> None:
        self.text.forget()

    def predict_step(self, batch: CaptionBatch, batch_index: int) -> list[RegionTextPair]:
        """The pairs of a batch of images; an image without any region or noun has none."""
        pairs = []
        for index, (masks, scores) in enumerate(self._regions(batch)):
            if not len(masks) or not batch.nouns[index]:
                continue
            regions, region_masks, valid = self._crop(batch.images[index], masks)
            if valid.any():
                features = self.clip.encode_regions(regions[valid], region_masks[valid])
                similarity = (self.text.cached(batch.nouns[index]) @ features.T).float()  # (nouns, regions)
                pairs += _pairs_of(batch, index, similarity, masks[valid], scores[valid])
        return pairs

    def _regions(self, batch: CaptionBatch) -> list[tuple[Tensor, Tensor]]:
        """Per image masks (M, H, W) bool at its own size, and their scores (M,)."""
        if self.proposer is None:
            if batch.masks is None:
                raise InputError(
                    "mining needs regions: give --model.proposals a network, or --data.masks a COCO instances file"
                )
            return [(masks, torch.ones(len(masks), device=masks.device)) for masks in batch.masks]
        answer = self.proposer(batch.images)[-1]
        found = []
        for index, (image, size) in enumerate(zip(batch.images, batch.sizes, strict=True)):
            probs = mask_probabilities(answer.mask_logits[index].float(), (image.shape[1], image.shape[2]))
            probs = F.interpolate(probs[None], size, mode="bilinear", align_corners=False)[0]
            masks = probs > self.mask_threshold
            # how sure the network is of the pixels that it takes
            scores = (probs * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2)).clamp(min=1)
            found.append((masks, scores if answer.objectness is None else scores * answer.objectness[index]))
        return found

    def _crop(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Regions at network resolution; a mask that vanishes there is invalid."""
        size = (image.shape[1], image.shape[2])
        resized = F.interpolate(masks[None].float(), size, mode="nearest")[0] > 0
        return crop_regions(image, resized, self.clip.image_size)


def _pairs_of(
    batch: CaptionBatch, index: int, similarity: Tensor, masks: Tensor, scores: Tensor
) -> list[RegionTextPair]:
    """One pair a noun of image `index`: its best region.

    Args:
        similarity: (nouns, regions) cosines.
        masks: (regions, H, W) bool.
        scores: (regions,) of the proposals.
    """
    ranked = similarity.topk(min(2, similarity.shape[1]), dim=1)
    best = ranked.indices[:, 0]
    margins = ranked.values[:, 0] - (ranked.values[:, 1] if ranked.values.shape[1] > 1 else 0)
    chosen = masks[best].cpu()
    boxes, counts = masks_to_boxes(chosen).tolist(), rle.encode(chosen)
    return [
        RegionTextPair(
            image_id=batch.image_ids[index],
            file_name=batch.names[index],
            size=batch.sizes[index],
            counts=counts[row],
            box=tuple(boxes[row]),
            noun=noun,
            caption_id=batch.caption_ids[index][row],
            similarity=float(ranked.values[row, 0]),
            margin=float(margins[row]),
            proposal_score=float(scores[best[row]]),
        )
        for row, noun in enumerate(batch.nouns[index])
    ]
