"""The shortened context of the text tower, compared with open_clip, and the cache of text features."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from ovseg.models import CLIPAdapter, TextEncoder
from ovseg.models.clip.text_cache import cache_key, load_or_compute
from ovseg.models.clip.text_tower import encode_tokens
from tests import tiny

CONTEXT, END = 16, 99  # END is the highest token
SHORT = [[98, 5, END], [98, 7, 7, 3, END], [98, END]]
FULL = [98, *range(1, 15), END]
NAMES = ["cat", "a very long name of a class", "sofa", "dog, hound"]


def tower(custom: bool, **changes: Any) -> nn.Module:
    """Build a model with larger weights: with open_clip's initial weights, texts hardly differ."""
    torch.manual_seed(0)
    text = {"context_length": CONTEXT, "vocab_size": 100, "width": 64, "heads": 2, "layers": 2, "eos_id": END}
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model: nn.Module = kind(32, tiny.CLIP["vision_cfg"], text | changes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "visual" not in name:
                parameter.normal_(std=0.3)
    return model


def padded(texts: list[list[int]]) -> Tensor:
    return torch.tensor([text + [0] * (CONTEXT - len(text)) for text in texts])


def positions(model: nn.Module) -> list[int]:
    """Record the sequence length of every call of the text transformer."""
    seen: list[int] = []
    getattr(model, "text", model).transformer.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    return seen


@pytest.mark.parametrize("pool", ["argmax", "eos"])
@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize(("texts", "length"), [(SHORT, 5), ([[98, END]], 2), ([*SHORT, FULL], CONTEXT), ([], 1)])
@torch.no_grad()
def test_a_shorter_context_gives_the_same_features(
    custom: bool, pool: str, texts: list[list[int]], length: int
) -> None:
    model = tower(custom, pool_type=pool)
    tokens = padded(texts) if texts else torch.zeros(0, CONTEXT, dtype=torch.long)
    expected = model.encode_text(tokens, normalize=True)
    seen = positions(model)
    torch.testing.assert_close(encode_tokens(model, tokens), expected)
    assert seen == [length]
    assert torch.equal(model.encode_text(tokens, normalize=True), expected)  # the full context is back


@pytest.mark.parametrize(
    "changes",
    [{"no_causal_mask": True}, {"pool_type": "last"}, {"pool_type": "first"}, {"embed_cls": True, "pool_type": "last"}],
    ids=["bidirectional", "pooled at the last position", "pooled at the first", "with a class token"],
)
@torch.no_grad()
def test_towers_that_attend_further_keep_their_context(changes: dict[str, Any]) -> None:
    model = tower(custom=True, **changes)
    seen = positions(model)
    assert torch.equal(encode_tokens(model, padded(SHORT)), model.encode_text(padded(SHORT), normalize=True))
    assert seen[0] >= CONTEXT


@pytest.mark.parametrize("custom", [False, True])
def test_gradients_are_those_of_the_full_context(custom: bool) -> None:
    model = tower(custom)
    weights = {name: weight for name, weight in model.named_parameters() if not name.startswith(("visual", "logit"))}
    weighting = torch.randn(3, 32)
    full, cut = (
        torch.autograd.grad((features * weighting).sum(), list(weights.values()))
        for features in (model.encode_text(padded(SHORT), normalize=True), encode_tokens(model, padded(SHORT)))
    )
    for name, expected, got in zip(weights, full, cut, strict=True):
        torch.testing.assert_close(got, expected, msg=name)


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CLIPAdapter:
    """Return a small CLIP, with an empty cache."""
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))
    return tiny.clip(tmp_path / "clip")


def cached_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.*"))


def key(clip: CLIPAdapter, names: list[str] = NAMES, templates: str = "single") -> str:
    sentences = TextEncoder(clip, templates)._sentences(names)
    return cache_key(clip, clip.tokenizer(sentences).view(len(names), -1, CONTEXT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vocabulary_is_encoded_once(clip: CLIPAdapter, dtype: torch.dtype) -> None:
    clip.to(dtype)
    computed = TextEncoder(clip)(NAMES)
    seen = positions(clip.clip)
    again = TextEncoder(clip)(NAMES)
    assert seen == [] and torch.equal(again, computed) and again.dtype == torch.float32
    assert torch.equal(TextEncoder(clip).encode(NAMES), computed) and seen != []


@pytest.mark.parametrize("word", ["a", "é"])  # one and two tokens, one per byte
def test_names_beyond_the_context_are_truncated_with_a_warning(
    clip: CLIPAdapter, caplog: pytest.LogCaptureFixture, word: str
) -> None:
    most = (CONTEXT - 2) // len(word.encode())  # without start and end
    fits, longer, longest = (" ".join([word] * count) for count in (most, most + 1, most + 2))
    TextEncoder(clip, "bare")([fits])
    assert not caplog.messages
    features = TextEncoder(clip, "bare")(["cat", longer, fits, longest])
    assert caplog.messages == [f"truncated to CLIP's context of 16 tokens: {longer!r}, {longest!r}"]
    torch.testing.assert_close(features[[1, 3]], features[[2, 2]])

    caplog.clear()
    TextEncoder(clip)([f"{number} {'a' * 99}" for number in range(7)])
    (message,) = caplog.messages
    assert message.endswith(f"'4 {'a' * 57}…' and 2 more")


def test_memoised_names_are_not_cached_on_disk(clip: CLIPAdapter, tmp_path: Path) -> None:
    encoder = TextEncoder(clip)
    torch.testing.assert_close(encoder.cached(NAMES), encoder.encode(NAMES))
    assert cached_files(tmp_path) == []


def test_the_key_depends_on_everything_that_changes_features(clip: CLIPAdapter, tmp_path: Path) -> None:
    keys = [
        key(clip),
        key(clip, NAMES[::-1]),
        key(clip, NAMES[:3]),
        key(clip, templates="bare"),
        key(clip, NAMES[:1] * 14),
        key(clip, NAMES[:1], "vild"),
        key(tiny.clip(tmp_path / "other", seed=1)),
    ]
    torch.manual_seed(0)
    heads = {"text_cfg": tiny.CLIP["text_cfg"] | {"heads": 4}}  # not visible in the weights
    keys.append(key(CLIPAdapter(tiny.clip_folder(tmp_path / "heads", **heads)).eval()))
    assert len(set(keys)) == len(keys)


def test_the_key_does_not_depend_on_the_image_side(clip: CLIPAdapter, tmp_path: Path) -> None:
    before = key(clip)
    clip.visual.add_prompt(2)
    for parameter in (*clip.visual.parameters(), clip.logit_scale):
        parameter.data.add_(1)
    clip.save_pretrained(tmp_path / "adapted")
    assert key(clip) == before == key(CLIPAdapter(str(tmp_path / "adapted")).eval())


def test_features_are_recomputed_after_training(clip: CLIPAdapter) -> None:
    encoder = TextEncoder(clip)
    before = encoder(NAMES)
    optimizer = torch.optim.SGD(clip.clip.ln_final.parameters(), lr=0.5)
    clip.encode_text(NAMES)[:, 0].sum().backward()
    optimizer.step()
    after = encoder(NAMES)
    assert not torch.allclose(after, before) and torch.equal(after, encoder.encode(NAMES))
    clip.clip.ln_final.bias.data[0] += 0.5  # unnoticed by autograd's version counter
    assert torch.equal(encoder(NAMES), encoder.encode(NAMES)) and not torch.equal(encoder(NAMES), after)


def flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: content[:-40], lambda content: content[:20], flip, lambda content: bytes(99)],
    ids=["empty", "cut in the values", "cut in the header", "one bit", "zeros"],
)
def test_a_damaged_file_is_replaced(clip: CLIPAdapter, tmp_path: Path, damage: Any) -> None:
    computed = TextEncoder(clip)(NAMES)
    (file,) = cached_files(tmp_path)
    sound = file.read_bytes()
    file.write_bytes(damage(sound))
    assert torch.equal(TextEncoder(clip)(NAMES), computed)
    assert cached_files(tmp_path) == [file] and file.read_bytes() == sound


def test_concurrent_writers_leave_one_intact_file(clip: CLIPAdapter, tmp_path: Path) -> None:
    features = torch.randn(500, 512)

    def one(_: int) -> Tensor:
        for file in cached_files(tmp_path)[:1]:
            file.unlink(missing_ok=True)  # makes writers and readers collide
        return load_or_compute("key", lambda: features)

    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(result, features) for result in pool.map(one, range(100)))
    load_or_compute("key", lambda: features)
    assert [file.name for file in cached_files(tmp_path)] == ["key.safetensors"]


def test_an_unwritable_cache_is_not_used(
    clip: CLIPAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    encoder = TextEncoder(clip)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(encoder(NAMES), encoder.encode(NAMES))
    assert f"{tmp_path / 'cache'}" in caplog.text and "set OVSEG_CACHE" in caplog.text

    monkeypatch.delenv("OVSEG_CACHE")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    torch.testing.assert_close(encoder(NAMES), encoder.encode(NAMES))


def test_threads_can_encode_concurrently(tmp_path: Path) -> None:
    clip = tiny.clip(tmp_path)
    texts = ["cat", "a photo of a red star", "sand and water near a moon"]
    with torch.no_grad():
        expected = [clip.encode_text([text]) for text in texts]
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda index: clip.encode_text([texts[index % 3]]), range(60)))
    for index, features in enumerate(results):
        torch.testing.assert_close(features, expected[index % 3])
