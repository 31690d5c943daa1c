"""Distillation: the student approaches the teacher's features, which are those of crops."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ovseg.models import CLIPAdapter, CropEncoder, GivenMasks, SinglePassEncoder
from ovseg.structures import ImageTextBatch, InputError
from ovseg.tasks import AdapterTask, DistillationTask
from tests import tiny
from tests.tasks.data import Batches, Losses, trainer
from tests.tasks.test_adapter import ALL_TEXTS as TEXTS_OF_ALL
from tests.tasks.test_adapter import gradients, loader
from tests.tasks.test_single_pass_training import ALL_TEXTS, batch, single_pass


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """A folder with the student's CLIP (`student`) and one whose image tower was changed (`teacher`)."""
    torch.manual_seed(0)
    clip = CLIPAdapter(tiny.clip_folder(tmp_path / "random"), prompt_depth=1)
    clip.save_pretrained(tmp_path / "student")
    for parameter in clip.visual.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    clip.save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def task(teacher: str, train: Any = "visual", **options: Any) -> DistillationTask:
    clip = CLIPAdapter(str(Path(teacher).parent / "student"))
    return DistillationTask(teacher, clip=clip, train=train, lr=2e-3, warmup_steps=1, **options)


def test_the_student_approaches_the_teacher(teacher: str) -> None:
    model, losses, data = task(teacher, region_encoder=single_pass()), Losses(), batch()
    with torch.no_grad():
        targets = torch.cat([each.features for each in CropEncoder(CLIPAdapter(teacher))(data.images, data.masks)])
        student = torch.cat([each.features for each in model.region_encoder(data.images, data.masks)])
    expected = (1 - (targets * student).sum(dim=1)).mean()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(25, losses).fit(model, Batches([data], texts=ALL_TEXTS))
    assert losses.values[0] == pytest.approx(float(expected), abs=1e-5)
    assert losses.values[-1] < 0.5 * losses.values[0]
    assert not [name for name in before if "teacher" in name or "_frozen" in name]
    assert not any(parameter.requires_grad for network in model._frozen[:1] for parameter in network.parameters())
    text = [name for name in before if ".visual." not in name and "logit" not in name]
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in text)


def test_masks_are_the_proposals_and_the_contrastive_loss_is_added(teacher: str) -> None:
    """The image passes once, with the regions of the pairs before the proposals."""
    data = batch()
    proposed = [torch.rand(4, *mask.shape[1:], generator=torch.Generator().manual_seed(1)) > 0.6 for mask in data.masks]
    proposed[0][2] = False  # invalid, so left out

    class Fixed(GivenMasks):
        def propose(self, images: Any, vocabulary: Any = None) -> Any:
            self.take(proposed, [torch.ones(4), torch.ones(4)])
            return super().propose(images, vocabulary)

    model = task(teacher, region_encoder=single_pass(), contrastive_weight=0.5, proposer=Fixed())
    losses, distances = Losses(), []
    with torch.no_grad():
        targets = CropEncoder(CLIPAdapter(teacher))(data.images, proposed)
        regions = model.region_encoder(data.images, proposed)
        for region, target in zip(regions, targets, strict=True):
            distances.append(1 - (region.features * target.features).sum(dim=1)[target.valid])
    trainer(1, losses).fit(model, Batches([data], texts=ALL_TEXTS))
    assert torch.cat(distances).shape == (7,)
    metrics = model.trainer.callback_metrics
    assert float(metrics["train/distance"]) == pytest.approx(float(torch.cat(distances).mean()), abs=1e-5)
    contrast_only = losses.values[0] - float(metrics["train/distance"])
    plain = task(teacher, region_encoder=single_pass(), contrastive_weight=1.0, proposer=Fixed())
    again = Losses()
    trainer(1, again).fit(plain, Batches([data], texts=ALL_TEXTS))
    assert again.values[0] - float(metrics["train/distance"]) == pytest.approx(2 * contrast_only, rel=1e-4)
    assert contrast_only > 0.1


def test_without_any_proposal_the_loss_is_zero(teacher: str) -> None:
    data, losses = batch(), Losses()
    nothing = ImageTextBatch(data.images, [mask & False for mask in data.masks], data.texts, data.text_ids)
    model = task(teacher, region_encoder=single_pass())
    trainer(2, losses).fit(model, Batches([nothing], texts=ALL_TEXTS))
    assert losses.values == [0.0, 0.0]
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_images_without_any_mask_have_a_loss_of_zero(teacher: str) -> None:
    data, losses = batch(), Losses()
    nothing = data._replace(masks=[mask[:0] for mask in data.masks])
    model = task(teacher, region_encoder=single_pass())
    trainer(2, losses).fit(model, Batches([nothing], texts=ALL_TEXTS))
    assert losses.values == [0.0, 0.0]
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def by_image(data: ImageTextBatch) -> list[ImageTextBatch]:
    """A batch for each of two images with equally many texts."""
    count = len(data.texts) // 2
    texts, ids = (data.texts[:count], data.texts[count:]), data.text_ids.split(count)
    parts = zip(data.images, data.masks, texts, ids, strict=True)
    return [ImageTextBatch([image], [masks], texts, ids) for image, masks, texts, ids in parts]


@pytest.mark.parametrize("weight", [pytest.param(0.5, marks=pytest.mark.slow), 0.0], ids=["with pairs", "alone"])
def test_two_processes_have_the_gradients_of_one_with_all_images(teacher: str, tmp_path: Path, weight: float) -> None:
    """The second process has fewer valid proposals or, without pairs, not even a mask."""
    first, second = batch().masks
    data = batch()._replace(masks=[first, torch.cat([second, second[:1] & False]) if weight else second[:0]])
    texts = [*batch().texts, "dog"]
    data = data._replace(texts=texts, text_ids=torch.tensor([TEXTS_OF_ALL.index(text) for text in texts]))
    options: Any = {"train": "visual", "contrastive_weight": weight}

    def of(name: str, batches: Any, **devices: Any) -> dict[str, torch.Tensor]:
        model = task(teacher, region_encoder=partial(SinglePassEncoder, clip_short_side=32), **options)
        return gradients(model, batches, tmp_path / name, **devices)

    expected = of("one", [data])
    found = of("two", by_image(data), devices=2, strategy="ddp_spawn")
    assert found.keys() == expected.keys() and ("clip.clip.logit_scale" in found) == bool(weight)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()) + 1e-8)
    assert any(float(value.abs().max()) > 1e-3 for value in expected.values())


def test_a_teacher_encodes_crops_as_in_its_training(tmp_path: Path) -> None:
    model = AdapterTask(tiny.clip(tmp_path / "clip", 1), region_encoder=partial(CropEncoder, fill="zero"))
    run = trainer(1)
    run.fit(model.train(), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    clip = tiny.clip(tmp_path / "clip")
    frozen = DistillationTask(str(tmp_path / "last.ckpt"), clip=clip, train="visual")._frozen[0]
    assert isinstance(frozen, CropEncoder) and frozen.fill == "zero" and frozen.clip.visual.prompt is not None


def test_what_cannot_be_distilled_is_refused(teacher: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = CLIPAdapter(tiny.clip_folder(tmp_path / "random"))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        InputError, match=r"other is not an adapted version of the CLIP that is trained.*give a checkpoint"
    ):
        DistillationTask(str(tmp_path / "other"), clip=CLIPAdapter(str(tmp_path / "student")), train="visual")
    wide = tiny.CLIP["text_cfg"] | {"layers": 2}
    CLIPAdapter(tiny.clip_folder(tmp_path / "wide", text_cfg=wide)).save_pretrained(tmp_path / "two")
    with pytest.raises(InputError, match="two is not an adapted version of the CLIP"):
        DistillationTask(str(tmp_path / "two"), clip=CLIPAdapter(str(tmp_path / "student")), train="visual")
    with pytest.raises(InputError, match="CropEncoder sees crops, but distillation"):
        task(teacher, region_encoder=CropEncoder)
    with pytest.raises(InputError, match="contrastive_weight is -1"):
        task(teacher, contrastive_weight=-1)
    with pytest.raises(InputError, match="train: prompt needs prompt keys"):
        task(teacher, train="prompt", region_encoder=SinglePassEncoder)
    with pytest.raises(InputError, match="train: all trains the text tower, which distillation does not use; use trai"):
        task(teacher, train="all", region_encoder=single_pass())


def test_a_student_in_bf16_is_refused(teacher: str) -> None:
    """It encodes with a frozen copy of the image tower."""
    model = task(teacher, region_encoder=single_pass(precision="bf16"))
    with pytest.raises(InputError, match=r"precision: bf16 is for inference only; train with .* null"):
        trainer(1).fit(model, Batches([batch()], texts=ALL_TEXTS))
