"""Load CLIP weights from every kind of file that users have, and refuse the rest with the name of the file."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ovseg.checkpoint import load_weights
from ovseg.models import CLIPAdapter
from ovseg.structures import InputError
from tests import tiny
from tests.models.clips import PLAIN, REGIONS, TEXTS, equals_open_clip, same_features


class Payload:
    """Create a folder when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["w.safetensors", "w.pt", "w.ckpt", "training", "parallel"])
def test_weights_from_a_file(names: Path, tmp_path: Path, form: str) -> None:
    """`training` and `parallel` are open_clip's training checkpoints."""
    weights, file = load_file(names), tmp_path / form
    if form == "w.safetensors":
        save_file(weights, file)
    elif form == "training":
        torch.save({"epoch": 3, "name": "run", "state_dict": weights, "optimizer": {}}, file)
    elif form == "parallel":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in weights.items()}}, file)
    else:
        torch.save(weights, file)
    adapter = CLIPAdapter("tiny-clip", pretrained=str(file))
    plain = open_clip.create_model("tiny-clip", pretrained=str(file))
    equals_open_clip(adapter, plain, open_clip.get_tokenizer("tiny-clip"))
    assert torch.equal(adapter.clip.positional_embedding, weights["positional_embedding"])


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
def test_original_openai_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchScript archives in half precision, with three constants and an attention mask among the buffers."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", PLAIN | {"quick_gelu": True})
    torch.manual_seed(0)
    clip: Any = open_clip.create_model("tiny-quickgelu").eval()
    clip.attn_mask = clip._buffers.pop("attn_mask")
    weights = {key: value.half().float() for key, value in clip.state_dict().items()}
    for name, value in {"input_resolution": 32, "context_length": 12, "vocab_size": 49408}.items():
        vars(clip).pop(name, None)
        clip.register_buffer(name, torch.tensor(value))
    tokens = open_clip.get_tokenizer("tiny-quickgelu")(TEXTS)
    torch.jit.trace(clip, (REGIONS, tokens), check_trace=False).half().save(tmp_path / "ViT-T-8.pt")
    adapter = CLIPAdapter("tiny-quickgelu", pretrained=str(tmp_path / "ViT-T-8.pt"))
    plain: Any = open_clip.create_model("tiny-quickgelu")
    plain.load_state_dict(weights)
    equals_open_clip(adapter, plain, open_clip.get_tokenizer("tiny-quickgelu"))
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}


def test_positions_are_interpolated_as_in_open_clip(names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = PLAIN | {"vision_cfg": PLAIN["vision_cfg"] | {"image_size": 48}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-large", large)
    plain: Any = open_clip.create_model("tiny-large", pretrained=str(names))
    adapter = CLIPAdapter("tiny-large", pretrained=str(names))
    assert torch.equal(adapter.visual.visual.positional_embedding, plain.visual.positional_embedding)


@pytest.mark.parametrize("place", ["pt", "ckpt", "tag", "folder", "hub", "checkpoint", "load_weights"])
def test_pickled_code_is_refused_and_never_run(
    names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    marker = tmp_path / "marker"
    content = {"state_dict": load_file(names), "epoch": Payload(marker)}
    file = tmp_path / {"checkpoint": "last.ckpt", "ckpt": "last.ckpt"}.get(place, "weights.pt")
    model, pretrained = "tiny-clip", str(file)
    if place in ("folder", "hub"):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        repository = tmp_path / "models--somebody--something"
        folder = repository / "snapshots" / "abc"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
        tiny.clip_folder(folder)
        model, pretrained = str(folder) if place == "folder" else "hf-hub:somebody/something", ""
        file = folder / "open_clip_pytorch_model.bin"
    elif place == "tag":
        tags = {"evil": {"file": str(file)}}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", tags)
        pretrained = "evil"
    elif place == "checkpoint":
        model, pretrained = str(file), ""
    torch.save(content, file)
    clip = tiny.clip(tmp_path / "new")
    with pytest.raises(InputError, match=rf"{file.name} contains Python objects .* never executed") as caught:
        load_weights(clip, file) if place == "load_weights" else CLIPAdapter(model, pretrained or None)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # proves that the payload works


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("other", r"does not fit this CLIP: 12 missing \(visual\.transformer\.resblocks\.2\.ln_1\.weight, "),
        ("more", r"does not fit this CLIP: 12 missing .*; 1 unexpected \(more\)"),
        ("narrow", r"does not fit this CLIP: .*of another shape \(positional_embedding"),
        ("empty", r"does not fit this CLIP: \d+ missing"),
        ("number", r"holds no state dict of a CLIP; use"),
        ("list", r"holds no state dict of a CLIP; use"),
        ("text", r"is not a readable weights file .*; download or save it again"),
        ("half", r"is not a readable weights file .*; download or save it again"),
    ],
)
def test_weights_that_do_not_fit_are_refused(names: Path, tmp_path: Path, change: str, reason: str) -> None:
    weights: dict[str, Any] = load_file(names)
    file = tmp_path / "weights.pt"
    changes: dict[str, Any] = {
        "more": weights | {"more": torch.zeros(1)},
        "narrow": weights | {"positional_embedding": torch.zeros(12, 48)},
        "empty": {},
        "number": weights | {"epoch": 7},
        "list": {"state_dict": [1]},
    }
    torch.save(changes.get(change, weights), file)
    if change in ("text", "half"):
        file.write_bytes(b"<html>" if change == "text" else file.read_bytes()[:5000])
    with pytest.raises(InputError, match=rf"weights\.pt {reason}") as caught:
        CLIPAdapter("tiny-clip-deep", pretrained=str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("model", "pretrained", "reason"),
    [
        (
            "tiny-clop",
            None,
            "CLIP tiny-clop could not be loaded .*Model config for 'tiny-clop' not found.*download the",
        ),
        ("runs/missing", None, "CLIP runs/missing could not be loaded .*download the weights"),
        (
            "tiny-clip",
            "no-such-tag",
            r"'no-such-tag' is neither a file nor an open_clip tag for tiny-clip; .*: quick, far",
        ),
        ("tiny-clip", "missing/weights.pt", "'missing/weights.pt' is neither a file nor an open_clip tag"),
        ("tiny-clip-deep", "openai", r"'openai' is neither a file nor an open_clip tag for tiny-clip-deep; .*: none"),
    ],
)
def test_missing_models_and_weights_are_refused(model: str, pretrained: str | None, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        CLIPAdapter(model, pretrained)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("model", "pretrained", "what"),
    [
        ("tiny-clip", "far", "CLIP tiny-clip with weights 'far'"),
        ("hf-hub:somebody/something", None, "CLIP hf-hub:somebody/something"),
        ("tiny-hf", None, "the tokenizer of CLIP tiny-hf"),
    ],
)
def test_an_unreachable_hub_is_reported_at_once(
    monkeypatch: pytest.MonkeyPatch, model: str, pretrained: str | None, what: str
) -> None:
    hf = PLAIN | {"custom_text": True, "text_cfg": PLAIN["text_cfg"] | {"hf_tokenizer_name": "somebody/something"}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-hf", hf)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"{what} could not be loaded.*if this machine is offline, ") as caught:
        CLIPAdapter(model, pretrained)
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", [True, False])
def test_a_hub_name_in_the_cache_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool
) -> None:
    """A hub repository without weights is refused, where open_clip would continue with random ones."""
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


def test_a_folder_must_hold_its_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="comes with weights; remove `pretrained`"):
        CLIPAdapter(tiny.clip_folder(tmp_path), pretrained="openai")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"is not a CLIP folder: it has no open_clip_config\.json"):
        CLIPAdapter(str(tmp_path / "none"))
    (tmp_path / "model_best.pt").touch()
    with pytest.raises(InputError, match=r"has no open_clip_model\.safetensors but has model_best\.pt; .* rename"):
        CLIPAdapter(str(tmp_path))


def test_a_tokenizer_from_transformers_is_saved_with_its_model(tmp_path: Path) -> None:
    """So is the logit bias of SigLIP."""
    words = {word: index for index, word in enumerate(["<unk>", "<pad>", "a", "cat", "two", "red", "sofas"])}
    own = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "new"
    text = PLAIN["text_cfg"] | {"hf_tokenizer_name": "somebody/something", "vocab_size": 7}
    tiny.clip_folder(folder, text_cfg=text | {"pool_type": "last"}, custom_text=True, init_logit_bias=-10.0)
    (folder / "merges.txt.gz").unlink()
    PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    adapter = CLIPAdapter(str(folder), prompt_depth=2)
    assert adapter.tokenizer(["two red sofas"])[0].tolist() == [4, 5, 6] + [1] * 9
    adapter.save_pretrained(tmp_path / "saved")
    same_features(adapter, CLIPAdapter(str(tmp_path / "saved")))
    state = {f"clip.{key}": value for key, value in adapter.state_dict().items()}
    checkpoint = {"state_dict": state, "architectures": {"clip": adapter.architecture()}}
    json.dumps(checkpoint["architectures"])  # plain values
    torch.save(checkpoint, tmp_path / "last.ckpt")
    again = CLIPAdapter(str(tmp_path / "last.ckpt"))
    same_features(adapter, again)
    assert again.state_dict()["clip.logit_bias"] == -10


def test_merges_that_unpack_to_too_much_are_refused(tmp_path: Path) -> None:
    folder = tiny.clip_folder(tmp_path / "clip")
    (tmp_path / "clip" / "merges.txt.gz").write_bytes(gzip.compress(b"a b\n" * (2**24 + 1)))
    with pytest.raises(InputError, match=r"clip.merges\.txt\.gz cannot be read \(it unpacks to more than"):
        CLIPAdapter(folder)
