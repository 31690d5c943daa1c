"""CLIP from every source, equal to plain open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ovseg.models import CLIPAdapter
from ovseg.structures import InputError
from tests import tiny
from tests.models.clips import PLAIN, REGIONS, equals_open_clip, same_features


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("prompt_depth", [None, 2])
def test_a_model_name_alone_gives_random_weights(prompt_depth: int | None) -> None:
    torch.manual_seed(0)
    adapter = CLIPAdapter("tiny-clip", prompt_depth=prompt_depth)
    torch.manual_seed(0)
    equals_open_clip(adapter, open_clip.create_model("tiny-clip"), open_clip.get_tokenizer("tiny-clip"))
    assert (adapter.image_size, adapter.dim, adapter.visual.patch_size) == (32, 32, 8)


@pytest.mark.usefixtures("names")
def test_activation_and_normalisation_of_a_tag_are_kept(tmp_path: Path) -> None:
    adapter = CLIPAdapter("tiny-clip", pretrained="quick")
    plain = open_clip.create_model("tiny-clip", pretrained="quick", force_quick_gelu=True)
    equals_open_clip(adapter, plain, open_clip.get_tokenizer("tiny-clip"))
    adapter.save_pretrained(tmp_path / "saved")
    same_features(adapter, CLIPAdapter(str(tmp_path / "saved")))
    assert CLIPAdapter(str(tmp_path / "saved")).mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.usefixtures("names")
def test_open_clip_reads_a_saved_folder(tmp_path: Path) -> None:
    adapter = CLIPAdapter("tiny-clip", pretrained="quick")
    adapter.save_pretrained(tmp_path / "saved")
    name = f"local-dir:{tmp_path / 'saved'}"
    equals_open_clip(adapter, open_clip.create_model(name), open_clip.get_tokenizer(name))


@pytest.mark.parametrize(("depth", "shared"), [(None, False), (1, False), (2, False), (2, True)])
def test_saving_and_loading_preserves_a_clip(tmp_path: Path, depth: int | None, shared: bool) -> None:
    """Including its prompts and the merges of a reduced tokenizer."""
    adapter = CLIPAdapter(tiny.clip_folder(tmp_path / "new"), prompt_depth=depth, shared_prompt=shared)
    adapter.save_pretrained(tmp_path / "saved")
    again = CLIPAdapter(str(tmp_path / "saved"))
    assert (again.visual.prompt is None) == (depth is None)
    if adapter.visual.prompt is not None and again.visual.prompt is not None:
        assert torch.equal(adapter.visual.prompt.mask_embedding, again.visual.prompt.mask_embedding)
    same_features(adapter, again)
    again.save_pretrained(tmp_path / "again")
    for file in (tmp_path / "saved").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_prompts_do_not_change_the_saved_weights(tmp_path: Path) -> None:
    tiny.clip(tmp_path / "new").save_pretrained(tmp_path / "plain")
    CLIPAdapter(str(tmp_path / "plain"), prompt_depth=2).save_pretrained(tmp_path / "prompted")
    file = "open_clip_model.safetensors"
    assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "prompted" / file).read_bytes()


@pytest.mark.parametrize("depth", [1, 3])
def test_prompts_of_another_depth_are_refused(tmp_path: Path, depth: int) -> None:
    tiny.clip(tmp_path / "new", prompt_depth=2).save_pretrained(tmp_path / "saved")
    assert CLIPAdapter(str(tmp_path / "saved"), prompt_depth=2).visual.prompt is not None
    with pytest.raises(InputError, match=f"has mask prompts of depth 2, not {depth}; remove prompt_depth"):
        CLIPAdapter(str(tmp_path / "saved"), prompt_depth=depth)


def test_prompts_of_another_tower_are_refused(tmp_path: Path) -> None:
    tiny.clip(tmp_path / "new", prompt_depth=2).save_pretrained(tmp_path / "saved")
    save_file({"mask_embedding": torch.zeros(2, 9, 64)}, tmp_path / "saved" / "mask_prompt.safetensors")
    with pytest.raises(InputError, match=r"does not fit this MaskPrompt: 1 of another shape \(mask_embedding\)"):
        CLIPAdapter(str(tmp_path / "saved"))


@pytest.mark.parametrize("prompts", [{"mask_embedding": torch.zeros(16, 64)}, {"prompt": torch.zeros(1, 16, 64)}])
def test_malformed_prompts_are_refused(tmp_path: Path, prompts: dict[str, torch.Tensor]) -> None:
    tiny.clip(tmp_path / "new").save_pretrained(tmp_path / "saved")
    save_file(prompts, tmp_path / "saved" / "mask_prompt.safetensors")
    with pytest.raises(InputError, match=r"the mask prompts of .* do not have shape \(depth, patches, width\); save"):
        CLIPAdapter(str(tmp_path / "saved"))


def test_texts_longer_than_the_context_are_truncated(tmp_path: Path) -> None:
    adapter = tiny.clip(tmp_path)
    same, cut = adapter.encode_text(["cat " * 200, "cat " * 100]).detach()
    torch.testing.assert_close(same, cut)


def test_the_config_in_a_folder_sets_the_normalisation(tmp_path: Path) -> None:
    folder = Path(tiny.clip_folder(tmp_path))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0]}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    adapter = CLIPAdapter(str(folder)).eval()
    features = adapter.clip.visual.visual((REGIONS - adapter.mean) / torch.tensor([1.0, 2.0, 4.0])[:, None, None])
    torch.testing.assert_close(adapter.encode_regions(REGIONS), F.normalize(features, dim=-1))
    torch.testing.assert_close(adapter.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("mean", ["grey", 0.5, [0.5, 0.5], [0.5, None, 0.5]])
def test_a_mean_that_is_not_three_numbers_is_refused(tmp_path: Path, mean: Any) -> None:
    folder = Path(tiny.clip_folder(tmp_path))
    config = json.loads((folder / "open_clip_config.json").read_text()) | {"preprocess_cfg": {"mean": mean}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"the mean of {tmp_path} is .*; set three numbers"):
        CLIPAdapter(str(folder))


@pytest.mark.parametrize(
    ("shape", "mask_shape", "reason"),
    [
        ((2, 1, 32, 32), None, r"regions have 1 channel; convert them to RGB, \(N, 3, height, width\)"),
        ((2, 2, 32, 32), None, "regions have 2 channels; convert them to RGB"),
        ((2, 4, 32, 32), None, "regions have 4 channels; convert them to RGB"),
        ((3, 32, 32), None, r"regions have shape \(3, 32, 32\); stack them to"),
        ((2, 3, 32, 7), None, r"regions of 32 × 7 pixels are smaller than CLIP's patches \(8 pixels\); resize them"),
        ((2, 3, 32, 32), (2, 1, 32, 32), r"masks of shape \(2, 1, 32, 32\) do not match 2 regions of 32 × 32 pixels"),
        ((2, 3, 32, 32), (2, 16, 16), r"masks of shape \(2, 16, 16\) do not match 2 regions of 32 × 32 pixels"),
    ],
)
def test_malformed_regions_are_refused(
    tmp_path: Path, shape: tuple[int, ...], mask_shape: tuple[int, ...] | None, reason: str
) -> None:
    adapter = tiny.clip(tmp_path, prompt_depth=1)
    masks = None if mask_shape is None else torch.ones(mask_shape)
    for encode in (adapter.encode_regions, adapter.visual):
        with pytest.raises(InputError, match=reason):
            encode(torch.rand(shape), masks)


@torch.no_grad()
def test_masks_have_no_effect_without_prompts_and_new_prompts_are_random(tmp_path: Path) -> None:
    """The release zeroes blank patches of a CLIP without trained prompts; here it stays plain CLIP."""
    tiny.clip(tmp_path / "new").save_pretrained(tmp_path / "plain")
    plain = CLIPAdapter(str(tmp_path / "plain")).eval()
    masks = torch.zeros(3, 32, 32)
    assert torch.equal(plain.encode_regions(REGIONS, masks), plain.encode_regions(REGIONS))
    prompt = CLIPAdapter(str(tmp_path / "plain"), prompt_depth=2).visual.prompt
    assert prompt is not None and prompt.mask_embedding.shape == (2, 16, 64)
    assert abs(float(prompt.mask_embedding.std()) - 0.02) < 0.002


def test_no_regions_have_no_features(tmp_path: Path) -> None:
    features = tiny.clip(tmp_path, prompt_depth=1).encode_regions(torch.zeros(0, 3, 32, 32), torch.zeros(0, 32, 32))
    assert features.shape == (0, 32)


def test_a_clip_without_patch_tokens_supports_all_but_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-rn", PLAIN | {"vision_cfg": tiny.RN})
    torch.manual_seed(0)
    adapter = CLIPAdapter("tiny-rn")
    torch.manual_seed(0)
    equals_open_clip(adapter, open_clip.create_model("tiny-rn"), open_clip.get_tokenizer("tiny-rn"))
    assert (adapter.image_size, adapter.dim) == (32, 32)
    adapter.save_pretrained(tmp_path / "saved")
    same_features(adapter, CLIPAdapter(str(tmp_path / "saved")))
    for model in ("tiny-rn", str(tmp_path / "saved")):
        with pytest.raises(InputError, match=r"ModifiedResNet, which has no patch tokens, but mask prompts and singl"):
            CLIPAdapter(model, prompt_depth=1)
    with pytest.raises(InputError, match="regions of 32 × 48 pixels do not fit this image tower, which needs 32 × 32;"):
        adapter.encode_regions(torch.rand(2, 3, 32, 48))
