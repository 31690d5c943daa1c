"""A segmenter's second, fast region encoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ovseg.cli.lightning import _expand_segment_flags
from ovseg.models import CascadeEncoder, OpenVocabSegmenter, SinglePassEncoder
from ovseg.models.segmenter_folder import write_fast
from ovseg.structures import InputError
from tests import tiny
from tests.stages import refusal


def encoder(segmenter: OpenVocabSegmenter) -> SinglePassEncoder:
    torch.manual_seed(1)
    return SinglePassEncoder(segmenter.clip, 32, 2, "learned", prompt_keys=2)


@torch.no_grad()
def test_the_folder_of_a_segmenter_followed_by_fast(tmp_path: Path) -> None:
    segmenter, folder = tiny.segmenter(tmp_path / "clip"), tmp_path / "segmenter"
    segmenter.save_pretrained(folder)
    with pytest.raises(InputError, match=r"has no fast region encoder; add one with `ovseg bundle .* --fast SINGLE"):
        OpenVocabSegmenter.from_pretrained(folder / "fast")
    fast = encoder(segmenter).eval()
    write_fast(folder, fast, "single.ckpt")

    settings = folder / "segmenter.yaml"
    settings.write_text(settings.read_text() + "fill: zero\n")  # of crops, as in older segmenters
    loaded = OpenVocabSegmenter.from_pretrained(folder / "fast")
    assert isinstance(loaded.region_encoder, SinglePassEncoder)
    assert loaded.region_encoder.settings() == fast.settings()
    image, masks = tiny.images((40, 56))[0], torch.rand(3, 40, 56) > 0.5
    assert torch.equal(loaded.region_encoder([image], [masks])[0].features, fast([image], [masks])[0].features)
    assert (loaded.resize, loaded.ensemble_weight) == (segmenter.resize, segmenter.ensemble_weight)
    plain = OpenVocabSegmenter.from_pretrained(folder)
    assert type(plain.region_encoder) is type(segmenter.region_encoder)

    loaded.save_pretrained(tmp_path / "other")  # the encoder becomes the only one
    again = OpenVocabSegmenter.from_pretrained(tmp_path / "other")
    assert isinstance(again.region_encoder, SinglePassEncoder)
    segmenter.save_pretrained(folder)  # possibly with another CLIP
    with pytest.raises(InputError, match="has no fast region encoder"):
        OpenVocabSegmenter.from_pretrained(folder / "fast")


def test_random_prompt_keys_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They would change the labels from run to run."""
    segmenter, folder = tiny.segmenter(tmp_path / "clip"), tmp_path / "segmenter"
    segmenter.save_pretrained(folder)
    write_fast(folder, encoder(segmenter), "single.ckpt")
    single = {"clip_short_side": 32, "branch_block": 2, "mask": "learned", "prompt_keys": 2}
    factories: list[Any] = [partial(SinglePassEncoder, **single), partial(CascadeEncoder, single_pass=single)]
    for factory in factories:
        OpenVocabSegmenter.from_pretrained(folder / "fast", factory)
    OpenVocabSegmenter.from_pretrained(folder, partial(SinglePassEncoder, mask="learned"))  # starts as a hard mask
    assert "random" not in caplog.text
    for factory in factories:
        caplog.clear()
        OpenVocabSegmenter.from_pretrained(folder, factory)
        assert "has no prompt keys, so those of" in caplog.text


def test_a_fast_encoder_shares_the_clip(tmp_path: Path) -> None:
    segmenter, folder = tiny.segmenter(tmp_path / "clip"), tmp_path / "segmenter"
    segmenter.save_pretrained(folder)
    segmenter.clip.logit_scale.data.add_(1)  # trained together with the image tower, and not used by a segmenter
    write_fast(folder, encoder(segmenter), "single.ckpt")
    next(segmenter.clip.visual.parameters()).data.add_(1e-3)
    with pytest.raises(InputError, match=r"single.ckpt has another CLIP than the segmenter.*--model.train prompt"):
        write_fast(folder, encoder(segmenter), "single.ckpt")


def test_the_flag_of_segment() -> None:
    for words in (
        ["--model", "toy", "--fast"],
        ["--fast", "--model=toy"],
        ["--model.segmenter", "toy/", "--fast"],
        ["--model", "toy/fast", "--fast"],
        ["--model=toy/fast/", "--fast"],
    ):
        expanded = " ".join(_expand_segment_flags(["segment", *words])).replace("=", " ")
        assert expanded.endswith("--model.segmenter toy/fast") and "--fast" not in expanded
    with pytest.raises(InputError, match="--fast needs --model"):
        _expand_segment_flags(["segment", "--images", "a.jpg", "--fast"])


def test_crops_are_not_bundled_as_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("bundle", "--proposer", "toy", "--clip", "toy", "--fast", "toy", "--out", tmp_path / "out")
    assert refusal(capsys, *words) == (
        "--fast toy would encode crops (CropEncoder), which is not faster; give a .ckpt of "
        "conf/regions/single_pass_prompt.yaml, or leave out --fast"
    )
    assert not (tmp_path / "out").exists()
