"""A checkpoint of adapter training brings its region encoder to bundling, mining and further training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from ovseg.checkpoint import read_state
from ovseg.models import CLIPAdapter, CropEncoder, OpenVocabSegmenter, RegionEncoder, SinglePassEncoder
from ovseg.structures import InputError
from ovseg.tasks import AdapterTask, MiningTask
from tests import tiny
from tests.stages import ovseg, refusal
from tests.tasks.data import Batches, trainer
from tests.tasks.test_adapter import loader as crops
from tests.tasks.test_single_pass_training import ALL_TEXTS, batch


class TwoPassEncoder(RegionEncoder):
    """Averages two single passes, and holds CLIP under three names."""

    whole_images = True

    def __init__(self, clip: CLIPAdapter) -> None:
        super().__init__(clip)
        self.passes = torch.nn.ModuleList(SinglePassEncoder(clip, side, prompt_keys=1) for side in (32, 40))

    def forward(self, images: Any, masks: Any) -> Any:
        first, second = (encode(images, masks) for encode in self.passes)
        pairs = zip(first, second, strict=True)
        return [a._replace(features=normalize(a.features + b.features, dim=1)) for a, b in pairs]

    def encode_batch(self, batch: Any) -> torch.Tensor:
        return torch.cat([regions.features for regions in self(batch.images, batch.masks)])


def single_pass(**options: Any) -> Any:
    return partial(SinglePassEncoder, clip_short_side=32, **options)


def trained(folder: Path, encoder: Any, train: Any = "both") -> tuple[str, AdapterTask]:
    """Return a checkpoint after two steps, and the task."""
    task = AdapterTask(tiny.clip(folder / "clip"), train, lr=1e-3, warmup_steps=1, region_encoder=encoder)
    run = trainer(2)
    run.fit(task.train(), Batches([batch()], texts=ALL_TEXTS))
    run.save_checkpoint(folder / "last.ckpt")
    return str(folder / "last.ckpt"), task.eval()


def features(encoder: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([regions.features for regions in encoder.eval()(batch().images, batch().masks)])


def test_a_bundle_encodes_regions_like_the_training(tmp_path: Path) -> None:
    checkpoint, task = trained(tmp_path, single_pass(mask="learned", prompt_keys=2, branch_block=2))
    tiny.proposer().save_pretrained(tmp_path / "proposer")
    ovseg("bundle", "--proposer", tmp_path / "proposer", "--clip", checkpoint, "--out", tmp_path / "segmenter")
    encoder = OpenVocabSegmenter.from_pretrained(tmp_path / "segmenter").region_encoder
    assert type(encoder) is SinglePassEncoder and encoder.settings() == task.region_encoder.settings()
    assert torch.equal(features(encoder), features(task.region_encoder))
    assert not torch.equal(features(encoder), features(SinglePassEncoder(encoder.clip, 32)))


def test_a_bundle_fills_crops_like_the_training(tmp_path: Path) -> None:
    task = AdapterTask(tiny.clip(tmp_path / "clip", 1), region_encoder=partial(CropEncoder, fill="zero"))
    run = trainer(1)
    run.fit(task.train(), crops())
    run.save_checkpoint(tmp_path / "last.ckpt")
    tiny.proposer().save_pretrained(tmp_path / "proposer")
    words = ["bundle", "--proposer", tmp_path / "proposer", "--clip", tmp_path / "last.ckpt"]
    ovseg(*words, "--out", tmp_path / "segmenter")
    encoder = OpenVocabSegmenter.from_pretrained(tmp_path / "segmenter").region_encoder
    assert type(encoder) is CropEncoder and encoder.fill == "zero"


def test_training_and_mining_continue_with_the_own_weights(tmp_path: Path) -> None:
    checkpoint, task = trained(tmp_path, single_pass(prompt_keys=2))
    for again in (
        AdapterTask(CLIPAdapter(checkpoint), region_encoder=single_pass(prompt_keys=2)),
        MiningTask(CLIPAdapter(checkpoint), region_encoder=single_pass(prompt_keys=2)),
    ):
        assert torch.equal(features(again.region_encoder), features(task.region_encoder))
    assert type(AdapterTask(CLIPAdapter(checkpoint), "visual").region_encoder) is CropEncoder


def test_prompt_keys_can_be_added_to_a_tuned_tower(tmp_path: Path) -> None:
    checkpoint, task = trained(tmp_path, single_pass(), "visual")
    again = AdapterTask(CLIPAdapter(checkpoint), region_encoder=single_pass(prompt_keys=1))
    assert torch.equal(again.clip.logit_scale, task.clip.logit_scale)
    assert [name for name, value in again.named_parameters() if value.requires_grad] == ["region_encoder.prompt_keys"]


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"prompt_keys": 1}, "prompt_keys 1, not 2"),
        ({"prompt_keys": 2, "branch_block": 2}, "branch_block 2, not 1"),
        ({}, "prompt_keys 0, not 2"),
        ({"prompt_keys": 2, "mask": "learned"}, "mask 'learned', not 'hard'"),
    ],
)
def test_weights_of_other_settings_are_refused(tmp_path: Path, options: dict[str, Any], difference: str) -> None:
    checkpoint, _ = trained(tmp_path, single_pass(prompt_keys=2))
    reason = rf"last\.ckpt has trained weights for other settings of SinglePassEncoder \({difference}\); give the sett"
    with pytest.raises(InputError, match=reason):
        AdapterTask(CLIPAdapter(checkpoint), "visual", region_encoder=single_pass(**options))


def test_settings_that_fit_the_weights_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint, _ = trained(tmp_path, single_pass(prompt_keys=2))
    AdapterTask(CLIPAdapter(checkpoint), region_encoder=single_pass(prompt_keys=2, keys="patches"))
    assert "trained with other settings of SinglePassEncoder: using keys 'patches', not 'self'" in caplog.text


def test_an_encoder_of_many_parts_is_saved_with_one_clip(tmp_path: Path) -> None:
    checkpoint, task = trained(tmp_path, TwoPassEncoder)
    keys = read_state(checkpoint)["state_dict"].keys()
    assert {key for key in keys if not key.startswith("clip.")} == {
        f"region_encoder.passes.{index}.prompt_keys" for index in range(2)
    }
    again = AdapterTask(CLIPAdapter(checkpoint), "both", region_encoder=TwoPassEncoder)
    assert torch.equal(features(again.region_encoder), features(task.region_encoder))
    run = trainer(3)
    run.fit(again.train(), Batches([batch()], texts=ALL_TEXTS), ckpt_path=checkpoint)
    assert run.global_step == 3


def test_a_checkpoint_imports_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _ = trained(tmp_path, single_pass(prompt_keys=2))
    content = torch.load(checkpoint, weights_only=True)
    content["architectures"]["region_encoder"]["class_path"] = "my_encoder.TwoScaleEncoder"
    torch.save(content, checkpoint)
    tiny.proposer().save_pretrained(tmp_path / "proposer")
    words = ["bundle", "--proposer", tmp_path / "proposer", "--clip", checkpoint, "--out", tmp_path / "segmenter"]
    reason = refusal(capsys, *words)
    assert "last.ckpt needs the region encoder my_encoder.TwoScaleEncoder, which is not imported" in reason
    assert not (tmp_path / "segmenter").exists()
