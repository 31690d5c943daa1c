"""Model files from strangers: wherever they are loaded, they cannot run code or request downloads."""

from __future__ import annotations

import builtins
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from huggingface_hub import constants
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from ovseg.models import CLIPAdapter, OpenVocabSegmenter
from ovseg.models.clip.config import CONFIG, check
from ovseg.structures import InputError
from ovseg.tasks import AdapterTask
from tests import tiny
from tests.models.clips import PLAIN, same_features
from tests.stages import CONF, refusal

WORDS = {word: index for index, word in enumerate(["<unk>", "<pad>", "a", "cat", "two", "red", "sofas"])}
TEXT: dict[str, Any] = PLAIN["text_cfg"] | {
    "hf_tokenizer_name": "somebody/something",
    "vocab_size": len(WORDS),
    "pool_type": "last",
}
CODE = {"auto_map": {"AutoConfig": "payload.Config", "AutoTokenizer": ["payload.Words", "payload.Words"]}}
PLACES = ["segmenter", "adapter", "checkpoint", "local-dir", "hub"]


def change(file: Path, **values: Any) -> None:
    """Set values in a JSON file, which is created if necessary."""
    before = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(before | values))


def clip_with_tokenizer(folder: Path, **text: Any) -> Path:
    """Write a CLIP without weights and with a tokenizer from transformers."""
    tiny.clip_folder(folder, text_cfg=TEXT | text, custom_text=True)
    (folder / "merges.txt.gz").unlink()
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a CLIP with a Python file that creates a marker when it runs, and the marker; every prompt gets a yes."""
    folder, marker = tmp_path / "armed", tmp_path / "marker"
    CLIPAdapter(str(clip_with_tokenizer(tmp_path / "new"))).save_pretrained(folder)
    lines = [
        "import pathlib, transformers",
        f"pathlib.Path({str(marker)!r}).touch()",
        "class Words(transformers.PreTrainedTokenizerFast): pass",
        "class Config(transformers.BertConfig): pass",
    ]
    (folder / "payload.py").write_text("\n".join(lines))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return folder, marker


def checkpoint(folder: Path, file: Path, **files: str) -> Path:
    """Build a training checkpoint from a CLIP folder by hand; `files` are added to its tokenizer."""
    contents = {
        path.name: path.read_bytes().decode("latin-1")
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".py")
    }
    architecture = {"config": json.loads(contents.pop(CONFIG)), "merges": None, "tokenizer": contents | files}
    torch.save({"state_dict": {}, "architectures": {"clip": architecture}}, file)
    return file


def load(folder: Path, place: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load the CLIP of a folder from one of the `PLACES` where files from strangers may be."""
    if place == "segmenter":
        tiny.segmenter(root / "tiny").save_pretrained(root / "segmenter")
        shutil.copytree(folder, root / "segmenter" / "clip", dirs_exist_ok=True)
        (root / "segmenter" / "clip" / "merges.txt.gz").unlink()
        return OpenVocabSegmenter.from_pretrained(root / "segmenter")
    if place == "checkpoint":
        return CLIPAdapter(str(checkpoint(folder, root / "last.ckpt")))
    if place == "hub":
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "hub"))
        repository = root / "hub" / "models--somebody--something"
        shutil.copytree(folder, repository / "snapshots" / "abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        return CLIPAdapter("hf-hub:somebody/something")
    return AdapterTask(CLIPAdapter(f"local-dir:{folder}" if place == "local-dir" else str(folder), prompt_depth=1))


@pytest.mark.parametrize("place", PLACES)
def test_code_of_a_tokenizer_is_refused_and_never_run(
    armed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """It would run because open_clip passes `tokenizer_kwargs` to transformers unchecked."""
    folder, marker = armed
    change(folder / "tokenizer_config.json", **CODE)
    text = TEXT | {"tokenizer_kwargs": {"trust_remote_code": True}}
    change(folder / CONFIG, model_cfg=PLAIN | {"text_cfg": text, "custom_text": True})
    with pytest.raises(InputError, match=r"trust_remote_code|the file 'payload\.py'") as caught:
        load(folder, place, tmp_path, monkeypatch)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()  # proves that the payload works


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("tokenizer", r"the tokenizer_config\.json of .* asks to run code \(auto_map\)"),
        (
            "class",
            r"the tokenizer_config\.json of .* has the tokenizer_class 'AutoConfigFast', which is not a tokenizer",
        ),
        ("elsewhere", "the tokenizer of CLIP .* could not be loaded"),
        (
            "text tower",
            "the text tower 'somebody/something', and files may not request downloads|has model_type 'something'",
        ),
        ("model", ""),  # the tokenizer ignores it, so loading succeeds
    ],
)
def test_nobody_is_prompted_to_run_code(
    armed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, way: str, reason: str
) -> None:
    """Without `tokenizer_kwargs`, transformers would prompt on the terminal."""
    folder, marker = armed
    if way == "tokenizer":
        change(folder / "tokenizer_config.json", tokenizer_class=None, **CODE)
    elif way == "elsewhere":
        shutil.copytree(folder, tmp_path / "elsewhere")
        change(tmp_path / "elsewhere" / "tokenizer_config.json", tokenizer_class=None, **CODE)
        change(folder / CONFIG, tokenizer=f"local-dir:{tmp_path / 'elsewhere'}")
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer.json").unlink()
    else:
        change(folder / "config.json", model_type="something", **CODE)
        change(folder / "tokenizer_config.json", tokenizer_class="AutoConfigFast" if way == "class" else None)
    if way == "text tower":
        change(folder / CONFIG, model_cfg=PLAIN | {"text_cfg": TEXT | {"hf_model_name": "somebody/something"}})
    if place == "checkpoint":
        (folder / "payload.py").unlink()  # the file alone would be refused
    if reason:
        with pytest.raises(InputError, match=reason) as caught:
            load(folder, place, tmp_path, monkeypatch)
        assert "\n" not in str(caught.value)
    elif place == "checkpoint":  # it lacks weights, which is noticed after the tokenizer is loaded
        with pytest.raises(InputError, match="does not fit"):
            load(folder, place, tmp_path, monkeypatch)
    else:
        load(folder, place, tmp_path, monkeypatch)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["payload.py", "../x.json", CONFIG, "mask_prompt.safetensors", "a/b.txt", ".json"])
def test_a_tokenizer_in_a_checkpoint_consists_of_data(tmp_path: Path, name: str) -> None:
    file = checkpoint(clip_with_tokenizer(tmp_path / "new"), tmp_path / "last.ckpt", **{name: "{}"})
    with pytest.raises(InputError, match=rf"has the file '{name}', which no tokenizer needs; remove it"):
        CLIPAdapter(str(file))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"vision_cfg": {"timm_model_name": "hf-hub:somebody/tower"}},
            "names the image tower 'hf-hub:somebody/tower'",
        ),
        (
            {"vision_cfg": {"timm_model_name": "local-dir:/tmp"}},
            "names the image tower 'local-dir:/tmp', which timm does not",
        ),
        (
            {"text_cfg": TEXT | {"hf_model_name": "bert-base-uncased"}},
            "names the text tower 'bert-base-uncased', and files",
        ),
        ({"text_cfg": TEXT | {"code": "x"}}, "sets 'code' in text_cfg, which is not part of a CLIP's shape; remove it"),
        ({"text_cfg": TEXT | {"tokenizer_kwargs": {"use_fast": False}}}, "sets 'use_fast' in tokenizer_kwargs"),
        ({"text_cfg": None}, "has no text_cfg; fetch it again"),
        ({"output_dict": True}, "sets 'output_dict' in model_cfg"),
    ],
)
def test_values_beyond_the_shape_of_a_clip_are_refused(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    folder = clip_with_tokenizer(tmp_path / "new")
    change(folder / CONFIG, model_cfg=PLAIN | {"text_cfg": TEXT} | values)
    with pytest.raises(InputError, match=rf"^[^\n]*new {reason}[^\n]*$"):
        CLIPAdapter(str(folder))


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="needs sentencepiece to be missing")
def test_a_tokenizer_that_needs_another_library_names_it(tmp_path: Path) -> None:
    folder = clip_with_tokenizer(tmp_path / "new")
    change(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    with pytest.raises(InputError, match=r"the tokenizer of CLIP .* could not be loaded \(.*SentencePiece"):
        CLIPAdapter(str(folder))


def test_the_configs_of_open_clip_are_accepted() -> None:
    for name in open_clip.list_models():
        check(open_clip.get_model_config(name), "model_cfg", name)


@torch.no_grad()
@pytest.mark.parametrize("place", ["folder", "checkpoint"])
def test_a_text_tower_from_transformers_is_saved_with_its_model(tmp_path: Path, place: str) -> None:
    """Rebuilding it contacts no hub; only the shape is kept of its config."""
    folder = clip_with_tokenizer(tmp_path / "new", hf_model_name="somebody/something", hf_proj_type="linear")
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    tower = BertConfig(vocab_size=len(WORDS), **sizes)
    (folder / "text_tower.json").write_text(json.dumps(tower.to_dict() | CODE | {"attn_implementation": "a/kernel"}))
    adapter = CLIPAdapter(str(folder), prompt_depth=1).eval()
    hf: Any = adapter.clip.text
    assert isinstance(hf.transformer, BertModel)
    if place == "folder":
        adapter.save_pretrained(tmp_path / "saved")
        again = CLIPAdapter(str(tmp_path / "saved"))
        assert "kernel" not in (tmp_path / "saved" / "text_tower.json").read_text()
    else:
        state = {f"clip.{key}": value for key, value in adapter.state_dict().items()}
        torch.save({"state_dict": state, "architectures": {"clip": adapter.architecture()}}, tmp_path / "last.ckpt")
        again = CLIPAdapter(str(tmp_path / "last.ckpt"))
    same_features(adapter, again)
    tokens = adapter.tokenizer(["two red sofas"])
    plain = hf.transformer(input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state
    pooled = (plain * (tokens != 0)[..., None]).sum(1) / (tokens != 0).sum()
    expected = torch.nn.functional.normalize(hf.proj(pooled), dim=-1)
    torch.testing.assert_close(again.encode_text(["two red sofas"]), expected)


def test_a_command_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.segmenter(tmp_path / "tiny").save_pretrained(tmp_path / "saved")
    model = PLAIN | {"text_cfg": TEXT | {"tokenizer_kwargs": {"trust_remote_code": True}}}
    change(tmp_path / "saved" / "clip" / CONFIG, model_cfg=model)
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    words = ["--images", tmp_path / "photo.png", "--vocabulary", "cat", "--out", tmp_path / "out"]
    assert "sets 'trust_remote_code' in tokenizer_kwargs" in refusal(
        capsys, "segment", "--model", tmp_path / "saved", *words
    )
    fit = ["fit", "--config", CONF / "toy" / "adapter.yaml", "--data.val", "null"]
    fit += ["--trainer.default_root_dir", tmp_path / "out"]
    assert "sets 'trust_remote_code' in tokenizer_kwargs" in refusal(
        capsys, *fit, "--model.clip.model", tmp_path / "saved" / "clip"
    )
    assert not (tmp_path / "out").exists()
