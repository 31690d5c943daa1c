"""Region encoders and proposers of one's own: a segmenter takes, saves and loads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from ovseg.models import CLIPAdapter, CropEncoder, GivenMasks, MaskProposer, OpenVocabSegmenter, Proposer, RegionEncoder
from ovseg.models.ensemble import RegionLogits, class_scores
from ovseg.ops import crop_regions, mask_probabilities
from ovseg.structures import ImageProposals, InputError, RegionFeatures, RegionTextBatch, Vocabulary
from ovseg.tasks import MiningTask
from tests import tiny

IMAGES = tiny.images((64, 64), (64, 96))
NAMES = Vocabulary(("cat", "red sky", "grass"), synonyms=(("cat", "kitten"), ("red sky",), ("grass", "lawn")))


class ScaledCrops(CropEncoder):
    """Crops whose features have learned scales; with weights of its own."""

    def __init__(self, clip: CLIPAdapter) -> None:
        super().__init__(clip)
        self.scale = nn.Parameter(torch.ones(clip.dim))

    def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[RegionFeatures]:
        encoded = super().forward(images, masks)
        return [RegionFeatures(F.normalize(self.scale * features, dim=1), valid) for features, valid in encoded]

    def settings(self) -> dict[str, object]:
        return {}


class Halves(Proposer):
    """The left and the right half of each image."""

    def propose(self, images: Tensor | Sequence[Tensor], vocabulary: Vocabulary | None = None) -> list[ImageProposals]:
        answer = []
        for image in images:
            left = torch.zeros(image.shape[1:])
            left[:, : image.shape[2] // 2] = 1
            answer.append(ImageProposals(torch.stack([left, 1 - left]), None, torch.tensor([1.0, 0.5])))
        return answer


def masks_of(image: Tensor) -> Tensor:
    """Three masks: a corner, none, and all."""
    masks = torch.zeros((3, *image.shape[1:]), dtype=torch.bool)
    masks[0, :20, 10:40] = True
    masks[2] = True
    return masks


def test_crops_of_all_images_are_encoded_as_each_alone(tmp_path: Path) -> None:
    clip = tiny.clip(tmp_path, prompt_depth=2)
    masks = [masks_of(image) for image in IMAGES]
    together = CropEncoder(clip)(IMAGES, masks)
    in_parts = CropEncoder(clip, regions_per_batch=1)(IMAGES, masks)
    for index, (image, of_image) in enumerate(zip(IMAGES, masks, strict=True)):
        regions, region_masks, valid = crop_regions(image, of_image, clip.image_size)
        expected = clip.encode_regions(regions, region_masks)
        for encoded in (together[index], in_parts[index]):
            assert torch.equal(encoded.valid, valid) and valid.tolist() == [True, False, True]
            torch.testing.assert_close(encoded.features[valid], expected[valid])
            assert not encoded.features[~valid].any()
    assert CropEncoder(clip)([], []) == []


def test_fill_and_ratio_reach_the_crops(tmp_path: Path) -> None:
    clip, mask = tiny.clip(tmp_path, prompt_depth=2), masks_of(IMAGES[0])[:1]
    encoder = CropEncoder(clip, fill="zero", expand_ratio=1.5)
    regions, region_masks, _ = crop_regions(IMAGES[0], mask, clip.image_size, (0.0, 0.0, 0.0), 1.5)
    found = encoder([IMAGES[0]], [mask])[0].features
    torch.testing.assert_close(found, clip.encode_regions(regions, region_masks))
    assert not torch.allclose(found, CropEncoder(clip)([IMAGES[0]], [mask])[0].features, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fill": "red"}, "fill is 'red'; choose from mean, zero"),
        ({"expand_ratio": 0.0}, "expand_ratio is 0.0; give a finite number above 0"),
        ({"expand_ratio": float("inf")}, "expand_ratio is inf; give a finite number above 0"),
        ({"regions_per_batch": 0}, "regions_per_batch is 0; give at least 1"),
    ],
)
def test_options_of_crops_are_checked(tmp_path: Path, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        CropEncoder(tiny.clip(tmp_path), **options)  # type: ignore[arg-type]


def test_a_proposer_merges_synonyms_as_the_best_of_them() -> None:
    proposer = tiny.proposer()
    proposer.set_text_features(F.normalize(torch.randn(len(NAMES.phrases), tiny.DIM), dim=1))
    with torch.no_grad():
        raw = proposer(IMAGES)[-1]
        proposals = proposer.propose(IMAGES, NAMES)
    for index, (image, of_image) in enumerate(zip(IMAGES, proposals, strict=True)):
        logits = raw.class_logits[index]
        by_hand = [logits[:, [0, 1]].amax(1), logits[:, 2], logits[:, [3, 4]].amax(1), logits[:, 5]]
        assert torch.equal(of_image.class_logits, torch.stack(by_hand, dim=1))  # type: ignore[arg-type]
        probs = mask_probabilities(raw.mask_logits[index], (image.shape[1], image.shape[2]))
        assert torch.equal(of_image.mask_probs, probs)
    assert proposer.propose(IMAGES)[0].class_logits.shape == (6, 6)  # type: ignore[union-attr]
    assert proposer.propose([]) == []


def test_a_segmenter_takes_any_proposer(tmp_path: Path) -> None:
    segmenter = OpenVocabSegmenter(Halves(), CropEncoder(tiny.clip(tmp_path, prompt_depth=2)))
    assert segmenter.classifier == "clip"
    segmenter.set_vocabulary(NAMES)
    labels = segmenter.labels(IMAGES)[0]
    masks = torch.stack([torch.arange(64) < 32, torch.arange(64) >= 32])[:, None].expand(2, 64, 64)
    expected = segmenter.classify_regions(IMAGES[0], masks).logits.argmax(1)
    assert [labels[0, 0], labels[0, -1]] == expected.tolist()
    assert (labels[:, :32] == labels[0, 0]).all() and (labels[:, 32:] == labels[0, -1]).all()
    with pytest.raises(InputError, match="'proposals' needs class logits, which Halves does not have; use 'clip'"):
        segmenter.classifier = "proposals"
    with pytest.raises(InputError, match="segmenter with Halves cannot be saved; use a MaskProposer"):
        segmenter.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_segmenter_is_saved_with_its_region_encoder(tmp_path: Path) -> None:
    plain = tiny.segmenter(tmp_path / "clip")
    encoder = ScaledCrops(plain.clip)
    nn.init.uniform_(encoder.scale)
    model = OpenVocabSegmenter(plain.proposer, encoder, resize=(64, 128)).eval()
    model.save_pretrained(tmp_path / "saved")
    again = OpenVocabSegmenter.from_pretrained(tmp_path / "saved")
    assert type(again.region_encoder) is ScaledCrops and torch.equal(again.region_encoder.scale, encoder.scale)
    answers = []
    for segmenter in (model, again, plain):
        segmenter.set_vocabulary(NAMES)
        answers.append(segmenter.score_proposals(IMAGES)[0][0])
    assert torch.equal(answers[0], answers[1]) and not torch.allclose(answers[0], answers[2], atol=1e-3)
    other = OpenVocabSegmenter.from_pretrained(tmp_path / "saved", region_encoder=CropEncoder)
    other.set_vocabulary(NAMES)
    assert torch.equal(other.score_proposals(IMAGES)[0][0], answers[2])
    other.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "region_encoder.safetensors").exists()


def test_another_factory_of_the_saved_class_takes_its_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And says which settings differ from the saved ones."""
    plain = tiny.segmenter(tmp_path / "clip")
    encoder = ScaledCrops(plain.clip)
    nn.init.uniform_(encoder.scale)
    OpenVocabSegmenter(plain.proposer, encoder).save_pretrained(tmp_path / "scaled")
    again = OpenVocabSegmenter.from_pretrained(tmp_path / "scaled", ScaledCrops)
    assert torch.equal(again.region_encoder.scale, encoder.scale) and not caplog.records  # type: ignore[arg-type]
    plain.save_pretrained(tmp_path / "plain")
    OpenVocabSegmenter.from_pretrained(tmp_path / "plain", partial(CropEncoder, fill="zero"))
    assert "saved with other settings of CropEncoder: using fill 'zero', not 'mean'" in caplog.text


def test_a_region_encoder_without_forward_is_refused(tmp_path: Path) -> None:
    tiny.segmenter(tmp_path / "clip").save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="the region encoder cannot be built: Can't instantiate abstract class"):
        OpenVocabSegmenter.from_pretrained(tmp_path / "saved", RegionEncoder)


def test_pairs_depend_on_the_weights_of_a_region_encoder(tmp_path: Path) -> None:
    """A store that one encoder began is not continued by another one."""
    task = MiningTask(tiny.clip(tmp_path), region_encoder=ScaledCrops)
    before = task.settings()
    assert task.settings() == before
    nn.init.constant_(task.region_encoder.scale, 2)  # type: ignore[arg-type]
    assert task.settings() != before


def test_clip_is_saved_once(tmp_path: Path) -> None:
    class TwoScales(ScaledCrops):
        def __init__(self, clip: CLIPAdapter) -> None:
            super().__init__(clip)
            self.wide = CropEncoder(clip, expand_ratio=1.5)

    plain = tiny.segmenter(tmp_path / "clip")
    assert [*TwoScales(plain.clip).own_weights()] == ["scale"]
    OpenVocabSegmenter(plain.proposer, TwoScales(plain.clip)).save_pretrained(tmp_path / "saved")
    assert isinstance(OpenVocabSegmenter.from_pretrained(tmp_path / "saved").region_encoder, TwoScales)


def test_weights_of_a_region_encoder_are_needed(tmp_path: Path) -> None:
    plain = tiny.segmenter(tmp_path / "clip")
    OpenVocabSegmenter(plain.proposer, ScaledCrops(plain.clip)).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "region_encoder.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"region_encoder.safetensors does not fit this ScaledCrops: 1 missing \(scale\)"
    ):
        OpenVocabSegmenter.from_pretrained(tmp_path / "saved")


def test_a_saved_name_imports_nothing(tmp_path: Path) -> None:
    """A file may choose among the region encoders that are imported, and make nothing else be imported."""
    tiny.segmenter(tmp_path / "clip").save_pretrained(tmp_path / "saved")
    settings = yaml.safe_load((tmp_path / "saved" / "segmenter.yaml").read_text())
    for name in ("antigravity.Encoder", "os.system", "ovseg.models.MaskProposer", "ovseg.models.RegionEncoder"):
        settings["region_encoder"]["class_path"] = name
        (tmp_path / "saved" / "segmenter.yaml").write_text(yaml.safe_dump(settings))
        with pytest.raises(InputError, match=f"needs the region encoder {name}, which is not imported"):
            OpenVocabSegmenter.from_pretrained(tmp_path / "saved")


def test_segmenters_saved_before_have_their_fill(tmp_path: Path) -> None:
    tiny.segmenter(tmp_path / "clip").save_pretrained(tmp_path / "saved")
    settings = yaml.safe_load((tmp_path / "saved" / "segmenter.yaml").read_text())
    del settings["region_encoder"]
    (tmp_path / "saved" / "segmenter.yaml").write_text(yaml.safe_dump({**settings, "fill": "zero"}))
    assert OpenVocabSegmenter.from_pretrained(tmp_path / "saved").region_encoder.settings()["fill"] == "zero"


def test_an_encoder_that_cannot_be_trained_says_so(tmp_path: Path) -> None:
    class Zeros(RegionEncoder):
        def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> list[RegionFeatures]:
            return [RegionFeatures(torch.zeros(len(m), self.clip.dim), m.flatten(1).any(1)) for m in masks]

    batch = RegionTextBatch(torch.rand(1, 3, 32, 32), torch.ones(1, 32, 32, dtype=torch.bool), ["cat"], torch.zeros(1))
    with pytest.raises(InputError, match="Zeros cannot be trained: it has no `encode_batch`"):
        Zeros(tiny.clip(tmp_path)).encode_batch(batch)


def test_given_masks_are_the_proposals() -> None:
    proposer, mask = GivenMasks(), torch.zeros((2, 128, 128), dtype=torch.bool)
    mask[0, :64] = True
    proposer.take([mask, torch.zeros((0, 9, 9), dtype=torch.bool)], [torch.tensor([0.9, 0.1]), torch.zeros(0)])
    first, second = proposer.propose(IMAGES)
    assert first.class_logits is None and first.objectness.tolist() == pytest.approx([0.9, 0.1])  # type: ignore[union-attr]
    assert first.mask_probs.shape == (2, 64, 64) and second.mask_probs.shape == (0, 64, 96)
    assert torch.equal(first.mask_probs > 0.5, mask[:, ::2, ::2])
    assert proposer.checked_classifier(None) == "clip"
    with pytest.raises(InputError, match="has the masks of 2 images, not of 1"):
        proposer.propose(IMAGES[:1])
    proposer.take([mask])
    assert proposer.propose(IMAGES[:1])[0].objectness.tolist() == [1, 1]  # type: ignore[union-attr]


def test_without_class_logits_the_ensemble_weighs_objectness() -> None:
    """By hand: objectness ** (1 - w) * softmax ** w; a region that CLIP cannot see scores nothing."""
    proposals = ImageProposals(torch.ones(3, 2, 2), None, torch.tensor([0.25, 1.0, 0.5]))
    probabilities = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.9, 0.1]])
    regions = RegionLogits(probabilities.log(), torch.tensor([True, True, False]))
    scores = class_scores(proposals, regions, "ensemble", 0.5)
    expected = [[0.5 * 0.8**0.5, 0.5 * 0.2**0.5], [0.5**0.5, 0.5**0.5], [0, 0]]
    torch.testing.assert_close(scores, torch.tensor(expected))
    torch.testing.assert_close(
        class_scores(proposals, regions, "ensemble", 1.0), probabilities * regions.valid[:, None]
    )
    with pytest.raises(InputError, match="no class logits"):
        class_scores(proposals, None, "ensemble", 0.0)


def test_the_released_network_is_a_proposer() -> None:
    assert isinstance(tiny.proposer(), Proposer) and issubclass(MaskProposer, Proposer)
