"""Build the parts of a cascade: its two encoders from plain options, and a second CLIP for the crops."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from inspect import signature
from typing import Any, TypeVar

from ovseg.checkpoint import first_line
from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.clip.compare import equal_weights
from ovseg.models.regions.base import RegionEncoder
from ovseg.structures import InputError

Encoder = TypeVar("Encoder", bound=RegionEncoder)


def built(kind: type[Encoder], clip: CLIPAdapter, options: Mapping[str, Any] | None, name: str) -> Encoder:
    """Build an encoder from its options.

    Args:
        kind: class of the encoder.
        clip: its CLIP.
        options: arguments of its constructor besides `clip`.
        name: what the user calls the options, for the error message.

    Raises:
        InputError: the encoder has no such option, or a value is not allowed.
    """
    options, allowed = options or {}, [*signature(kind).parameters][1:]
    if unknown := [key for key in options if key not in allowed]:
        raise InputError(f"{name} has no option {unknown[0]!r}; a {kind.__name__} takes {', '.join(allowed)}")
    for key, value in options.items():  # the command line does not know the types of these options
        if isinstance(value, float) and "int" in str(signature(kind).parameters[key].annotation).split(" | "):
            raise InputError(f"{name}.{key} is {value}; give a whole number")
    try:
        return kind(clip, **options)
    except TypeError as error:
        raise InputError(f"{name} has an option of the wrong type ({first_line(error)}); correct it") from error


def merged(saved: Encoder, clip: CLIPAdapter, options: Mapping[str, Any] | None, name: str) -> Encoder:
    """Return an encoder with the weights of a saved one, and with its options except for those that are given.

    Raises:
        InputError: the options do not fit the weights.
    """
    encoder = built(type(saved), clip, {**saved.settings(), **(options or {})}, name)
    encoder.load_own_weights(saved.own_weights(), "the saved encoder", saved.settings())
    return encoder


def crop_clip_of(clip: CLIPAdapter, source: str | Mapping[str, Any] | None) -> CLIPAdapter:
    """Return the CLIP of the crops, which shares its text tower with `clip`.

    Args:
        clip: the CLIP of the single pass.
        source: what a `CLIPAdapter` loads; or the `prompt_depth` and `shared_prompt` of a copy of `clip` whose weights
            are loaded later; or None for `clip` itself.

    Raises:
        InputError: the CLIP has another embedding space or image tower than `clip`.
    """
    if source is None:
        return clip
    # shared, because both encoders are compared with the same texts
    shared = [part for name, part in clip.clip.named_children() if name != "visual"]
    copies: dict[int, Any] = {id(part): part for part in (*shared, *clip.clip.parameters(recurse=False))}
    if isinstance(source, str):
        other = CLIPAdapter(source)
        _check_fit(clip, other, source)
        return copy.deepcopy(clip, memo={**copies, id(clip.visual): other.visual})
    if unknown := [*source.keys() - {"prompt_depth", "shared_prompt"}]:
        raise InputError(f"crop_clip has no option {unknown[0]!r}; give a checkpoint or the folder of a CLIP")
    crop_clip = copy.deepcopy(clip, memo=copies)
    crop_clip.visual.prompt = None
    if source.get("prompt_depth"):
        crop_clip.visual.add_prompt(source["prompt_depth"], source.get("shared_prompt", False))
    return crop_clip


def _check_fit(clip: CLIPAdapter, crop_clip: CLIPAdapter, source: str) -> None:
    """Check that two CLIPs embed into the same space and have image towers of the same architecture."""
    remedy = "use a CLIP that was adapted from the same one"
    if crop_clip.dim != clip.dim:
        raise InputError(
            f"crop_clip {source} embeds regions in {crop_clip.dim} dimensions, but the CLIP of the single pass in "
            f"{clip.dim}; {remedy}"
        )
    if not equal_weights(clip, crop_clip, image_tower=False):
        raise InputError(
            f"crop_clip {source} has another text tower than the CLIP of the single pass, so its features cannot be "
            f"compared with the same texts; {remedy}"
        )
    if _tower(clip) != _tower(crop_clip):
        raise InputError(
            f"crop_clip {source} has an image tower of another architecture than the CLIP of the single pass; {remedy}"
        )


def _tower(clip: CLIPAdapter) -> tuple[object, ...]:
    """Return what describes the architecture of an image tower: its modules, shapes of weights and normalisation."""
    shapes = {key: value.shape for key, value in clip.visual.visual.state_dict().items()}
    return repr(clip.visual.visual), shapes, clip.mean.flatten().tolist(), clip.std.flatten().tolist()
