"""Training proposals learns, and leaves a loadable network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from ovseg.losses import Mask2FormerLoss
from ovseg.metrics import MeanIoU
from ovseg.models import CLIPAdapter, MaskProposer, TextEncoder
from ovseg.structures import EvalBatch, InputError, SegmentationBatch, Vocabulary
from ovseg.tasks import ProposalTask
from tests import tiny
from tests.tasks.data import Batches, Losses, trainer

VOCABULARY = Vocabulary(("red", "green", "blue"))


def batch() -> SegmentationBatch:
    """Two images of three plain areas."""
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    labels[0, :, 32:], labels[0, 32:, 32:] = 1, 2
    labels[1, 20:, :], labels[1, :4] = 2, 255
    images = F.one_hot(labels.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    return SegmentationBatch(images, labels)


def task(folder: Path) -> ProposalTask:
    clip = tiny.clip(folder)
    return ProposalTask(tiny.proposer(), clip, lr=3e-3, warmup_steps=3, loss=partial(Mask2FormerLoss, num_points=256))


def evaluation() -> EvalBatch:
    images, labels, _ = batch()
    return EvalBatch(list(images), [(64, 64)] * 2, ["a.jpg", "b.jpg"], list(labels))


def test_thirty_steps_halve_the_loss_of_a_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    losses = Losses()
    trainer(30, losses).fit(task(tmp_path).train(), datamodule=Batches([batch()], VOCABULARY))
    assert len(losses.values) == 30 and losses.values[-1] < losses.values[0] / 2


def test_clip_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    module = task(tmp_path / "clip")
    (clip,) = module._clip
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    run = trainer(2)
    run.fit(module.train(), datamodule=Batches([batch()], VOCABULARY))
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == {f"proposer.{name}" for name in module.proposer.state_dict()}


def test_a_training_checkpoint_is_a_network(tmp_path: Path) -> None:
    """Without the vocabulary it was trained with."""
    module = task(tmp_path / "clip")
    run = trainer(2)
    run.fit(module.train(), datamodule=Batches([batch()], VOCABULARY))
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = MaskProposer(str(tmp_path / "last.ckpt")).eval()
    assert again.text_features is None
    with torch.no_grad():
        expected, found = module.proposer.eval()(batch().images)[-1], again(batch().images)[-1]
    assert torch.equal(expected.mask_logits, found.mask_logits)
    assert torch.equal(expected.query_embeddings, found.query_embeddings)
    with pytest.raises(InputError, match=r"contains no network 'clip' \(it has: proposer\)"):
        CLIPAdapter(str(tmp_path / "last.ckpt"))


def test_training_can_start_from_a_checkpoint_of_hf(tmp_path: Path) -> None:
    """What it leaves speaks of texts and no more of objectness."""
    config = Mask2FormerConfig(**tiny.mask2former(tiny.SWIN), num_labels=7)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path / "hf")
    proposer, losses = MaskProposer(str(tmp_path / "hf"), tiny.DIM, head_width=32), Losses()
    module = ProposalTask(proposer, tiny.clip(tmp_path / "clip"), lr=1e-3, warmup_steps=1)
    run = trainer(4, losses)
    run.fit(module.train(), datamodule=Batches([batch()], VOCABULARY))
    assert losses.values[-1] < losses.values[0]
    assert not [name for name, p in proposer.named_parameters() if p.requires_grad and p.grad is None]
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = MaskProposer(str(tmp_path / "last.ckpt")).eval()
    again.set_text_features(F.normalize(torch.randn(3, tiny.DIM), dim=-1))
    answer = again(batch().images)[-1]
    assert again.text_dim == tiny.DIM and answer.objectness is None
    assert answer.class_logits is not None and answer.class_logits.shape == (2, 6, 4)


def test_validation_measures_what_it_says(tmp_path: Path) -> None:
    module = task(tmp_path)
    (result,) = trainer().validate(module, Batches([evaluation()], VOCABULARY), verbose=False)
    with torch.no_grad():
        answer = module.proposer.eval()(batch().images)[-1]
    assert answer.class_logits is not None
    probs = F.interpolate(answer.mask_logits, scale_factor=4, mode="bilinear").sigmoid()
    scores = torch.einsum("bqk,bqhw->bkhw", answer.class_logits.softmax(-1)[..., :-1], probs)
    miou = MeanIoU(VOCABULARY.names)
    miou.update(scores.argmax(1), batch().labels)
    for name in ("miou_union", "miou_target"):
        assert result[f"val/{name}"] == pytest.approx(miou.compute()[name].item(), abs=1e-3)
    best = []
    for masks, labels in zip(probs > 0.5, batch().labels, strict=True):
        counted = labels != 255
        for index in labels[counted].unique():
            segment = labels == index
            best.append(max(((m & segment).sum() / ((m & counted) | segment).sum()).item() for m in masks))
    assert len(best) == 5
    assert result["val/mean_best_iou"] == pytest.approx(sum(best) / 5, abs=1e-5)


def test_the_vocabulary_is_that_of_the_data_of_each_run(tmp_path: Path) -> None:
    module = task(tmp_path)
    for names in (("red", "green", "blue"), ("sky", "sea", "sand", "grass")):
        trainer().validate(module, Batches([evaluation()], Vocabulary(names)), verbose=False)
        expected = TextEncoder(module._clip[0])(names)
        assert module.proposer.text_features is not None
        torch.testing.assert_close(module.proposer.text_features, expected)
    trainer(1).fit(module.train(), datamodule=Batches([batch()], VOCABULARY))  # after inference mode


def test_the_backbone_has_a_rate_of_its_own(tmp_path: Path) -> None:
    module = task(tmp_path)
    module.backbone_lr_factor = 0.1
    run = trainer(1)
    run.fit(module.train(), datamodule=Batches([batch()], VOCABULARY))
    backbone = set(module.proposer.model.pixel_level_module.encoder.parameters())
    for group in run.optimizers[0].param_groups:
        expected = 3e-4 if group["params"][0] in backbone else 3e-3
        assert group["initial_lr"] == pytest.approx(expected)
        assert len({parameter in backbone for parameter in group["params"]}) == 1
