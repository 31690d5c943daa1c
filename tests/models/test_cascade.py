"""One pass for all regions, crops for the small and the undecided ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from ovseg.models import CascadeEncoder, CLIPAdapter, CropEncoder, OpenVocabSegmenter, SinglePassEncoder
from ovseg.structures import InputError, RegionFeatures
from ovseg.tasks import AdapterTask, MiningTask
from tests import tiny
from tests.stages import CONF, ovseg, refusal, write

IMAGES = tiny.images((64, 64), (64, 96))
SINGLE: dict[str, Any] = {"clip_short_side": 64}  # 8 × 8 patches of 8 pixels for the first image, 8 × 12 for the second
NAMES = ["cat", "red sky", "grass"]


def masks_of(image: Tensor) -> Tensor:
    """Six masks of 1, 0, 64 or 96, 4, 16 and 2 patches."""
    masks = torch.zeros((6, *image.shape[1:]), dtype=torch.bool)
    masks[0, :3, :5] = True
    masks[2] = True
    masks[3, 8:24, 16:32] = True
    masks[4, 32:64, 32:64] = True
    masks[5, 40:48, 8:24] = True
    return masks


MASKS = [masks_of(image) for image in IMAGES]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPAdapter:
    return tiny.segmenter(tmp_path_factory.mktemp("clip")).clip


def cascade(clip: CLIPAdapter, **options: Any) -> CascadeEncoder:
    return CascadeEncoder(clip, SINGLE, **options)


def texts(*features: Tensor) -> tuple[Tensor, Tensor]:
    """Return text features of one phrase per class."""
    return torch.stack(features), torch.arange(len(features))


@torch.no_grad()
def cropped(encoder: CascadeEncoder, image: int = 0) -> list[int]:
    """Return the regions of an image whose features are not those of the single pass."""
    plain = encoder.single_pass(IMAGES, MASKS)[image].features
    rows: list[int] = (encoder(IMAGES, MASKS)[image].features != plain).any(dim=1).nonzero()[:, 0].tolist()
    return rows


def equal(one: Sequence[RegionFeatures], other: Sequence[RegionFeatures]) -> bool:
    return all(
        torch.equal(a.features, b.features) and torch.equal(a.valid, b.valid) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("named", [False, True])
@torch.no_grad()
def test_both_ends_equal_one_encoder_to_the_bit(clip: CLIPAdapter, named: bool) -> None:
    ends = {0: SinglePassEncoder(clip, **SINGLE), 6: CropEncoder(clip, fill="zero"), 99: CropEncoder(clip, fill="zero")}
    assert not equal(ends[0](IMAGES, MASKS), ends[6](IMAGES, MASKS))
    for budget, end in ends.items():
        encoder = cascade(clip, crops={"fill": "zero"}, budget=budget)
        if named:
            encoder.set_text_features(clip.encode_text(NAMES), torch.arange(3))
        assert equal(encoder(IMAGES, MASKS), end(IMAGES, MASKS))


@torch.no_grad()
def test_regions_get_the_features_of_one_of_both(clip: CLIPAdapter) -> None:
    encoder = cascade(clip, budget=2)
    one, other = encoder.single_pass(IMAGES, MASKS), encoder.crops(IMAGES, MASKS)
    for index, (features, valid) in enumerate(encoder(IMAGES, MASKS)):
        assert cropped(encoder, index) == [0, 5]
        rows = [0, 5]
        torch.testing.assert_close(features[rows], other[index].features[rows])
        assert torch.equal(features[2:5], one[index].features[2:5])
        assert valid.tolist() == [True, False, True, True, True, True] and not features[1].any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"budget": 1}, [0]),
        ({"budget": 3}, [0, 3, 5]),
        ({"min_patches": 4}, [0, 5]),
        ({"min_patches": 5}, [0, 3, 5]),
        ({"min_patches": 5, "budget": 2}, [0, 5]),
        ({"min_patches": 1}, []),
        ({"min_patches": 1000}, [0, 2, 3, 4, 5]),
    ],
    ids=str,
)
def test_the_smallest_come_first(clip: CLIPAdapter, options: dict[str, Any], expected: list[int]) -> None:
    """Without a vocabulary; the empty mask never gets a crop."""
    assert cropped(cascade(clip, **options)) == expected


def test_of_regions_with_as_many_patches_the_smaller_come_first(clip: CLIPAdapter) -> None:
    masks = torch.zeros((3, 64, 64), dtype=torch.bool)
    for row, side in enumerate((7, 3, 5)):
        masks[row, :side, :side] = True
    encoder = cascade(clip, budget=2)
    encoded = encoder.single_pass(IMAGES[:1], [masks])[0]
    assert encoder._choose(IMAGES[0], masks, encoded).tolist() == [1, 2]


@torch.no_grad()
def margins_of(encoder: CascadeEncoder) -> list[float]:
    """Set a vocabulary of three classes, one with two synonyms; return the margins of the first image's regions."""
    regions = encoder.single_pass(IMAGES, MASKS)[0].features
    generator = torch.Generator().manual_seed(3)
    phrases = F.normalize(torch.randn(4, tiny.DIM, generator=generator), dim=1)
    phrases[1] = F.normalize(phrases[0] + 0.01 * torch.randn(tiny.DIM, generator=generator), dim=0)
    encoder.set_text_features(phrases, torch.tensor([0, 0, 1, 2]))
    cosines = (regions @ phrases.T).tolist()
    ranked = [sorted((max(row[0], row[1]), row[2], row[3]), reverse=True) for row in cosines]
    return [best - second for best, second, _ in ranked]


def test_the_undecided_come_first(clip: CLIPAdapter) -> None:
    """The margin is that between the two best classes; synonyms of one class do not compete."""
    encoder = cascade(clip)
    margins = margins_of(encoder)
    order = sorted((row for row in range(6) if row != 1), key=margins.__getitem__)
    assert order != sorted(order, key=MASKS[0].flatten(1).sum(1).tolist().__getitem__)
    for budget in range(6):
        encoder.budget = budget
        assert cropped(encoder) == sorted(order[:budget])
    encoder.budget = 20
    between = (margins[order[1]] + margins[order[2]]) / 2
    encoder.min_margin = between
    assert cropped(encoder) == sorted(order[:2])
    encoder.budget = 1
    assert cropped(encoder) == order[:1]


def test_small_or_undecided_regions_qualify(clip: CLIPAdapter) -> None:
    """Those furthest below their threshold come first."""
    encoder = cascade(clip)
    margins = margins_of(encoder)
    undecided = min((2, 3, 4), key=margins.__getitem__)
    encoder.min_margin, encoder.min_patches = margins[undecided] * 1.25, 3
    qualify = {0, 5, undecided} | {row for row in (2, 3, 4) if margins[row] < encoder.min_margin}
    assert cropped(encoder) == sorted(qualify)
    shares = {0: 1 / 3, 5: 2 / 3, undecided: 1 / 1.25}
    for row in (0, 5):
        shares[row] = min(shares[row], margins[row] / encoder.min_margin)
    for budget in (1, 2):
        encoder.budget = budget
        assert cropped(encoder) == sorted(sorted(shares, key=shares.__getitem__)[:budget])


def test_a_single_class_leaves_nothing_undecided(clip: CLIPAdapter) -> None:
    encoder = cascade(clip, min_margin=2.0)
    encoder.set_text_features(*texts(F.normalize(torch.ones(tiny.DIM), dim=0)))
    assert cropped(encoder) == []
    encoder.min_margin, encoder.budget = None, 1
    assert cropped(encoder) == [0]  # the smallest


@torch.no_grad()
def test_permuting_regions_permutes_features(clip: CLIPAdapter) -> None:
    encoder = cascade(clip, budget=2)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    for choose in (lambda: None, lambda: margins_of(encoder)):
        choose()
        before, after = encoder(IMAGES, MASKS), encoder(IMAGES, [masks[order] for masks in MASKS])
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(one.features[order], other.features)
            assert torch.equal(one.valid[order], other.valid)


@torch.no_grad()
def test_images_without_regions(clip: CLIPAdapter) -> None:
    encoder, nothing = cascade(clip), torch.zeros((0, 64, 64), dtype=torch.bool)
    assert encoder([], []) == []
    first, second = encoder([IMAGES[0], *IMAGES[1:]], [nothing, MASKS[1]])
    assert first.features.shape == (0, tiny.DIM) and first.valid.shape == (0,)
    torch.testing.assert_close(second.features, encoder(IMAGES[1:], MASKS[1:])[0].features)
    (alone,) = encoder(IMAGES[:1], [torch.zeros((2, 64, 64), dtype=torch.bool)])
    assert not alone.valid.any() and not alone.features.any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget": -1}, "budget is -1; give the largest number of crops per image"),
        ({"min_patches": 0}, "min_patches is 0; give at least 1"),
        ({"min_margin": 0.0}, r"min_margin is 0\.0; give a cosine similarity above 0"),
        ({"min_margin": float("nan")}, "min_margin is nan; give a cosine similarity above 0"),
        (
            {"single_pass": {"clip_short": 64}},
            "single_pass has no option 'clip_short'; a SinglePassEncoder takes clip_",
        ),
        ({"single_pass": {"clip_short_side": "64"}}, "single_pass has an option of the wrong type"),
        ({"single_pass": {"mask": "blurred"}}, "mask is 'blurred'; choose from hard, soft, learned"),
        ({"crops": {"clip": 1}}, "crops has no option 'clip'; a CropEncoder takes fill, "),
        ({"crops": {"fill": "red"}}, "fill is 'red'; choose from"),
        ({"crop_clip": {"depth": 1}}, "crop_clip has no option 'depth'; give a checkpoint or the folder of a CLIP"),
    ],
    ids=str,
)
def test_options_are_checked(clip: CLIPAdapter, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        CascadeEncoder(clip, **options)


def test_a_margin_needs_a_vocabulary(tmp_path: Path) -> None:
    """Which mining does not have; there, only sizes decide."""
    clip = tiny.clip(tmp_path)
    with pytest.raises(InputError, match="min_margin compares the two best classes, but no vocabulary is set"):
        cascade(clip, min_margin=0.1)(IMAGES, MASKS)
    task = MiningTask(clip, region_encoder=partial(CascadeEncoder, single_pass=SINGLE, min_patches=4))
    before = task.settings()
    task.region_encoder.single_pass.clip_short_side = 32  # type: ignore[union-attr]
    assert before != task.settings()


def test_options_of_the_crops_select_proposals(clip: CLIPAdapter) -> None:
    objectness = torch.tensor([0.1, 0.9, 0.5])
    assert cascade(clip).selects(objectness).all()
    assert cascade(clip, crops={"min_objectness": 0.5}).selects(objectness).tolist() == [False, True, True]


def test_training_is_refused(clip: CLIPAdapter) -> None:
    with pytest.raises(InputError, match="CascadeEncoder cannot be trained as a whole; train a SinglePassEncoder"):
        cascade(clip).encode_batch(None)  # type: ignore[arg-type]


# Another CLIP for the crops


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """Save a CLIP whose text tower is that of `tiny.clip`, and whose image tower is not."""

    def save(prompt_depth: int | None = 1, shared: bool = False, change: str = "visual.") -> str:
        adapted = tiny.clip(tmp_path / "config")
        if prompt_depth:
            adapted.visual.add_prompt(prompt_depth, shared)
        with torch.no_grad():
            for key, value in adapted.clip.named_parameters():
                if key.startswith(change):
                    value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(5)))
        adapted.save_pretrained(tmp_path / "adapted")
        return str(tmp_path / "adapted")

    return save


@pytest.mark.parametrize(("depth", "shared"), [(1, False), (2, True), (None, False)])
@torch.no_grad()
def test_crops_may_have_another_clip(
    depth: int | None, shared: bool, folder: Callable[..., str], tmp_path: Path
) -> None:
    """A saved segmenter has both, and the text tower once."""
    plain, source = tiny.segmenter(tmp_path / "plain"), folder(depth, shared)
    clip = tiny.clip(tmp_path / "clip")
    encoder = cascade(clip, crop_clip=source).eval()
    adapted = CLIPAdapter(source).eval()
    assert equal(encoder.single_pass(IMAGES, MASKS), SinglePassEncoder(clip, **SINGLE)(IMAGES, MASKS))
    assert equal(encoder(IMAGES, MASKS), CropEncoder(adapted)(IMAGES, MASKS))
    assert not equal(encoder(IMAGES, MASKS), CropEncoder(clip)(IMAGES, MASKS))
    assert encoder.crops.clip.clip.token_embedding is clip.clip.token_embedding
    OpenVocabSegmenter(plain.proposer, encoder).save_pretrained(tmp_path / "saved")
    (tmp_path / "adapted").rename(tmp_path / "moved")
    again = OpenVocabSegmenter.from_pretrained(tmp_path / "saved").region_encoder
    assert isinstance(again, CascadeEncoder) and again.settings() == encoder.settings()
    assert equal(again(IMAGES, MASKS), encoder(IMAGES, MASKS))
    assert all(key.startswith("crops.clip.clip.visual.") for key in encoder.own_weights())


def test_a_clip_of_another_space_is_refused(folder: Callable[..., str], tmp_path: Path) -> None:
    clip = tiny.clip(tmp_path / "clip")
    with pytest.raises(InputError, match="adapted has another text tower than the CLIP of the single pass"):
        cascade(clip, crop_clip=folder(change="transformer."))
    for changes, sentence in (
        ({"embed_dim": 64}, "embeds regions in 64 dimensions, but the CLIP of the single pass in 32; use a CLIP that"),
        ({"text_cfg": {**tiny.CLIP["text_cfg"], "layers": 2}}, "has another text tower"),
        ({"vision_cfg": {**tiny.CLIP["vision_cfg"], "layers": 3}}, "has an image tower of another architecture"),
        ({"quick_gelu": True}, "has an image tower of another architecture"),
    ):
        torch.manual_seed(0)
        other = CLIPAdapter(tiny.clip_folder(tmp_path / "other", **changes))
        if "image tower" in sentence:
            other.clip.load_state_dict(
                {k: v for k, v in clip.clip.state_dict().items() if not k.startswith("visual.")}, strict=False
            )
        other.save_pretrained(tmp_path / "written")
        with pytest.raises(InputError, match=sentence):
            cascade(clip, crop_clip=str(tmp_path / "written"))


# In a segmenter


def test_a_segmenter_is_saved_with_its_cascade(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = tiny.segmenter(tmp_path / "clip")
    single = {**SINGLE, "prompt_keys": 2}
    encoder = CascadeEncoder(plain.clip, single, {"fill": "zero"}, None, 3, 0.01, 2)
    nn.init.normal_(encoder.single_pass.prompt_keys)  # type: ignore[arg-type]
    model = OpenVocabSegmenter(plain.proposer, encoder).eval()
    model.save_pretrained(tmp_path / "saved")
    again = OpenVocabSegmenter.from_pretrained(tmp_path / "saved")
    assert again.region_encoder.settings() == encoder.settings()
    assert yaml.safe_load((tmp_path / "saved" / "segmenter.yaml").read_text())["region_encoder"]["class_path"] == (
        "ovseg.models.CascadeEncoder"
    )
    for segmenter in (model, again):
        segmenter.set_vocabulary(NAMES)
    assert torch.equal(model.score_proposals(IMAGES)[0][0], again.score_proposals(IMAGES)[0][0])
    OpenVocabSegmenter.from_pretrained(tmp_path / "saved", partial(CascadeEncoder, single_pass=single, budget=5))
    assert "budget 5, not 2" in caplog.text


def test_a_cascade_continues_with_the_saved_single_pass(tmp_path: Path) -> None:
    """Its trained weights and its options, except those that are given."""
    plain = tiny.segmenter(tmp_path / "clip")
    saved = SinglePassEncoder(plain.clip, 64, mask="soft", prompt_keys=2)
    nn.init.normal_(saved.prompt_keys)  # type: ignore[arg-type]
    OpenVocabSegmenter(plain.proposer, saved).save_pretrained(tmp_path / "saved")
    encoder = OpenVocabSegmenter.from_pretrained(tmp_path / "saved", partial(CascadeEncoder, budget=0)).region_encoder
    assert equal(encoder(IMAGES, MASKS), saved(IMAGES, MASKS))
    assert "single_pass.prompt_keys" in encoder.own_weights()
    factory = partial(CascadeEncoder, single_pass={"mask": "hard"}, budget=0)
    encoder = OpenVocabSegmenter.from_pretrained(tmp_path / "saved", factory).region_encoder
    assert encoder.settings()["single_pass"] == saved.settings() | {"mask": "hard"}
    assert torch.equal(encoder.single_pass.prompt_keys, saved.prompt_keys)  # type: ignore[union-attr, arg-type]
    factory = partial(CascadeEncoder, single_pass={"prompt_keys": 1})
    with pytest.raises(
        InputError, match="the saved encoder does not fit these settings of SinglePassEncoder: prompt_keys 1, not 2"
    ):
        OpenVocabSegmenter.from_pretrained(tmp_path / "saved", factory)


def test_a_cascade_continues_with_the_single_pass_of_a_checkpoint(tmp_path: Path) -> None:
    """As in mining, where CLIP comes from a checkpoint of adapter training."""
    task = AdapterTask(tiny.clip(tmp_path / "clip"), region_encoder=partial(SinglePassEncoder, prompt_keys=2, **SINGLE))
    nn.init.normal_(task.region_encoder.prompt_keys)  # type: ignore[arg-type]
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    encoder = MiningTask(CLIPAdapter(str(tmp_path / "last.ckpt")), region_encoder=CascadeEncoder).region_encoder
    assert encoder.single_pass.settings() == task.region_encoder.settings()  # type: ignore[union-attr, operator]
    assert torch.equal(encoder.single_pass.prompt_keys, task.region_encoder.prompt_keys)  # type: ignore[union-attr, arg-type]


def test_a_cascade_continues_with_the_saved_crops(tmp_path: Path) -> None:
    plain = tiny.segmenter(tmp_path / "clip", fill="zero")
    plain.save_pretrained(tmp_path / "saved")
    encoder = OpenVocabSegmenter.from_pretrained(tmp_path / "saved", CascadeEncoder).region_encoder
    assert encoder.settings()["crops"] == plain.region_encoder.settings()


@torch.no_grad()
def test_the_vocabulary_of_a_segmenter_decides(tmp_path: Path) -> None:
    plain = tiny.segmenter(tmp_path / "clip")
    encoder = cascade(plain.clip, budget=1)
    model = OpenVocabSegmenter(plain.proposer, encoder)
    model.set_vocabulary(NAMES)
    cosines = encoder.single_pass(IMAGES, MASKS)[0].features @ plain.clip.encode_text(NAMES).T
    assert encoder.classes == 3 and cosines.shape == (6, 3)
    assert torch.equal(encoder.text_features, model.text_features)  # type: ignore[arg-type]


# On the command line


def test_a_cascade_is_chosen_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By flags or in YAML; no image has more crops than the budget; the parts' options are checked."""
    crops: list[int] = []
    encode = CropEncoder.forward

    def counted(self: CropEncoder, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[RegionFeatures]:
        crops.extend(len(image_masks) for image_masks in masks)
        return encode(self, images, masks)

    monkeypatch.setattr(CropEncoder, "forward", counted)
    ovseg("toy", "--out", tmp_path / "world", "--scenes", 1, "--val_scenes", 1)
    data = ["--data.images", tmp_path / "world" / "val2017", "--data.num_workers", 0]
    data += ["--data.labels", tmp_path / "world" / "stuffthingmaps" / "val2017"]
    words = ["test", "--config", CONF / "toy" / "test.yaml", *data, "--trainer.default_root_dir", tmp_path / "run"]
    flag = "--model.region_encoder"
    chosen = [flag, "CascadeEncoder", f"{flag}.single_pass.clip_short_side", 128]
    assert "single_pass has no option 'mask_'; a SinglePassEncoder takes clip_short_side, " in refusal(
        capsys, *words, *chosen, f"{flag}.single_pass.mask_", "soft"
    )
    ovseg(*words, *chosen, f"{flag}.budget", 10)
    assert crops and max(crops) == 10
    saved = yaml.safe_load((tmp_path / "run" / "test.yaml").read_text())["model"]["init_args"]["region_encoder"]
    assert saved["init_args"]["single_pass"] == {"clip_short_side": 128} and saved["init_args"]["budget"] == 10
    config = write(tmp_path / "cascade.yaml", yaml.safe_dump({"model": {"init_args": {"region_encoder": saved}}}))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        ovseg(*words, "--config", config, "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["region_encoder"]
    assert printed == saved


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"single_pass": {"branch_block": 1.5}}, r"single_pass\.branch_block is 1\.5; give a whole number"),
        ({"crops": {"regions_per_batch": 2.5}}, r"crops\.regions_per_batch is 2\.5; give a whole number"),
    ],
    ids=str,
)
def test_fractions_of_whole_numbers_are_refused(options: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        CascadeEncoder(tiny.clip(tmp_path / "clip"), **options)
