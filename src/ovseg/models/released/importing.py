"""`ovseg import`: a released OVSeg, or a CLIP fine-tuned elsewhere, as a segmenter of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ovseg.models.released.parts import LICENCE, ReleasedParts, load_clip, released_parts
from ovseg.models.released.reading import RELEASE_DEFAULTS, ReleaseSettings
from ovseg.models.segmenter import OpenVocabSegmenter
from ovseg.models.segmenter_folder import check_segmenter_target
from ovseg.structures import InputError


def import_released(
    path: str | Path,
    decoder_heads: int = RELEASE_DEFAULTS.decoder_heads,
    multi_grid: Sequence[int] = RELEASE_DEFAULTS.multi_grid,
    ensemble_weight: float = RELEASE_DEFAULTS.ensemble_weight,
    mask_threshold: float | None = RELEASE_DEFAULTS.mask_threshold,
    fill: Literal["mean", "zero"] = RELEASE_DEFAULTS.fill,
    resize: tuple[int, int] | None = RELEASE_DEFAULTS.resize,
) -> OpenVocabSegmenter:
    """Build a segmenter from a released `.pth` as it is; what the shapes of its weights do not tell can be given.

    Args:
        decoder_heads: attention heads of the decoder of queries.
        multi_grid: dilations in the last stage of a ResNet.
        ensemble_weight: exponent of CLIP; the release used 0.7 for ADE20K, 0.6 for PASCAL Context, 0.45 for VOC. Its
            weight 0 is `classifier = "clip"` here.
        mask_threshold: 0.4 with Swin, 0.5 with ResNet where not given.
        fill: colour outside the mask of a region.
        resize: (short, long) side of the images; (640, 2560) with Swin, (512, 2048) with ResNet where not given.

    Raises:
        InputError: the file is missing, damaged, or of another architecture; nothing is half loaded.
    """
    settings = ReleaseSettings(decoder_heads, tuple(multi_grid), ensemble_weight, mask_threshold, fill, resize)
    return _segmenter(released_parts(path, settings))


def import_weights(path: str, out: Path, clip_only: Path | None, settings: ReleaseSettings) -> list[str]:
    """Write a folder for `OpenVocabSegmenter.from_pretrained`.

    Args:
        path: a released `.pth`; with `clip_only` any segmenter.
        clip_only: a checkpoint of CLIP to put into it, see `load_clip`.

    Returns:
        Lines that say what was read.

    Raises:
        InputError: as `import_released`; nothing is written then.
    """
    check_segmenter_target(out)
    lines = []
    if clip_only is None and Path(path).is_dir():
        raise InputError(f"{path} is a folder, not a released checkpoint; add --clip-only FILE to change its CLIP")
    if Path(path).is_file() or clip_only is None:
        parts = released_parts(path, settings)
        segmenter = _segmenter(parts)
        lines += [f"read {path}", *_architecture(segmenter), _numbers(parts), LICENCE]
    else:
        if settings != RELEASE_DEFAULTS:
            raise InputError(f"{path} is no released checkpoint, it has its own settings; leave the other flags out")
        segmenter = OpenVocabSegmenter.from_pretrained(path)
    if clip_only is not None:
        used = load_clip(segmenter.clip, clip_only)
        lines += [
            f"read {clip_only}: {used:,} parameters for CLIP, none unused",
            f"  mask prompts  {_prompts(segmenter)}",
        ]
    segmenter.save_pretrained(out)
    return [*lines, f"segmenter in {out}"]


def _segmenter(parts: ReleasedParts) -> OpenVocabSegmenter:
    return OpenVocabSegmenter(parts.proposer, parts.clip, **parts.settings).eval()


def _architecture(segmenter: OpenVocabSegmenter) -> list[str]:
    proposer: dict[str, Any] = segmenter.proposer.architecture()["model"]
    backbone, decoder = proposer["backbone_config"], proposer["decoder_config"]
    if "swin" in backbone["model_type"]:  # HF calls it maskformer-swin
        width, name = backbone["embed_dim"], f"Swin, window {backbone['window_size']}"
    else:
        width = backbone["hidden_sizes"][0]
        name = f"ResNet with deep stem, multi-grid {'-'.join(map(str, backbone['multi_grid']))}"
    depths = "-".join(map(str, backbone["depths"]))
    vision = segmenter.clip.config["model_cfg"]["vision_cfg"]
    return [
        f"  proposals     MaskFormer; {name}, width {width}, depths {depths}; {decoder['num_queries']} queries, "
        f"{decoder['decoder_layers']} decoder layers, {decoder['decoder_attention_heads']} heads",
        f"  CLIP          ViT of {vision['layers']} layers, width {vision['width']}, patch {vision['patch_size']}, "
        f"{vision['image_size']} pixels; joint width {segmenter.clip.dim}",
        f"  mask prompts  {_prompts(segmenter)}",
        f"  settings      ensemble weight {segmenter.ensemble_weight}, mask threshold {segmenter.mask_threshold}, "
        f"fill {segmenter.fill}, short side {segmenter.resize[0]}, long side at most {segmenter.resize[1]}",
    ]


def _prompts(segmenter: OpenVocabSegmenter) -> str:
    prompt = segmenter.clip.visual.prompt
    if prompt is None:
        return "none"
    positions = prompt.mask_embedding.shape[1]
    return f"depth {prompt.depth}, {'shared by all positions' if positions == 1 else f'{positions} positions'}"


def _numbers(parts: ReleasedParts) -> str:
    unused = ", ".join(sorted({key.rpartition(".")[2] for key in parts.unused})) or "none"
    return f"  parameters    {parts.used:,} used; {len(parts.unused)} entries not used, they hold no weight ({unused})"
