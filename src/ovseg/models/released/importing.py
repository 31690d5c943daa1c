"""Convert a released OVSeg, or a CLIP fine-tuned elsewhere, into a segmenter (`ovseg import`)."""

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
    """Build a segmenter from a released `.pth`.

    The arguments other than `path` cannot be inferred from the shapes of the weights.

    Args:
        path: the released file, as downloaded.
        decoder_heads: number of attention heads in the query decoder.
        multi_grid: dilations in the last stage of a ResNet.
        ensemble_weight: exponent of CLIP; the release used 0.7 for ADE20K, 0.6 for PASCAL Context, 0.45 for VOC. The
            release's weight 0 corresponds to `classifier = "clip"` here.
        mask_threshold: probability above which a pixel belongs to a region; defaults to 0.4 with Swin, 0.5 with ResNet.
        fill: colour outside the mask of a region.
        resize: short side and longest long side of images in pixels; defaults to (640, 2560) with Swin, (512, 2048)
            with ResNet.

    Raises:
        InputError: the file is missing, damaged, or of another architecture.
    """
    settings = ReleaseSettings(decoder_heads, tuple(multi_grid), ensemble_weight, mask_threshold, fill, resize)
    return _segmenter(released_parts(path, settings))


def import_weights(path: str, out: Path, clip_only: Path | None, settings: ReleaseSettings) -> list[str]:
    """Write a released OVSeg, or a segmenter with another CLIP, as a folder for `OpenVocabSegmenter.from_pretrained`.

    Args:
        path: a released `.pth`, or any segmenter if `clip_only` is given.
        out: the folder to write.
        clip_only: a CLIP checkpoint to load into the segmenter, see `load_clip`.
        settings: as in `import_released`.

    Returns:
        Lines that report what was read.

    Raises:
        InputError: a file cannot be used, see `import_released` and `load_clip`; nothing is written.
    """
    check_segmenter_target(out)
    lines = []
    if clip_only is None and Path(path).is_dir():
        raise InputError(f"{path} is a folder, not a released checkpoint; add --clip-only FILE to replace its CLIP")
    if Path(path).is_file() or clip_only is None:
        parts = released_parts(path, settings)
        segmenter = _segmenter(parts)
        lines += [f"read {path}", *_architecture(segmenter), _counts(parts), LICENCE]
    else:
        if settings != RELEASE_DEFAULTS:
            raise InputError(f"{path} has its own settings; remove the flags that only apply to released checkpoints")
        segmenter = OpenVocabSegmenter.from_pretrained(path)
    if clip_only is not None:
        used = load_clip(segmenter.clip, clip_only)
        lines += [
            f"read {clip_only}: {used:,} parameters of CLIP, all used",
            f"  mask prompts  {_prompts(segmenter)}",
        ]
    segmenter.save_pretrained(out)
    return [*lines, f"segmenter in {out}"]


def _segmenter(parts: ReleasedParts) -> OpenVocabSegmenter:
    return OpenVocabSegmenter(parts.proposer, parts.region_encoder, **parts.settings).eval()


def _architecture(segmenter: OpenVocabSegmenter) -> list[str]:
    """Describe the networks and settings of an imported segmenter, for the terminal."""
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
        f"fill {segmenter.region_encoder.settings()['fill']}, short side {segmenter.resize[0]}, "
        f"long side at most {segmenter.resize[1]}",
    ]


def _prompts(segmenter: OpenVocabSegmenter) -> str:
    """Describe the mask prompts of a segmenter, for the terminal."""
    prompt = segmenter.clip.visual.prompt
    if prompt is None:
        return "none"
    positions = prompt.mask_embedding.shape[1]
    return f"depth {prompt.depth}, {'shared by all positions' if positions == 1 else f'{positions} positions'}"


def _counts(parts: ReleasedParts) -> str:
    """Report how many parameters were used and which entries were not, for the terminal."""
    unused = ", ".join(sorted({key.rpartition(".")[2] for key in parts.unused})) or "none"
    return f"  parameters    {parts.used:,} used; {len(parts.unused)} entries without weights skipped ({unused})"
