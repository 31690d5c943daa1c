"""Region encoders in checkpoints of adapter training: class, settings and own weights, next to CLIP's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ovseg.checkpoint import ARCHITECTURES, Architecture, first_line, read_state, under
from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.regions.base import RegionEncoder, class_path, differences
from ovseg.models.regions.crops import CropEncoder
from ovseg.structures import InputError

NAME = "region_encoder"  # of the encoder in its task, and so in a checkpoint


class SavedEncoder(NamedTuple):
    """What a checkpoint says about its region encoder."""

    class_path: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]  # see `RegionEncoder.own_weights`


def description(encoder: RegionEncoder) -> Architecture:
    """Return what a checkpoint stores besides the encoder's own weights and CLIP's architecture."""
    return {"class_path": class_path(type(encoder)), "settings": encoder.settings()}


def build_encoder(clip: CLIPAdapter, make_encoder: Callable[[CLIPAdapter], RegionEncoder]) -> RegionEncoder:
    """Build a region encoder; it continues with its own weights if `clip` comes from a checkpoint of its class.

    A checkpoint without own weights of the encoder, for example one that tuned the image tower, allows new ones. An
    encoder of another class may `inherit` from that of the checkpoint.

    Raises:
        InputError: the checkpoint has own weights, but for other settings.
    """
    encoder = make_encoder(clip)
    if clip.checkpoint is None:
        return encoder
    saved = _read(clip.checkpoint)
    if class_path(type(encoder)) == saved.class_path:
        _load(encoder, saved, clip.checkpoint)
    elif encoder_class(saved.class_path) is not None:
        encoder.inherit(saved_encoder(clip))
    return encoder


def saved_encoder(clip: CLIPAdapter) -> RegionEncoder:
    """Return the region encoder that `clip` was trained in; a `CropEncoder` unless `clip` comes from a checkpoint.

    Raises:
        InputError: the class of the encoder is not imported, or the checkpoint does not describe one.
    """
    if clip.checkpoint is None:
        return CropEncoder(clip)
    saved = _read(clip.checkpoint)
    saved_class: Callable[..., RegionEncoder] | None = encoder_class(saved.class_path)
    if saved_class is None:
        raise InputError(
            f"{clip.checkpoint} needs the region encoder {saved.class_path}, which is not imported; in Python, import "
            "its module, then build an OpenVocabSegmenter and call save_pretrained"
        )
    try:
        encoder = saved_class(clip, **saved.settings)
    except InputError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _no_encoder(clip.checkpoint, error) from error
    _load(encoder, saved, clip.checkpoint)
    return encoder


def encoder_class(name: str) -> type[RegionEncoder] | None:
    """Return the class of a region encoder by name, only if it is already imported: a file may not import code."""
    classes: list[type[RegionEncoder]] = RegionEncoder.__subclasses__()
    for subclass in classes:
        classes += subclass.__subclasses__()
        if class_path(subclass) == name:
            return subclass
    return None


def _read(checkpoint: str) -> SavedEncoder:
    content = read_state(checkpoint)
    try:
        crops = {"class_path": class_path(CropEncoder), "settings": {}}  # older checkpoints do not name their encoder
        saved = content[ARCHITECTURES].get(NAME, crops)
        weights = under(content["state_dict"], f"{NAME}.")
        return SavedEncoder(str(saved["class_path"]), dict(saved["settings"]), weights)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _no_encoder(checkpoint, error) from error


def _no_encoder(checkpoint: str, error: Exception) -> InputError:
    return InputError(
        f"{checkpoint} does not describe a region encoder ({first_line(error)}); use a checkpoint of adapter training"
    )


def _load(encoder: RegionEncoder, saved: SavedEncoder, checkpoint: str) -> None:
    """Load own weights, and warn of settings that differ but fit them."""
    own, other = encoder.own_weights(), differences(encoder.settings(), saved.settings)
    shapes = {key: getattr(weight, "shape", None) for key, weight in saved.weights.items()}
    if saved.weights and shapes != {key: weight.shape for key, weight in own.items()}:
        raise InputError(
            f"{checkpoint} has trained weights for other settings of {type(encoder).__name__} "
            f"({other or 'they have other shapes'}); give the settings that it was trained with"
        )
    if saved.weights:
        encoder.load_state_dict(saved.weights, strict=False)
    if other:
        logging.getLogger(__name__).warning(
            "%s was trained with other settings of %s: using %s", checkpoint, type(encoder).__name__, other
        )
