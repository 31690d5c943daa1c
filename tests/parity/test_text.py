"""Text features compared with the released implementation (golden g5)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ovseg.models import PROMPT_TEMPLATES, CLIPAdapter, TextEncoder
from ovseg.structures import InputError
from tests.parity import goldens

G5, DETAILS = goldens.arrays("g5_text"), goldens.details("g5_text")
NAMES = DETAILS["class_names"]
MODEL = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPAdapter:
    """Load the golden text tower from a model folder."""
    folder: Path = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    adapter = CLIPAdapter(str(folder)).eval()
    weights = goldens.state("g5_text_state")
    embedding = torch.zeros(49408, 128)
    embedding[weights.pop("token_ids")] = weights.pop("token_rows")
    weights |= {"token_embedding.weight": embedding, "logit_scale": weights["logit_scale"][0]}
    missing, unexpected = adapter.clip.load_state_dict(weights, strict=False)
    assert not unexpected and all(key.startswith("visual.") for key in missing)
    return adapter


@pytest.mark.parametrize(("ours", "golden"), [("vild", "vild"), ("imagenet", "imagenet"), ("single", "predefined")])
def test_templates_equal_those_of_the_release(ours: str, golden: str) -> None:
    assert list(PROMPT_TEMPLATES[ours]) == DETAILS[golden]


@pytest.mark.parametrize(
    ("templates", "golden"), [("vild", "vild"), ("imagenet", "imagenet"), ("single", "predefined")]
)
def test_features_equal_the_release(clip: CLIPAdapter, templates: str, golden: str) -> None:
    goldens.close("text: features", TextEncoder(clip, templates)(NAMES), G5[f"emb_{golden}"])


def test_features_from_the_cache_equal_the_release(clip: CLIPAdapter) -> None:
    encoder = TextEncoder(clip, "vild")
    computed = encoder(NAMES)
    encoder.encode = None  # type: ignore[assignment, method-assign]
    assert torch.equal(encoder(NAMES), computed)
    goldens.close("text: features", computed, G5["emb_vild"])


def test_tokens_equal_the_release_exactly(clip: CLIPAdapter) -> None:
    sentences = [PROMPT_TEMPLATES["vild"][0].format(name) for name in NAMES]
    assert torch.equal(clip.tokenizer(sentences), G5["tokens_t0"])
    assert torch.equal(clip.tokenizer([template.format("cat") for template in DETAILS["vild"]]), G5["tokens_vild_cat"])


def test_similarities_equal_the_release(clip: CLIPAdapter) -> None:
    """The logits are 100 · cosine similarity, with the no-object row last."""
    text = TextEncoder(clip, "vild")(NAMES)
    rows = torch.cat([text, F.normalize(G5["non_object_embedding"], dim=-1)])
    goldens.close("text: features", rows, G5["adapter_text_features"])
    logits = 100 * F.normalize(G5["img_feat_raw"], dim=-1) @ rows.T
    goldens.close("text: similarities (up to 100)", logits, G5["sim_logits"], 1e-4, 2e-3)


def test_the_batch_size_has_no_effect(clip: CLIPAdapter) -> None:
    encoder = TextEncoder(clip, "vild")
    torch.testing.assert_close(encoder.encode(NAMES, batch_size=5), encoder.encode(NAMES))


def test_a_name_with_braces_is_inserted_unchanged(clip: CLIPAdapter) -> None:
    bare = TextEncoder(clip, "bare")(["{a}, {}"])
    torch.testing.assert_close(bare, clip.encode_text(["{a}, {}"]))


@pytest.mark.parametrize("templates", ["vlid", ["a photo"], []])
def test_unusable_templates_are_refused(clip: CLIPAdapter, templates: str | list[str]) -> None:
    with pytest.raises(InputError, match="template"):
        TextEncoder(clip, templates)
