"""Every region encoder: how many regions it takes, tiny images, and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ovseg import rle
from ovseg.models import (
    CascadeEncoder,
    CLIPAdapter,
    CropEncoder,
    GivenMasks,
    MeanPoolEncoder,
    OpenVocabSegmenter,
    RegionEncoder,
    SinglePassEncoder,
)
from ovseg.structures import InputError
from ovseg.tasks import AdapterTask
from tests import tiny
from tests.stages import ovseg, refusal

ENCODERS: dict[str, Any] = {
    "CropEncoder": CropEncoder,
    "SinglePassEncoder": partial(SinglePassEncoder, clip_short_side=64),
    "MeanPoolEncoder": partial(MeanPoolEncoder, clip_short_side=64),
    "CascadeEncoder": partial(CascadeEncoder, single_pass={"clip_short_side": 64}, budget=5),
}
WHOLE = [name for name in ENCODERS if name != "CropEncoder"]
POOLED = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPAdapter:
    return tiny.segmenter(tmp_path_factory.mktemp("clip")).clip


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest, clip: CLIPAdapter) -> RegionEncoder:
    made: RegionEncoder = ENCODERS[request.param](clip)
    return made.eval()


def boxes(count: int, height: int = 64, width: int = 96) -> Tensor:
    """Return masks of different boxes, (count, height, width)."""
    masks = torch.zeros((count, height, width), dtype=torch.bool)
    for row, mask in enumerate(masks):
        top, left = row * 7 % (height - 8), row * 11 % (width - 12)
        mask[top : top + 8 + row % 5, left : left + 12] = True
    return masks


@torch.no_grad()
def test_no_regions(encoder: RegionEncoder) -> None:
    (image,) = tiny.images((64, 96))
    none, one = boxes(0), boxes(1)
    assert encoder([], []) == []
    (features, valid), (other, _) = encoder([image, image], [none, one])
    assert features.shape == (0, tiny.DIM) and valid.shape == (0,) and valid.dtype == torch.bool
    torch.testing.assert_close(other, encoder([image], [one])[0].features)
    assert encoder([image], [none])[0].features.shape == (0, tiny.DIM)


@torch.no_grad()
def test_a_thousand_regions_are_encoded_as_each_alone(encoder: RegionEncoder) -> None:
    (image,), masks = tiny.images((64, 96)), boxes(1000)
    if isinstance(encoder, CascadeEncoder):
        encoder.min_patches = 1  # no crops, because a region alone would always get one
    features, valid = encoder([image], [masks])[0]
    assert features.shape == (1000, tiny.DIM) and valid.all()
    for row in (0, 499, 999):
        torch.testing.assert_close(features[row], encoder([image], [masks[[row]]])[0].features[0])


class LargeTensors(TorchDispatchMode):
    """Record the dtype of each distinct tensor of at least so many values that is computed."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values, self.kept = values, dict[int, Tensor]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        result = function(*args, **(options or {}))
        if isinstance(result, Tensor) and result.numel() >= self.values:
            # keeps the memory, so that addresses stay distinct
            self.kept.setdefault(result.untyped_storage().data_ptr(), result)
        return result


def test_many_masks_are_held_once_as_floats_and_once_as_bools(
    encoder: RegionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory grows with the number of proposals by these two tensors only."""
    for module in ("proposals.given", "regions.coverage"):
        monkeypatch.setattr(f"ovseg.models.{module}.band_values", lambda device: 100 * 64 * 96)
    segmenter = OpenVocabSegmenter(proposer := GivenMasks(), encoder)
    segmenter.set_vocabulary(["cat", "dog"])
    masks = boxes(1000)
    proposer.take([masks])
    image = tiny.images((64, 96))
    with LargeTensors(masks.numel()) as large:
        ((_, mask_probs),) = segmenter.score_proposals(image)
    assert torch.equal(mask_probs, masks.float())
    assert sorted(str(tensor.dtype) for tensor in large.kept.values() if tensor.data_ptr() != masks.data_ptr()) == [
        "torch.bool",
        "torch.float32",
    ]


@torch.no_grad()
def test_an_image_smaller_than_a_patch_is_enlarged(encoder: RegionEncoder) -> None:
    """An image of one colour looks the same at any size."""
    colour = torch.tensor([0.8, 0.3, 0.1])[:, None, None]
    full = [torch.ones((1, *size), dtype=torch.bool) for size in ((64, 64), (4, 4), (1, 1))]
    large, *small = encoder([colour.expand(3, *mask.shape[1:]) for mask in full], full)
    for regions in small:
        assert regions.valid.all()
        torch.testing.assert_close(regions.features, large.features, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("images", "masks", "sentence"),
    [
        ([(3, 8, 8)], [(2, 4, 4)], r"masks of shape \(2, 4, 4\) do not match an image of 8 × 8 pixels; resize them"),
        ([(3, 8, 8)], [(8, 8)], r"masks of shape \(8, 8\) do not match an image of 8 × 8 pixels"),
        ([(1, 8, 8)], [(2, 8, 8)], r"an image has shape \(1, 8, 8\); pass RGB images"),
        ([(3, 0, 8)], [(2, 0, 8)], r"an image has shape \(3, 0, 8\); pass RGB images"),
        ([(3, 8, 8), (3, 8, 8)], [(1, 8, 8)], "2 images came with the masks of 1; pass masks"),
    ],
)
def test_images_and_masks_that_do_not_fit_are_refused(
    encoder: RegionEncoder, images: list[tuple[int, ...]], masks: list[tuple[int, ...]], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        encoder([torch.rand(size) for size in images], [torch.ones(size, dtype=torch.bool) for size in masks])


def test_masks_of_probabilities_are_refused(encoder: RegionEncoder) -> None:
    with pytest.raises(InputError, match=r"masks are torch\.float32, not bool; compare them with a threshold first"):
        encoder(tiny.images((64, 64)), [torch.rand(2, 64, 64)])


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    ("vision", "sentence"),
    [
        (tiny.RN, "a ModifiedResNet, which has no patch tokens, but mask prompts and single passes need them; choose"),
        ({"timm_model_name": "convnext_atto", "timm_pool": "", "image_size": 32}, "a ConvNeXt, which has no patch"),
        (tiny.CLIP["vision_cfg"] | POOLED, r"pools by open_clip's attention \(CoCa\).*; use CropEncoder or another"),
    ],
    ids=["RN50", "ConvNeXt", "CoCa"],
)
def test_towers_without_a_single_pass_are_refused(
    name: str, vision: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    clip = CLIPAdapter(tiny.clip_folder(tmp_path, vision_cfg=vision))
    with pytest.raises(InputError, match=sentence) as caught:
        ENCODERS[name](clip)
    assert "\n" not in str(caught.value)
    assert CropEncoder(clip).eval()(tiny.images((64, 96)), [boxes(1)])[0].features.shape == (1, tiny.DIM)


# Prompt keys that were trained for another depth


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter with prompt keys for both blocks of CLIP."""
    root = tmp_path_factory.mktemp("prompted")
    plain = tiny.segmenter(root / "clip")
    encoder = SinglePassEncoder(plain.clip, 64, prompt_keys=2)
    OpenVocabSegmenter(plain.proposer, encoder, resize=(64, 128)).save_pretrained(root / "saved")
    return root / "saved"


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"branch_block": 2, "prompt_keys": 2}, "branch_block 2, not 1"),
        ({}, "prompt_keys 0, not 2"),
        ({"prompt_keys": 3}, "prompt_keys 3, not 2"),
        ({"prompt_keys": 2, "mask": "learned"}, "mask 'learned', not 'hard'"),
    ],
    ids=str,
)
def test_prompt_keys_of_another_depth_are_refused(prompted: Path, options: dict[str, Any], difference: str) -> None:
    factory = partial(SinglePassEncoder, clip_short_side=64, **options)
    sentence = f"does not fit these settings of SinglePassEncoder: {difference}; give the saved ones"
    with pytest.raises(InputError, match=sentence):
        OpenVocabSegmenter.from_pretrained(prompted, factory)
    if options:
        with pytest.raises(InputError, match=sentence):
            OpenVocabSegmenter.from_pretrained(prompted, partial(CascadeEncoder, single_pass=options))


def test_training_does_not_continue_with_prompt_keys_of_another_depth(clip: CLIPAdapter) -> None:
    def task(branch_block: int) -> AdapterTask:
        return AdapterTask(
            clip,
            region_encoder=partial(SinglePassEncoder, branch_block=branch_block, clip_short_side=64, prompt_keys=2),
        )

    checkpoint = {"state_dict": task(1).state_dict()}
    task(1).on_load_checkpoint(checkpoint)
    with pytest.raises(InputError, match=r"does not fit this AdapterTask: 1 of another shape \(region_encoder.prompt_"):
        task(2).on_load_checkpoint(checkpoint)


# On the command line


@pytest.mark.parametrize("name", ENCODERS)
def test_any_number_of_masks_on_the_command_line(
    name: str, prompted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No mask, one, and a thousand; the last image has fewer pixels than a patch of CLIP."""
    counts, images, annotations = [0, 1, 1000, 1], [], []
    (tmp_path / "images").mkdir()
    for number, count in enumerate(counts):
        size = (6, 5) if number == 3 else (64, 96)
        Image.fromarray(np.full((*size, 3), 40 * number, dtype=np.uint8)).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
        masks = boxes(count) if number < 3 else torch.ones((1, *size), dtype=torch.bool)
        for counted in rle.encode(masks):
            segmentation = {"size": list(size), "counts": counted.decode()}
            annotations.append({"image_id": number, "segmentation": segmentation, "category_id": 1})
    (tmp_path / "masks.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    words = ["segment", "--model", prompted, "--images", tmp_path / "images", "--vocabulary", "cat, dog"]
    words += ["--data.masks", tmp_path / "masks.json", "--data.num_workers", 0]
    flag, out = "--model.region_encoder", ["--out", tmp_path / "out"]
    short_side = [f"{flag}.{'single_pass.' if name == 'CascadeEncoder' else ''}clip_short_side", 64]
    options = [flag, name, *([] if name == "CropEncoder" else short_side)]
    options += [f"{flag}.prompt_keys", 2] if name == "SinglePassEncoder" else []
    ovseg(*words, *options, *out)
    labels = [np.asarray(Image.open(tmp_path / "out" / f"{number}_labels.png")) for number in range(4)]
    assert [image.shape for image in labels] == [(64, 96)] * 3 + [(6, 5)]
    if name == "SinglePassEncoder":
        assert "region_encoder.safetensors does not fit these settings of SinglePassEncoder: branch_block 2" in refusal(
            capsys, *words, *options, f"{flag}.branch_block", 2, "--out", tmp_path / "other"
        )
    assert not (tmp_path / "other").exists()
