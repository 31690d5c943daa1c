"""CLIP from every source, equal to plain open_clip, and its refusals."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ovseg.models import CLIPAdapter
from ovseg.structures import InputError
from tests import tiny

PLAIN = {**tiny.CLIP, "text_cfg": {**tiny.CLIP["text_cfg"], "vocab_size": 49408, "context_length": 12}}
REGIONS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXTS = ["a cat", "two red sofas", "potted plants, and a word the merges do not know: zyzzyva"]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny models that open_clip knows by name; `tiny-clip` has two tags, whose weights are at the returned place."""
    weights = tmp_path / "tag.safetensors"
    for name in ("tiny-clip", "tiny-clip-deep"):
        deep = {"vision_cfg": {**PLAIN["vision_cfg"], "layers": 3}} if "deep" in name else {}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, PLAIN | deep)
    tags = {
        "quick": {"file": str(weights), "quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
        "far": {"hf_hub": "somebody/something/open_clip_model.safetensors"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", tags)
    torch.manual_seed(1)
    save_file(open_clip.create_model("tiny-clip").state_dict(), weights)
    return weights


@torch.no_grad()
def same_features(one: CLIPAdapter, other: CLIPAdapter) -> None:
    masks = torch.zeros(3, 32, 32)
    masks[:, :9, :20] = 1
    assert torch.equal(one.eval().encode_regions(REGIONS, masks), other.eval().encode_regions(REGIONS, masks))
    assert torch.equal(one.tokenizer(TEXTS), other.tokenizer(TEXTS))
    assert torch.equal(one.encode_text(TEXTS), other.encode_text(TEXTS))
    assert torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std)
    assert torch.equal(one.logit_scale, other.logit_scale)


@torch.no_grad()
def equals_open_clip(ours: CLIPAdapter, plain: Any, tokenizer: Any) -> None:
    """Plain open_clip normalises by its own preprocess config."""
    mean, std = (torch.tensor(plain.visual.preprocess_cfg[key])[:, None, None] for key in ("mean", "std"))
    features = plain.eval().encode_image((REGIONS - mean) / std, normalize=True)
    torch.testing.assert_close(ours.eval().encode_regions(REGIONS), features)
    torch.testing.assert_close(ours.encode_text(TEXTS), plain.encode_text(tokenizer(TEXTS), normalize=True))


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("prompt_depth", [None, 2])
def test_a_name_gives_random_weights_of_that_model(prompt_depth: int | None) -> None:
    torch.manual_seed(0)
    adapter = CLIPAdapter("tiny-clip", prompt_depth=prompt_depth)
    torch.manual_seed(0)
    equals_open_clip(adapter, open_clip.create_model("tiny-clip"), open_clip.get_tokenizer("tiny-clip"))
    assert (adapter.image_size, adapter.dim, adapter.visual.patch_size) == (32, 32, 8)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_weights_from_a_file(names: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    weights = load_file(names)
    save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
    torch.manual_seed(0)
    adapter = CLIPAdapter("tiny-clip", pretrained=str(file))
    plain = open_clip.create_model("tiny-clip", pretrained=str(file))
    equals_open_clip(adapter, plain, open_clip.get_tokenizer("tiny-clip"))
    assert torch.equal(adapter.clip.positional_embedding, weights["positional_embedding"])


@pytest.mark.usefixtures("names")
def test_what_a_tag_says_of_activation_and_colours_is_kept(tmp_path: Path) -> None:
    adapter = CLIPAdapter("tiny-clip", pretrained="quick")
    plain = open_clip.create_model("tiny-clip", pretrained="quick", force_quick_gelu=True)
    equals_open_clip(adapter, plain, open_clip.get_tokenizer("tiny-clip"))
    adapter.save_pretrained(tmp_path / "saved")
    same_features(adapter, CLIPAdapter(str(tmp_path / "saved")))
    assert CLIPAdapter(str(tmp_path / "saved")).mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.usefixtures("names")
def test_open_clip_reads_the_folder_that_we_write(tmp_path: Path) -> None:
    adapter = CLIPAdapter("tiny-clip", pretrained="quick")
    adapter.save_pretrained(tmp_path / "saved")
    name = f"local-dir:{tmp_path / 'saved'}"
    equals_open_clip(adapter, open_clip.create_model(name), open_clip.get_tokenizer(name))


@pytest.mark.parametrize(("depth", "shared"), [(None, False), (1, False), (2, False), (2, True)])
def test_a_saved_clip_is_the_same_clip(tmp_path: Path, depth: int | None, shared: bool) -> None:
    """With its prompts, and with the merges of a reduced tokenizer."""
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


def test_prompts_do_not_touch_the_weights_in_the_folder(tmp_path: Path) -> None:
    tiny.clip(tmp_path / "new").save_pretrained(tmp_path / "plain")
    CLIPAdapter(str(tmp_path / "plain"), prompt_depth=2).save_pretrained(tmp_path / "prompted")
    file = "open_clip_model.safetensors"
    assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "prompted" / file).read_bytes()


@pytest.mark.parametrize("depth", [1, 3])
def test_prompts_of_another_depth_are_refused(tmp_path: Path, depth: int) -> None:
    tiny.clip(tmp_path / "new", prompt_depth=2).save_pretrained(tmp_path / "saved")
    assert CLIPAdapter(str(tmp_path / "saved"), prompt_depth=2).visual.prompt is not None
    with pytest.raises(InputError, match=f"has mask prompts of depth 2, not {depth}; leave prompt_depth out"):
        CLIPAdapter(str(tmp_path / "saved"), prompt_depth=depth)


def test_prompts_of_another_tower_are_refused(tmp_path: Path) -> None:
    tiny.clip(tmp_path / "new", prompt_depth=2).save_pretrained(tmp_path / "saved")
    save_file({"mask_embedding": torch.zeros(2, 9, 64)}, tmp_path / "saved" / "mask_prompt.safetensors")
    with pytest.raises(InputError, match=r"does not fit this MaskPrompt: 1 of another shape \(mask_embedding\)"):
        CLIPAdapter(str(tmp_path / "saved"))


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("model", "pretrained", "reason"),
    [
        ("tiny-clop", None, "Model config for 'tiny-clop' not found"),
        ("tiny-clip", "no-such-tag", "'no-such-tag' is not a known tag or valid file path"),
        ("tiny-clip", "missing/weights.pt", "is not a known tag or valid file path"),
        ("runs/missing", None, "Model config for 'runs-missing' not found"),
    ],
)
def test_what_is_not_there_is_refused(model: str, pretrained: str | None, reason: str) -> None:
    with pytest.raises(
        InputError, match=rf"CLIP {model}.* could not be loaded .*{reason}.*bring the weights"
    ) as caught:
        CLIPAdapter(model, pretrained)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["other", "text", "empty"])
def test_weights_that_do_not_fit_are_refused(names: Path, tmp_path: Path, content: str) -> None:
    file = tmp_path / "weights.pt"
    file.write_text("<html>")
    if content != "text":
        torch.save(load_file(names) if content == "other" else {}, file)
    with pytest.raises(InputError, match=r"CLIP tiny-clip-deep with weights .* could not be loaded"):
        CLIPAdapter("tiny-clip-deep", pretrained=str(file))


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(("model", "pretrained"), [("tiny-clip", "far"), ("hf-hub:somebody/something", None)])
def test_without_a_network_it_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, model: str, pretrained: str | None
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(InputError, match=r"could not be loaded.*without a network, bring the weights"):
        CLIPAdapter(model, pretrained)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("weights", [True, False])
def test_a_hub_name_in_the_cache_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool
) -> None:
    """And a hub name that brings no weights is refused, where open_clip would go on with random ones."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--somebody--something"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    adapter = tiny.clip(tmp_path / "new")
    adapter.save_pretrained(model / "snapshots" / "abc")
    if weights:
        again = CLIPAdapter("hf-hub:somebody/something")
        assert torch.equal(again.encode_regions(REGIONS), adapter.encode_regions(REGIONS))
    else:
        (model / "snapshots" / "abc" / "open_clip_model.safetensors").unlink()
        with pytest.raises(InputError, match="could not be loaded"):
            CLIPAdapter("hf-hub:somebody/something")


def test_a_folder_brings_its_own_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="brings its own weights; leave `pretrained` out"):
        CLIPAdapter(tiny.clip_folder(tmp_path), pretrained="openai")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"is not a CLIP folder: it has no open_clip_config\.json"):
        CLIPAdapter(str(tmp_path / "none"))


def test_longer_texts_than_the_context_are_cut(tmp_path: Path) -> None:
    adapter = tiny.clip(tmp_path)
    same, cut = adapter.encode_text(["cat " * 200, "cat " * 100]).detach()
    torch.testing.assert_close(same, cut)


def test_the_config_in_the_folder_says_how_colours_are_normalised(tmp_path: Path) -> None:
    folder = Path(tiny.clip_folder(tmp_path))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0]}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    adapter = CLIPAdapter(str(folder)).eval()
    features = adapter.clip.visual.visual((REGIONS - adapter.mean) / torch.tensor([1.0, 2.0, 4.0])[:, None, None])
    torch.testing.assert_close(adapter.encode_regions(REGIONS), F.normalize(features, dim=-1))
    torch.testing.assert_close(adapter.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
