"""Adapter training with a region encoder that sees whole images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ovseg.models import CLIPAdapter, CropEncoder, MeanPoolEncoder, RegionEncoder, SinglePassEncoder
from ovseg.structures import ImageTextBatch, InputError, RegionTextBatch
from ovseg.tasks import AdapterTask
from tests import tiny
from tests.tasks.data import Batches, Losses, trainer

TEXTS = ["cat", "sofa", "plant", "sky", "cat"]
ALL_TEXTS = sorted(set(TEXTS))


def batch() -> ImageTextBatch:
    """Two images of different shapes, with three and two regions."""
    images = tiny.images((32, 40), (40, 32))
    masks = [torch.zeros(3, 32, 40, dtype=torch.bool), torch.zeros(2, 40, 32, dtype=torch.bool)]
    for number, mask in enumerate([*masks[0], *masks[1]]):
        mask[4 * number : 4 * number + 14, number : 8 + 5 * number] = True
        mask[4 * number : 4 * number + 8, number : 5 + number] = False  # a blank corner, which prompts stand for
    return ImageTextBatch(images, masks, TEXTS, torch.tensor([ALL_TEXTS.index(text) for text in TEXTS]))


def single_pass(**options: Any) -> Any:
    return lambda clip: SinglePassEncoder(clip, 32, **options)


def clip(folder: Path, **changes: Any) -> CLIPAdapter:
    torch.manual_seed(0)
    return CLIPAdapter(tiny.clip_folder(folder / "clip", **changes), prompt_depth=changes.pop("prompt_depth", None))


@pytest.mark.parametrize("train", ["prompt", "visual", "both"])
def test_only_what_is_to_be_trained_changes(tmp_path: Path, train: Any) -> None:
    """Mask prompts, which a single pass does not use, never change."""
    torch.manual_seed(0)
    network = CLIPAdapter(tiny.clip_folder(tmp_path / "clip"), prompt_depth=1)
    encoder = single_pass(mask="learned", prompt_keys=2)
    task = AdapterTask(network, train, lr=2e-3, warmup_steps=1, region_encoder=encoder)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    losses, data = Losses(), Batches([batch()], texts=ALL_TEXTS)
    trainer(20, losses).fit(task, data)
    assert data.told == {"size": 32, "whole_images": True}
    assert losses.values[-1] < losses.values[0]
    changed = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    prompts = {"region_encoder.prompt_keys", "region_encoder.mask_scale"}
    tower = {name for name in before if re.match(r"clip\.clip\.visual\.visual\.(?!preprocess)", name)}
    tower |= {"clip.clip.logit_scale"}
    assert changed == {"prompt": prompts, "visual": tower, "both": prompts | tower}[train]


def test_an_encoder_without_prompts_cannot_train_them(tmp_path: Path) -> None:
    network = clip(tmp_path)
    for train in ("prompt", "both"):
        with pytest.raises(InputError, match=f"train: {train} needs prompt keys or a learned mask.*prompt_keys, for"):
            AdapterTask(network, train, region_encoder=single_pass())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="train: prompt needs parameters of the region encoder, but it has none"):
        AdapterTask(network, "prompt", region_encoder=MeanPoolEncoder)
    AdapterTask(network, "prompt", region_encoder=single_pass(mask="learned"))


class WideCropEncoder(RegionEncoder):
    """Encodes wide crops, with mask prompts if there are any."""

    def __init__(self, clip: CLIPAdapter) -> None:
        super().__init__(clip)
        self.crops = CropEncoder(clip, expand_ratio=1.5)

    def forward(self, images: Any, masks: Any) -> Any:
        return self.crops(images, masks)


def test_mask_prompts_are_trained_through_any_encoder_of_crops(tmp_path: Path) -> None:
    network = clip(tmp_path)
    with pytest.raises(InputError, match="train: prompt needs mask prompts, but this CLIP has none; set prompt_depth"):
        AdapterTask(network, "prompt", region_encoder=WideCropEncoder)
    network.visual.add_prompt(1)
    task = AdapterTask(network, "prompt", region_encoder=WideCropEncoder)
    trained = [name for name, parameter in task.named_parameters() if parameter.requires_grad]
    assert trained == ["clip.clip.visual.prompt.mask_embedding"]


def test_data_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    network = clip(tmp_path)
    crops = RegionTextBatch(
        torch.rand(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool), ["a", "b"], torch.arange(2)
    )
    with pytest.raises(InputError, match="SinglePassEncoder trains on whole images, but the data brings regions"):
        trainer(1).fit(AdapterTask(network, "visual", region_encoder=single_pass()), Batches([crops]))
    with pytest.raises(InputError, match="CropEncoder trains on regions, but the data brings whole images"):
        trainer(1).fit(AdapterTask(network, "visual"), Batches([batch()]))
