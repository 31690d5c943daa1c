"""Region encoders that pass an image through CLIP once: every tower, every branch block, hand-computed attention."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.models import CLIPAdapter, MeanPoolEncoder, SinglePassEncoder
from ovseg.models.regions.coverage import hard_support, patch_coverages
from ovseg.structures import ImageTextBatch, InputError
from tests import tiny
from tests.models.test_towers import OWN, TEXT, TOWERS, config  # noqa: F401  (a fixture)

SUPPORTED = sorted(set(TOWERS) - {"CoCa"})


@pytest.fixture
def clip(config: dict[str, Any]) -> CLIPAdapter:  # noqa: F811
    """A tiny CLIP with any kind of tower; all its parameters are random."""
    torch.manual_seed(0)
    clip = CLIPAdapter("tower").eval()
    for parameter in clip.visual.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return clip


def own_clip(**vision: Any) -> CLIPAdapter:
    """A tiny CLIP with open_clip's own tower of three blocks."""
    import open_clip

    torch.manual_seed(0)
    open_clip.factory._MODEL_CONFIGS["own"] = {"embed_dim": 32, "text_cfg": TEXT, "vision_cfg": OWN | vision}
    clip = CLIPAdapter("own").eval()
    for parameter in clip.visual.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return clip


def image(height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def some_masks(height: int = 32, width: int = 32) -> Tensor:
    """Seven masks: halves, a rectangle, an L, a single pixel, a checkerboard and a blob."""
    masks = torch.zeros(7, height, width, dtype=torch.bool)
    masks[0, : height // 2] = masks[1, :, width // 3 :] = True
    masks[2, 3:20, 5:29] = True
    masks[3, 2:30, 4:9] = masks[3, 22:30, 4:30] = True
    masks[4, 17, 5] = True
    masks[5, 10::2, ::2] = True
    masks[6, :, :20] = image(height, width, 3)[0, :, :20] > 0.7
    return masks


def full(count: int = 1, side: int = 32) -> Tensor:
    return torch.ones(count, side, side, dtype=torch.bool)


@torch.no_grad()
@pytest.mark.parametrize("config", SUPPORTED, indirect=True)
def test_a_full_mask_gives_the_feature_of_the_image(clip: CLIPAdapter) -> None:
    expected = clip.encode_regions(image()[None])
    region_tokens = clip.visual.tower.has_region_tokens
    biases: list[Any] = ["hard", "soft", "learned"] if region_tokens else ["hard", "soft"]
    for mask, branch_block in product(biases, (1, 2, 3)):
        encoder = SinglePassEncoder(clip, 32, branch_block, mask, prompt_keys=2 if region_tokens else 0).eval()
        if encoder.mask_scale is not None:
            encoder.mask_scale.data.fill_(1.0)
        masks = torch.cat([some_masks(), full()])
        features = encoder([image()], [masks])[0].features
        torch.testing.assert_close(features[-1:], expected, rtol=1e-5, atol=1e-5)
        assert not torch.isclose(features[:-1], expected, rtol=1e-3, atol=1e-3).all(dim=1).any()


@torch.no_grad()
@pytest.mark.parametrize("config", SUPPORTED, indirect=True)
def test_regions_do_not_see_one_another(clip: CLIPAdapter) -> None:
    """Permuting them permutes their features; adding one changes no other; nor does another image in the batch."""
    masks, order = some_masks(40, 56), torch.tensor([3, 1, 6, 0, 5, 2, 4])
    encoders = [SinglePassEncoder(clip, 40, 2), SinglePassEncoder(clip, 40, 2, "soft"), MeanPoolEncoder(clip, 40)]
    for encoder in encoders:
        features = encoder([image(40, 56)], [masks])[0].features
        permuted = encoder([image(40, 56)], [masks[order]])[0].features
        torch.testing.assert_close(permuted, features[order])
        torch.testing.assert_close(encoder([image(40, 56)], [masks[:3]])[0].features, features[:3])
        batch = encoder([image(40, 56), image(40, 56, 1), image(56, 40)], [masks, masks[2:3], some_masks(56, 40)])
        torch.testing.assert_close(batch[0].features, features)
        alone = encoder([image(40, 56, 1)], [masks[2:3]])[0].features
        torch.testing.assert_close(batch[1].features, alone)
        assert [len(regions.features) for regions in batch] == [7, 1, 7]
        assert len({tuple(row) for row in features.round(decimals=3).tolist()}) == 7


@torch.no_grad()
@pytest.mark.parametrize("mask", ["hard", "soft", "learned"])
@pytest.mark.parametrize("keys", ["self", "patches"])
def test_attention_by_hand(mask: Any, keys: Any) -> None:
    """One region at a time, with plain matrices, on a grid of 4 × 6 patches."""
    clip = own_clip()
    encoder = SinglePassEncoder(clip, 32, 2, mask, prompt_keys=3, keys=keys).eval()
    assert encoder.prompt_keys is not None
    encoder.prompt_keys.data.normal_()
    if encoder.mask_scale is not None:
        encoder.mask_scale.data.normal_()
    picture, masks = image(32, 48), some_masks(32, 48)
    features = encoder([picture], [masks])[0].features
    visual, tower = clip.visual.visual, clip.visual.tower
    tokens = tower.embed(*tower.patches(((picture - clip.mean) / clip.std)[None]))[0]
    tokens = visual.transformer.resblocks[0](tokens[None])[0]
    for row, region in enumerate(masks):
        shares = region.view(4, 8, 6, 8).float().mean(dim=(1, 3)).flatten()
        ys, xs = region.nonzero().unbind(1)
        box = int((ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1))
        blank, visible = box - int(region.sum()), int(region.sum())
        patches, token = tokens, tokens[0]
        for layer, block in enumerate(visual.transformer.resblocks[1:]):
            heads, width = block.attn.num_heads, tokens.shape[1]
            projections = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
            mixed = []
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)

                def project(x: Tensor, which: int) -> Tensor:
                    return (block.ln_1(x) @ projections[0][which].T + projections[1][which])[..., part]  # noqa: B023

                logits, values = [], []
                if keys == "self":
                    logits.append(project(token, 0) @ project(token, 1) / math.sqrt(width // heads))
                    values.append(project(token, 2))
                for patch, share in zip(patches[1:], shares, strict=True):
                    logit = project(token, 0) @ project(patch, 1) / math.sqrt(width // heads)
                    if mask == "soft":
                        logit = logit + share.log()
                    elif share < 0.5 * shares.max():
                        continue
                    elif encoder.mask_scale is not None:
                        logit = logit + encoder.mask_scale[layer, head].exp() * (share / shares.max() - 1)
                    logits.append(logit)
                    values.append(project(patch, 2))
                for prompt in encoder.prompt_keys[layer]:
                    weight = blank / visible * shares.sum() / 3
                    logits.append(project(token, 0) @ project(prompt, 1) / math.sqrt(width // heads) + weight.log())
                    values.append(project(prompt, 2))
                mixed.append(torch.stack(logits).softmax(dim=0) @ torch.stack(values))
            token = token + block.attn.out_proj(torch.cat(mixed))
            token = token + block.mlp(block.ln_2(token))
            patches = block(patches[None])[0]
        expected = F.normalize(visual.ln_post(token) @ visual.proj, dim=0)
        torch.testing.assert_close(features[row], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_patches_run_on_as_if_there_were_no_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = own_clip()
    inputs: list[Tensor] = []
    clip.visual.visual.transformer.resblocks[2].ln_1.register_forward_pre_hook(
        lambda _module, args: inputs.append(args[0])
    )
    clip.encode_regions(image()[None])
    SinglePassEncoder(clip, 32, 1, prompt_keys=2)([image()], [some_masks()])
    torch.testing.assert_close(inputs[1][:, :17], inputs[0])


def test_coverage_is_the_share_of_the_area() -> None:
    mask = torch.zeros(1, 10, 15, dtype=torch.bool)
    mask[0, :4, 3:12] = True  # 2.67 of the 10 / 3 rows of patches, columns 3 to 12 of patches 7.5 wide
    coverage = patch_coverages(mask, (3, 2)).view(3, 2)
    expected = torch.tensor([[4.5 / 7.5, 4.5 / 7.5], [2 / 3 * 0.3 * 2 * 1.0, 0], [0, 0]])
    expected[1] = torch.tensor([(4 - 10 / 3) / (10 / 3) * 0.6] * 2)
    torch.testing.assert_close(coverage, expected)
    whole = patch_coverages(torch.ones(2, 37, 53, dtype=torch.bool), (5, 7))
    torch.testing.assert_close(whole, torch.ones(2, 35))
    torch.testing.assert_close(patch_coverages(some_masks(), (4, 4)), F.avg_pool2d(some_masks().float(), 8).flatten(1))


def test_coverage_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = patch_coverages(some_masks(40, 56), (3, 4))
    monkeypatch.setattr("ovseg.models.regions.coverage.band_values", lambda device: 40 * 56 * 2)
    assert torch.equal(patch_coverages(some_masks(40, 56), (3, 4)), whole)


def test_a_small_mask_takes_its_best_patch() -> None:
    coverage = torch.tensor([[0.0, 0.01, 0.004, 0.005], [1.0, 0.5, 0.49, 0.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(hard_support(coverage), expected)


@pytest.mark.parametrize("keys", ["self", "patches"])
@pytest.mark.parametrize("mask", ["hard", "soft", "learned"])
def test_an_empty_mask_is_invalid_and_has_no_gradient(mask: Any, keys: Any) -> None:
    encoder = SinglePassEncoder(own_clip(), 32, mask=mask, keys=keys, prompt_keys=1)
    masks = some_masks()
    masks[2] = False
    regions = encoder([image()], [masks])[0]
    assert regions.valid.tolist() == [True, True, False, True, True, True, True]
    assert not regions.features[2].any()
    torch.testing.assert_close(regions.features[regions.valid].norm(dim=1), torch.ones(6))
    regions.features.sum().backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("config", SUPPORTED, indirect=True)
def test_every_tower_can_be_trained(clip: CLIPAdapter) -> None:
    keys = 2 if clip.visual.tower.has_region_tokens else 0
    encoder = SinglePassEncoder(clip, 32, 2, "learned" if keys else "hard", prompt_keys=keys)
    batch = ImageTextBatch([image(), image(40, 32)], [some_masks(), some_masks(40, 32)[:2]], ["x"] * 9, torch.zeros(9))
    features = encoder.encode_batch(batch)
    assert len(features) == 9
    features.square()[:, ::2].sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in encoder.own_weights().items():
        gradient = dict(encoder.named_parameters())[name].grad
        assert gradient is not None and bool(gradient.flatten(1).any(dim=1).all()), (name, parameter.shape)
    unused = [name for name, parameter in clip.visual.named_parameters() if parameter.grad is None]
    assert unused == []  # DDP would wait for their gradients


@torch.no_grad()
@pytest.mark.parametrize("config", SUPPORTED, indirect=True)
def test_half_precision_changes_features_little(clip: CLIPAdapter) -> None:
    """Of the weights, or only of the activations, as under a Trainer with `bf16-mixed`."""
    expected = SinglePassEncoder(clip, 32, 2).eval()([image()], [some_masks()])[0].features
    reduced = SinglePassEncoder(clip, 32, 2, precision="bf16").eval()([image()], [some_masks()])[0].features
    with torch.autocast("cpu", torch.bfloat16):
        mixed = SinglePassEncoder(clip, 32, 2).eval()([image()], [some_masks()])[0].features
    for features in (reduced, mixed):
        assert features.dtype == torch.float32 and not torch.equal(features, expected)
        assert float((features * expected).sum(dim=1).min()) > 0.99


@torch.no_grad()
def test_bf16_weights_ignore_the_trainer_s_precision() -> None:
    encoder = SinglePassEncoder(own_clip(), 32, precision="bf16").eval()
    expected = encoder([image()], [some_masks()])[0].features
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(encoder([image()], [some_masks()])[0].features, expected)


def test_bf16_is_for_inference() -> None:
    encoder = SinglePassEncoder(own_clip(), 32, precision="bf16")
    with pytest.raises(InputError, match="bf16 is for inference only"):
        encoder.encode_batch(ImageTextBatch([image()], [some_masks()], ["x"] * 7, torch.zeros(7)))


@torch.no_grad()
def test_settings_build_the_same_encoder() -> None:
    clip = own_clip()
    encoder = SinglePassEncoder(clip, 48, 2, "learned", 3, "patches").eval()
    again = SinglePassEncoder(clip, **encoder.settings()).eval()
    again.load_state_dict(encoder.state_dict())
    assert set(encoder.own_weights()) == {"prompt_keys", "mask_scale"}
    one, other = (each([image()], [some_masks()])[0].features for each in (encoder, again))
    assert torch.equal(one, other)


@torch.no_grad()
def test_mean_pooling_averages_single_patches() -> None:
    """With one patch per mask, the feature is that patch's value path, computed by hand."""
    clip = own_clip()
    encoder, visual, tower = MeanPoolEncoder(clip, 32).eval(), clip.visual.visual, clip.visual.tower
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[0, :8, 8:16] = masks[1, 16:24, 24:] = True
    masks[2] = masks[0] | masks[1]
    features = encoder([image()], [masks])[0].features
    tokens = tower.embed(*tower.patches(((image() - clip.mean) / clip.std)[None]))
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    block, width = visual.transformer.resblocks[-1], tokens.shape[2]
    value = F.linear(block.ln_1(tokens), block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :])
    tokens = tokens + block.attn.out_proj(value)
    tokens = tokens + block.mlp(block.ln_2(tokens))
    dense = (visual.ln_post(tokens) @ visual.proj)[0, 1:]
    expected = torch.stack([dense[1], dense[2 * 4 + 3], (dense[1] + dense[11]) / 2])
    torch.testing.assert_close(features, F.normalize(expected, dim=1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_very_long_image_is_squeezed() -> None:
    encoder = SinglePassEncoder(own_clip(), 16).eval()
    lines = encoder(
        [image(1, 4000), image(4000, 1)], [full()[:, :1, :1].expand(1, 1, 4000), torch.ones(1, 4000, 1) > 0]
    )
    assert all(bool(regions.features.isfinite().all()) for regions in lines)
    assert encoder.grid_of(image(1, 4000)) == (2, 16)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"clip_short_side": 7}, "clip_short_side is 7, less than one patch of this CLIP; give at least 8 pixels"),
        ({"branch_block": 4}, "branch_block is 4, but this CLIP has 3 blocks; give 1 to 3"),
        ({"branch_block": 0}, "branch_block is 0, but"),
        ({"mask": "firm"}, "mask is 'firm'; choose from hard, soft, learned"),
        ({"keys": "all"}, "keys is 'all'; choose from self, patches"),
        ({"prompt_keys": -1}, "prompt_keys is -1; give"),
        ({"precision": "int8"}, "precision is 'int8'; give bf16"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        SinglePassEncoder(own_clip(), **options)


@pytest.mark.parametrize("config", ["SigLIP", "GAP"], indirect=True)
def test_without_a_class_token_there_are_no_prompt_keys(clip: CLIPAdapter) -> None:
    for options in ({"prompt_keys": 2}, {"mask": "learned"}):
        with pytest.raises(InputError, match="prompt_keys and mask: learned need an image tower that pools a class"):
            SinglePassEncoder(clip, 32, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", ["CoCa"], indirect=True)
def test_coca_is_refused(clip: CLIPAdapter) -> None:
    with pytest.raises(InputError, match=r"pools by open_clip's attention \(CoCa\).*use CropEncoder"):
        SinglePassEncoder(clip, 32)


def test_a_tower_without_patches_is_refused(tmp_path: Any) -> None:
    clip = CLIPAdapter(tiny.clip_folder(tmp_path / "rn", vision_cfg=tiny.RN))
    with pytest.raises(InputError, match="ModifiedResNet, which has no patch tokens"):
        SinglePassEncoder(clip)
