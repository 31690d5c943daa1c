"""`ovseg import`: released checkpoints, fine-tuned CLIPs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ovseg.cli import main
from ovseg.models import CLIPAdapter, CropEncoder, OpenVocabSegmenter, import_released
from ovseg.models.released.parts import load_clip
from ovseg.structures import InputError
from tests import tiny
from tests.parity.test_released import released_file

QKV = "sem_seg_head.predictor.transformer.decoder.layers.0.self_attn.in_proj_weight"
PROMPTS = "clip_adapter.clip_model.visual.mask_embedding"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released_file("swin", tmp_path_factory.mktemp("released"))


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    return state


def changed(path: Path, folder: Path, change: dict[str, Tensor | None], **entries: Any) -> Path:
    """Return a copy of the released file with some keys replaced or, for None, removed."""
    state = {key: value for key, value in (weights(path) | change).items() if value is not None}
    torch.save({"model": state, **entries}, folder / "changed.pth")
    return folder / "changed.pth"


def same(one: OpenVocabSegmenter, other: OpenVocabSegmenter) -> bool:
    left, right = one.state_dict(), other.state_dict()
    settings = ("mask_threshold", "ensemble_weight", "classifier", "resize")
    return (
        left.keys() == right.keys()
        and all(torch.equal(value, right[key]) for key, value in left.items())
        and all(getattr(one, name) == getattr(other, name) for name in settings)
        and one.proposer.architecture() == other.proposer.architecture()
        and one.region_encoder.settings() == other.region_encoder.settings()
        and one.clip.config["model_cfg"] == other.clip.config["model_cfg"]
    )


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(words)
    return capsys.readouterr().out


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_import_writes_a_segmenter_and_reports_what_it_read(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "segmenter"
    text = run(["import", str(released), "--out", str(out), "--decoder_heads", "4", "--short_side", "64"], capsys)
    imported = import_released(released, decoder_heads=4, resize=(64, 256))
    assert same(imported, OpenVocabSegmenter.from_pretrained(out))
    assert "Swin, window 4, width 16, depths 2-2-2-1; 10 queries, 3 decoder layers, 4 heads" in text
    assert "ViT of 3 layers, width 64, patch 16, 224 pixels; joint width 64" in text
    assert "depth 3, 196 positions" in text and "non-commercial" in text
    assert "ensemble weight 0.7, mask threshold 0.4, fill mean, short side 64, long side at most 256" in text
    constants = ("num_batches_tracked", "relative_position_index", "pixel_mean", "pixel_std", "empty_weight")
    used = sum(value.numel() for key, value in weights(released).items() if not key.endswith(constants))
    assert f"{used:,} used" in text and "empty_weight" in text


def test_from_pretrained_accepts_a_released_file(released: Path) -> None:
    segmenter = OpenVocabSegmenter.from_pretrained(released)
    assert same(segmenter, import_released(released))
    assert (segmenter.mask_threshold, segmenter.ensemble_weight, segmenter.resize) == (0.4, 0.7, (640, 2560))


def test_a_file_without_prompts_gives_a_plain_clip(released: Path, tmp_path: Path) -> None:
    plain = import_released(changed(released, tmp_path, {PROMPTS: None}))
    assert plain.clip.visual.prompt is None
    prompted = import_released(released)
    prompted.clip.visual.prompt = None
    assert same(plain, prompted)


def test_shared_prompts_are_recognised(released: Path, tmp_path: Path) -> None:
    shared = torch.randn(2, 1, 64)
    prompt = import_released(changed(released, tmp_path, {PROMPTS: shared})).clip.visual.prompt
    assert prompt is not None and torch.equal(prompt.mask_embedding, shared)


@pytest.mark.parametrize(
    ("change", "report"),
    [
        ({"backbone.norm1.weight": None}, r"1 missing \(model\.pixel_level_module\..*norms.*\)"),
        ({"sem_seg_head.predictor.more.weight": torch.zeros(1)}, r"1 unexpected \(more\.weight\)"),
        ({"another_head.weight": torch.zeros(1)}, r"weights that a released OVSeg does not have: another_head\.weight"),
        ({"clip_adapter.clip_model.ln_final.weight": torch.zeros(3)}, r"1 of another shape \(clip\.ln_final\.weight\)"),
        ({"clip_adapter.clip_model.visual.conv1.weight": None}, r"lacks keys of a released OVSeg.*conv1"),
        ({"sem_seg_head.predictor.query_embed.weight": torch.zeros(10)}, r"lacks keys of a released OVSeg"),
        ({QKV: torch.zeros(2, 32)}, r"lacks keys of a released OVSeg"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    released: Path, tmp_path: Path, change: dict[str, Any], report: str
) -> None:
    with pytest.raises(InputError, match=rf"changed\.pth.*{report}"):
        import_released(changed(released, tmp_path, change))


def test_damaged_missing_and_other_files_are_refused_and_write_nothing(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half, other, out = tmp_path / "half.pth", tmp_path / "clip.pt", tmp_path / "out"
    half.write_bytes(released.read_bytes()[:100_000])
    torch.save({"state_dict": {"visual.proj": torch.zeros(2, 2)}}, other)
    command = ["import", "--out", str(out), "--path"]
    assert "half.pth is not a readable weights file" in refusal([*command, str(half)], capsys)
    text = refusal([*command, str(tmp_path / "none.pth")], capsys)
    assert "none.pth does not exist; give the path of the .pth file that you downloaded" in text
    text = refusal(["import", "toy", "--out", str(out), "--clip-only", str(tmp_path / "none.pt")], capsys)
    assert "none.pt does not exist; give the path of an open_clip checkpoint, such as epoch_5.pt" in text
    text = refusal([*command, str(other)], capsys)
    assert "clip.pt is not a released OVSeg checkpoint" in text and "--clip-only FILE" in text
    text = refusal(["import", "toy", "--out", str(out), "--clip-only", str(other), "--decoder_heads", "4"], capsys)
    assert "has its own settings" in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "report"),
    [
        (
            ["a.pth", "out", "b.pt", "8"],
            "unexpected b.pt 8: `ovseg import` takes only path and out without a flag; remove it",
        ),
        (
            ["a.pth", "b.pt", "--out", "out"],
            "unexpected b.pt: `ovseg import` takes only path without a flag; remove it",
        ),
        (
            ["b.pt", "--path", "a.pth", "--out=out"],
            "unexpected b.pt: `ovseg import` takes no more arguments without a flag",
        ),
        (["a.pth", "--out", "out", "b.pt"], "unrecognized arguments: b.pt"),
    ],
)
def test_surplus_words_are_refused_as_such(words: list[str], report: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(["import", *words], capsys).startswith(f"ovseg: import: {report}")


def test_files_of_an_earlier_segmenter_are_removed(released: Path, tmp_path: Path) -> None:
    """Its prompts, and the merges of a reduced tokenizer."""
    tiny.segmenter(tmp_path / "old").save_pretrained(tmp_path / "out")
    plain = import_released(changed(released, tmp_path, {PROMPTS: None}))
    plain.save_pretrained(tmp_path / "out")
    again = OpenVocabSegmenter.from_pretrained(tmp_path / "out")
    assert same(again, plain) and again.clip.visual.prompt is None
    assert torch.equal(again.clip.tokenizer(["zyzzyva"]), plain.clip.tokenizer(["zyzzyva"]))


@pytest.mark.parametrize(
    ("content", "report"),
    [
        ({"model": 5}, "holds no state dict"),
        ({"model": {"backbone.weight": "text"}}, "holds no state dict"),
        ({1: torch.zeros(1)}, "holds no state dict"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: dict[Any, Any], report: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"other\.pth is not a released OVSeg checkpoint: it {report}"):
        import_released(tmp_path / "other.pth")


def test_meaningless_settings_are_refused(released: Path) -> None:
    for settings, report in (
        ({"decoder_heads": 7}, "decoder_heads is 7; set a divisor of the decoder's width, 32"),
        ({"decoder_heads": 0}, "decoder_heads is 0"),
        ({"fill": "red"}, "fill is 'red'; choose from mean, zero"),
        ({"resize": (640,)}, r"resize is \(640,\)"),
        ({"ensemble_weight": 2}, "ensemble_weight is 2; give a number from 0 to 1"),
    ):
        with pytest.raises(InputError, match=report):
            import_released(released, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["trainer", "ddp", "bare", "prompts", "compiled", "released"])
def test_a_fine_tuned_clip_is_loaded_into_a_segmenter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """In the format of open_clip's training: its key names, with the mask prompts in the image tower."""
    before = tiny.segmenter(tmp_path / "old")
    before.save_pretrained(tmp_path / "segmenter")
    tuned = tiny.clip(tmp_path / "new", prompt_depth=1, seed=7)
    assert tuned.visual.prompt is not None
    prompts = {"visual.mask_embedding": tuned.visual.prompt.mask_embedding.detach()}
    state = prompts
    if form != "prompts":
        tuned.save_pretrained(tmp_path / "tuned")
        plain = CLIPAdapter(str(tmp_path / "tuned")).clip
        plain.visual = plain.visual.visual  # type: ignore[union-attr, assignment]
        state = plain.state_dict() | prompts
    prefix = {"ddp": "module.", "compiled": "_orig_mod.module.", "released": "clip_adapter.clip_model."}.get(form, "")
    state = {f"{prefix}{key}": value for key, value in state.items()}
    content = {"bare": state, "prompts": state, "released": {"model": state}}.get(
        form, {"epoch": 5, "name": "run", "state_dict": state}
    )
    torch.save(content, tmp_path / "epoch_5.pt")
    words = ["import", str(tmp_path / "segmenter"), "--clip-only", str(tmp_path / "epoch_5.pt"), "--out"]
    assert "mask prompts  depth 1, 16 positions" in run([*words, str(tmp_path / "out")], capsys)
    expected = before.clip if form == "prompts" else tuned
    expected.visual.prompt = tuned.visual.prompt
    after = OpenVocabSegmenter.from_pretrained(tmp_path / "out")
    own = after.clip.state_dict()
    assert own.keys() == expected.state_dict().keys()
    assert all(torch.equal(value, own[key]) for key, value in expected.state_dict().items())
    assert same(after, OpenVocabSegmenter(before.proposer, CropEncoder(expected), resize=(64, 128)))


def test_a_clip_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    clip = tiny.clip(tmp_path / "clip", prompt_depth=2)
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    for number, (state, report) in enumerate(
        [
            ({"visual.proj": torch.zeros(64, 32)}, "missing"),
            ({"visual.mask_embedding": torch.zeros(1, 9, 64)}, "1 of another shape"),
            ({"visual.mask_embedding": torch.zeros(9, 64)}, r"not \(depth, L, C\)"),
            ({"epoch": 3}, "holds no state dict of a CLIP"),
            ({"logit_scale": torch.ones(1)}, "holds no weights of a CLIP"),
            (
                {"state_dict": {"clip.clip.visual.visual.proj": torch.ones(1)}},
                "combine it with proposals using `ovseg bundle`",
            ),
        ]
    ):
        torch.save(state, tmp_path / f"{number}.pt")
        with pytest.raises(InputError, match=rf"{number}\.pt.*{report}|{report}.*{number}\.pt"):
            load_clip(clip, tmp_path / f"{number}.pt")
        assert clip.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[key]) for key, value in clip.state_dict().items())
