"""Adapting CLIP learns, and changes nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torchvision.transforms.v2.functional import to_pil_image

from ovseg import rle
from ovseg.data.base import eval_loader
from ovseg.data.pairs import write_pairs
from ovseg.data.pairs.datamodule import RegionTextDataModule
from ovseg.data.pairs.region_transform import RegionTransform
from ovseg.losses import RegionTextLoss
from ovseg.models import CLIPAdapter, CropEncoder, SinglePassEncoder
from ovseg.ops import masks_to_boxes
from ovseg.structures import EvalBatch, InputError, RegionTextBatch, RegionTextPair, Vocabulary
from ovseg.tasks import AdapterTask, SegmentationTask
from tests import tiny
from tests.tasks.data import Batches, Losses, trainer

NAMES = Vocabulary(("cat", "red sky", "grass", "a dog"), seen=(True, False, True, False))
TEXTS = ["cat", "sofa", "plant", "sky", "cat", "dog", "grass", "a red car"]
ALL_TEXTS = sorted(set(TEXTS))
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def batch(count: int = 8) -> RegionTextBatch:
    """Regions of different colours, each with a mask of its own."""
    regions = torch.stack(tiny.images(*[(32, 32)] * 8))
    masks = torch.zeros(8, 32, 32, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[: 8 + 2 * index, : 26 - 2 * index] = True
    regions = torch.where(masks[:, None], regions, torch.tensor(0.45))
    ids = torch.tensor([ALL_TEXTS.index(text) for text in TEXTS])
    return RegionTextBatch(regions[:count], masks[:count], TEXTS[:count], ids[:count])


class Gradients(L.Callback):
    """The gradients of every step, and the scores of every validation, in a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_before_optimizer_step(self, trainer: L.Trainer, task: L.LightningModule, _: Any) -> None:
        found = {name: value.grad for name, value in task.named_parameters() if value.grad is not None}
        torch.save(found, self.folder / f"{trainer.global_step}-{trainer.global_rank}.pt")

    def on_validation_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        scores = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        torch.save(scores, self.folder / f"scores-{trainer.global_rank}.pt")


class NoObjects(L.Callback):
    """Refuses whatever would pickle an object for another process in a step."""

    def on_train_batch_start(self, *_: Any) -> None:
        self.patch = pytest.MonkeyPatch()
        for name in filter(re.compile(r"object(_list)?$").search, dir(torch.distributed)):
            self.patch.setattr(torch.distributed, name, self._refuse)

    def on_train_batch_end(self, *_: Any) -> None:
        self.patch.undo()

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise AssertionError("an object was pickled for other processes")


def gradients(task: AdapterTask, batches: list[RegionTextBatch], folder: Path, **options: Any) -> dict[str, Tensor]:
    """Of the first step, in the first process."""
    folder.mkdir()
    run = L.Trainer(accelerator="cpu", max_steps=1, callbacks=[Gradients(folder), NoObjects()], **QUIET, **options)
    run.fit(task.train(), Validated(batches, NAMES, ALL_TEXTS))
    found: dict[str, Tensor] = torch.load(folder / "0-0.pt")
    return found


class Validated(Batches):
    """Batches to train on, and images that the processes share for the validation."""

    def val_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        sizes = [(40, 30), (32, 50), (45, 45)]
        labels = [torch.randint(0, 4, size, generator=generator) for size in sizes]
        labels[1][labels[1] == 3] = 255
        images = zip(tiny.images(*sizes), sizes, labels, strict=True)
        data: Any = [EvalBatch([image], [size], ["0.jpg"], [found]) for image, size, found in images]
        return eval_loader(data, 0)


def halves() -> list[RegionTextBatch]:
    """The batch in two, of which both have a cat."""
    whole = batch()
    return [RegionTextBatch(*(field[part] for field in whole)) for part in (slice(4), slice(4, 8))]  # type: ignore[misc]


@pytest.mark.parametrize("train", ["visual", "all"])
def test_validation_names_true_segments_as_a_test_does(tmp_path: Path, train: Any) -> None:
    """With synonyms and a background, whose classes count as one."""
    segmenter = tiny.segmenter(tmp_path / "clip")
    segmenter.save_pretrained(tmp_path / "segmenter")
    names = Vocabulary(NAMES.names, (("cat", "kitten"), *NAMES.synonyms[1:]), NAMES.seen, background_from=3)
    data = Validated([batch()], names)
    data.test_dataloader = data.val_dataloader  # type: ignore[method-assign]
    quiet = L.Trainer(accelerator="cpu", **QUIET)
    (expected,) = quiet.test(SegmentationTask(str(tmp_path / "segmenter")), data, verbose=False)
    (found,) = quiet.validate(AdapterTask(segmenter.clip, train), data, verbose=False)
    assert 0 < found["val/mask_accuracy"] < 1
    assert found.keys() == {"val/mask_accuracy", "val/mask_accuracy_seen", "val/mask_accuracy_unseen"}
    assert found == {name: expected[name.replace("val", "test")] for name in found}


def test_words_of_a_validation_are_encoded_once_unless_their_tower_is_trained(tmp_path: Path) -> None:
    for train, expected in (("visual", 1), ("all", 4)):  # the sanity check, and three epochs
        task = AdapterTask(tiny.clip(tmp_path / "clip"), train)  # type: ignore[arg-type]
        found: list[Tensor] = []
        run = L.Trainer(accelerator="cpu", max_epochs=3, callbacks=[Phrases(found)], **QUIET)
        run.fit(task.train(), Validated([batch()], NAMES))
        assert len(found) == 4 and len({id(features) for features in found}) == expected


class Phrases(L.Callback):
    """The features that each validation compares with."""

    def __init__(self, found: list[Tensor]) -> None:
        self.found = found

    def on_validation_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.found.append(task.phrases.features)


def test_a_validation_needs_words(tmp_path: Path) -> None:
    task = AdapterTask(tiny.clip(tmp_path), "visual")
    with pytest.raises(InputError, match="validation needs class names for the labels"):
        L.Trainer(accelerator="cpu", **QUIET).validate(task, Validated([batch()]), verbose=False)


def loader(count: int = 8) -> Iterable[RegionTextBatch]:
    return Batches([batch(count)]).train_dataloader()


def train(task: AdapterTask, steps: int, count: int = 8) -> list[float]:
    losses = Losses()
    trainer(steps, losses).fit(task.train(), loader(count))
    return losses.values


def moved(task: AdapterTask, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("mode", ["prompt", "visual", "both", "all"])
def test_thirty_steps_halve_the_loss_of_a_batch_and_move_only_what_they_should(tmp_path: Path, mode: Any) -> None:
    clip = tiny.clip(tmp_path, prompt_depth=2)
    task = AdapterTask(clip, mode, lr=2e-3, prompt_lr=0.1, warmup_steps=3)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    losses = train(task, 30, count=4)  # prompts of a random, frozen tower cannot tell many apart
    assert len(losses) == 30 and losses[-1] < losses[0] / 2
    changed = moved(task, before)
    prompts = {"clip.clip.visual.prompt.mask_embedding"}
    image = {name for name in before if name.startswith("clip.clip.visual.visual.")} | {"clip.clip.logit_scale"}
    text = set(before) - prompts - image
    expected = {"prompt": prompts, "visual": image, "both": prompts | image, "all": image | text}[mode]
    assert changed <= expected
    # key biases get no gradient and may stay, unread tokens too; the rest moves
    assert len(changed) > 0.9 * len(expected)


def test_a_tower_without_patch_tokens_is_fine_tuned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = CLIPAdapter(tiny.clip_folder(tmp_path / "new", vision_cfg=tiny.RN))
    with torch.no_grad():
        for _ in range(30):  # a trained CLIP brings statistics of its batch norms
            clip.visual.visual.train()(batch().regions)
    task = AdapterTask(clip, "visual", lr=2e-3, warmup_steps=1)
    losses = Losses()
    run = trainer(12, losses)
    run.fit(task.train(), loader(4))
    assert losses.values[-1] < losses.values[0] / 2
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = CLIPAdapter(str(tmp_path / "last.ckpt")).eval()
    assert torch.equal(again.encode_regions(batch().regions), clip.eval().encode_regions(batch().regions))
    with pytest.raises(InputError, match="train: prompt needs mask prompts, but this CLIP has none"):
        AdapterTask(clip, "prompt")


def test_regions_of_a_tower_with_batch_norms_do_not_see_each_other(tmp_path: Path) -> None:
    clip = CLIPAdapter(tiny.clip_folder(tmp_path / "new", vision_cfg=tiny.RN)).train()
    before = {name: buffer.clone() for name, buffer in clip.named_buffers()}
    regions = batch().regions
    one_by_one = torch.cat([clip.encode_regions(region[None]) for region in regions])
    torch.testing.assert_close(clip.encode_regions(regions), one_by_one)
    assert all(torch.equal(buffer, before[name]) for name, buffer in clip.named_buffers())


def test_prompts_alone_leave_clip_as_it_was_for_everything_else(tmp_path: Path) -> None:
    clip = tiny.clip(tmp_path, prompt_depth=1)
    regions = torch.stack(tiny.images((32, 32), (32, 32)))
    with torch.no_grad():
        before = clip.encode_regions(regions), clip.encode_text(TEXTS)
        train(AdapterTask(clip, "prompt", weight_decay=0.5), 3)
        assert torch.equal(clip.eval().encode_regions(regions), before[0])
        assert torch.equal(clip.encode_text(TEXTS), before[1])


def test_the_loss_of_a_step_is_clip_s_own(tmp_path: Path) -> None:
    """With each repetition a text of its own, as in the release."""
    clip = tiny.clip(tmp_path, prompt_depth=1)
    with torch.no_grad():
        regions = clip.encode_regions(batch().regions, batch().region_masks)
        expected = open_clip.ClipLoss()(regions, clip.encode_text(TEXTS), clip.logit_scale.exp())
    losses = train(AdapterTask(clip, loss=partial(RegionTextLoss, "negatives")), 1)
    assert losses[0] == pytest.approx(expected.item(), rel=1e-4)


def test_the_temperature_stays_below_a_hundred(tmp_path: Path) -> None:
    clip = tiny.clip(tmp_path, prompt_depth=1)
    clip.logit_scale.data.fill_(6.0)
    with torch.no_grad():
        features = F.normalize(clip.encode_text(TEXTS[:4]), dim=-1)
        assert features.shape == (4, tiny.DIM)
    train(AdapterTask(clip, "visual", lr=1e-9, weight_decay=0), 2)
    assert clip.logit_scale.exp().item() <= 100.001


def test_a_training_checkpoint_is_a_clip(tmp_path: Path) -> None:
    """Prompts, weights and the reduced tokenizer, without any other file."""
    clip = tiny.clip(tmp_path / "clip", prompt_depth=2)
    run = trainer(2)
    run.fit(AdapterTask(clip, "both").train(), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = CLIPAdapter(str(tmp_path / "last.ckpt")).eval()
    assert again.merges == clip.merges
    with torch.no_grad():
        given = batch().regions, batch().region_masks
        assert torch.equal(again.encode_regions(*given), clip.eval().encode_regions(*given))
        assert torch.equal(again.encode_text(TEXTS), clip.encode_text(TEXTS))
    with pytest.raises(InputError, match="has mask prompts of depth 2, not 3"):
        CLIPAdapter(str(tmp_path / "last.ckpt"), prompt_depth=3)


def test_prompts_can_be_added_to_a_fine_tuned_clip(tmp_path: Path) -> None:
    """Fine-tuning, then prompts: the best model of the paper."""
    run = trainer(2)
    run.fit(AdapterTask(tiny.clip(tmp_path / "clip"), "visual", lr=1e-3).train(), loader())
    run.save_checkpoint(tmp_path / "visual.ckpt")
    tuned = CLIPAdapter(str(tmp_path / "visual.ckpt"), prompt_depth=2)
    task = AdapterTask(tuned, "prompt")
    before = {name: value.clone() for name, value in task.state_dict().items()}
    train(task, 2)
    assert moved(task, before) == {"clip.clip.visual.prompt.mask_embedding"}


@pytest.mark.parametrize("mode", ["prompt", "both"])
def test_training_prompts_needs_prompts(tmp_path: Path, mode: Any) -> None:
    with pytest.raises(InputError, match=f"train: {mode} needs mask prompts, .* set prompt_depth"):
        AdapterTask(tiny.clip(tmp_path), mode)


def test_two_processes_have_the_gradients_of_one_with_both_batches(tmp_path: Path) -> None:
    """And do so in parts, in which each of them uses its weights several times, and pickle nothing for each other."""
    assert "cat" in halves()[0].texts and "cat" in halves()[1].texts
    expected = gradients(AdapterTask(tiny.clip(tmp_path / "clip", 2), "both"), [batch()], tmp_path / "one")
    task = AdapterTask(
        tiny.clip(tmp_path / "clip", 2), "both", region_encoder=partial(CropEncoder, regions_per_batch=3)
    )
    found = gradients(task, halves(), tmp_path / "two", devices=2, strategy="ddp_spawn")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()) + 1e-8)
    assert any(float(value.abs().max()) > 1e-3 for value in expected.values())
    one, two = tmp_path / "one", tmp_path / "two"
    scores, *others = map(torch.load, (one / "scores-0.pt", two / "scores-0.pt", two / "scores-1.pt"))
    assert scores.keys() == {"val/mask_accuracy", "val/mask_accuracy_seen", "val/mask_accuracy_unseen"}
    assert others == [scores, scores]


def test_accumulated_batches_have_the_mean_of_their_gradients(tmp_path: Path) -> None:
    def of(name: str, batches: list[RegionTextBatch], **options: Any) -> dict[str, Tensor]:
        return gradients(AdapterTask(tiny.clip(tmp_path / "clip", 2), "both"), batches, tmp_path / name, **options)

    first, second = (of(f"half{index}", [half]) for index, half in enumerate(halves()))
    accumulated = of("both", halves(), accumulate_grad_batches=2)
    for name, value in accumulated.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["prompt", "visual", "both", "all"])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(tmp_path: Path, mode: Any) -> None:
    whole = gradients(AdapterTask(tiny.clip(tmp_path / "clip", 2), mode), [batch()], tmp_path / "whole")
    parts = AdapterTask(tiny.clip(tmp_path / "clip", 2), mode, region_encoder=partial(CropEncoder, regions_per_batch=3))
    found = gradients(parts, [batch()], tmp_path / "parts")
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()) + 1e-9)
    assert any(float(value.abs().max()) > 1e-3 for value in whole.values())


@pytest.mark.parametrize(("regions_per_batch", "kept"), [(None, 8), (8, 8), (3, 3), (1, 1)])
def test_of_a_batch_in_parts_one_part_is_kept(tmp_path: Path, regions_per_batch: int | None, kept: int) -> None:
    """How many regions' activations are alive at a time, forward and backward."""
    clip = tiny.clip(tmp_path / "clip", 2)
    outputs: list[tuple[StorageWeakRef, int]] = []
    alive: list[int] = []

    def watch(_: Any, __: Any, output: Tensor) -> None:
        outputs.append((StorageWeakRef(output.untyped_storage()), len(output)))
        alive.append(sum(regions for storage, regions in outputs if not storage.expired()))

    clip.visual.visual.transformer.resblocks[0].mlp.c_fc.register_forward_hook(watch)
    encoder = partial(CropEncoder, regions_per_batch=regions_per_batch)
    train(AdapterTask(clip, "both", region_encoder=encoder), 1)
    assert max(alive) == kept


def test_parts_have_a_region_at_least(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="regions_per_batch is 0; give at least 1"):
        CropEncoder(tiny.clip(tmp_path), regions_per_batch=0)


class Saves(L.Callback):
    """A checkpoint after so many steps."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("encoder", [CropEncoder, partial(SinglePassEncoder, clip_short_side=32, prompt_keys=1)])
def test_losses_go_on_from_the_middle_of_an_epoch(tmp_path: Path, encoder: Any) -> None:
    """Two epochs of three steps; the second run begins after the fourth."""

    def run(*callbacks: L.Callback, **start: Any) -> list[float]:
        losses = Losses()
        data = RegionTextDataModule(tmp_path / "pairs", tmp_path, RegionTransform(32), total_batch_size=4)
        options: Any = {"lr": 1e-3, "prompt_lr": 0.1, "warmup_steps": 2, "region_encoder": encoder}
        task = AdapterTask(tiny.clip(tmp_path / "clip", 2), "both", **options)
        steps = L.Trainer(accelerator="cpu", max_epochs=2, callbacks=[losses, *callbacks], **QUIET)
        steps.fit(task.train(), data, **start)
        return losses.values

    store = []
    for index, image in enumerate(tiny.images(*[(40, 48)] * 13)):
        to_pil_image(image).save(tmp_path / f"{index}.png")
        mask = torch.zeros(1, 40, 48, dtype=torch.bool)
        mask[:, 4 : 20 + index, 6:30] = True
        mask[:, 4:12, 6 : 8 + index] = False
        x0, y0, x1, y1 = masks_to_boxes(mask)[0].tolist()
        counts, noun = rle.encode(mask)[0], TEXTS[index % len(TEXTS)]
        store.append(RegionTextPair(index, f"{index}.png", (40, 48), counts, (x0, y0, x1, y1), noun, 0, 0.2, 0, 1))
    write_pairs(tmp_path / "pairs", store)

    whole = run(Saves(4, tmp_path / "middle.ckpt"))
    assert len(whole) == 6 and len(set(whole)) == 6
    # the last bit of a text's features depends on the texts that were encoded with it
    assert run(ckpt_path=tmp_path / "middle.ckpt") == pytest.approx(whole[4:], rel=1e-5)


def test_the_learning_rates_and_decays(tmp_path: Path) -> None:
    task = AdapterTask(tiny.clip(tmp_path, prompt_depth=1), "both", lr=1e-3, prompt_lr=0.2, weight_decay=0.3)
    run = trainer(1)
    run.fit(task.train(), loader())
    groups = run.optimizers[0].param_groups
    names = {parameter: name.removeprefix("clip.clip.visual.") for name, parameter in task.named_parameters()}
    settings = {names[p]: (group["initial_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert settings.pop("prompt.mask_embedding") == (0.2, 0.0)
    assert settings.pop("clip.clip.logit_scale") == (1e-3, 0.0)
    for name, (rate, decay) in settings.items():
        matrix = name.endswith("weight") and "ln_" not in name
        assert rate == 1e-3 and decay == (0.3 if matrix or name.endswith(("proj", "positional_embedding")) else 0), name


def test_the_data_is_told_the_resolution_of_the_clip(tmp_path: Path) -> None:
    data = Batches([batch()])
    trainer(1).fit(AdapterTask(tiny.clip(tmp_path), "visual"), datamodule=data)
    assert data.told == {"size": 32}
