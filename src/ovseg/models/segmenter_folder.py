"""The folder of a saved segmenter: `segmenter.yaml` with its settings, `proposer/`, `clip/`, and the region encoder.

It may also hold `fast/`, a second region encoder for the same CLIP; `FOLDER/fast` names the segmenter with that one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors.torch import save_file

from ovseg.checkpoint import check_target, first_line, read_state, toy_weights
from ovseg.models.clip.adapter import CLIPAdapter
from ovseg.models.clip.compare import equal_weights
from ovseg.models.clip.files import WEIGHTS, check_clip_target
from ovseg.models.proposals.base import Proposer
from ovseg.models.proposals.queries import CONFIG as PROPOSER
from ovseg.models.proposals.queries import MaskProposer
from ovseg.models.regions.base import RegionEncoder, class_path, differences
from ovseg.models.regions.cascade import CascadeEncoder
from ovseg.models.regions.crops import CropEncoder
from ovseg.models.regions.saved import encoder_class
from ovseg.models.regions.single_pass import SinglePassEncoder
from ovseg.structures import InputError

SETTINGS = "segmenter.yaml"
ENCODER_WEIGHTS = "region_encoder.safetensors"
FAST = "fast"
EncoderFactory = Callable[[CLIPAdapter], RegionEncoder]


class SegmenterParts(NamedTuple):
    """The parts and settings of a saved segmenter."""

    proposer: Proposer
    region_encoder: RegionEncoder
    settings: dict[str, Any]  # further arguments of an OpenVocabSegmenter


def check_segmenter_target(folder: Path) -> None:
    """Refuse to write into a folder that holds anything other than a saved segmenter, see `check_target`."""
    check_target(folder, SETTINGS)
    check_target(folder / FAST, SETTINGS)
    check_target(folder / "proposer", PROPOSER)
    check_clip_target(folder / "clip")


def read_segmenter(name_or_path: str | Path, make_encoder: EncoderFactory | None = None) -> SegmenterParts:
    """Read a folder that `write_segmenter` wrote, or `toy`.

    Args:
        name_or_path: the folder, or `toy`; followed by `/fast` for its fast region encoder.
        make_encoder: creates the region encoder from CLIP; by default the saved one. An encoder of the saved class gets
            its saved weights; other settings than the saved ones are logged as a warning. An encoder of another class
            may `inherit` from the saved one.

    Raises:
        InputError: there is no segmenter, or a file is damaged or does not fit.
    """
    folder, fast = _split_fast(Path(name_or_path))
    if not (folder / SETTINGS).is_file():
        reason = f"it has no {SETTINGS}" if folder.exists() else "it does not exist"
        raise InputError(
            f"no segmenter in {folder}: {reason}; make one with `ovseg bundle "
            "--proposer PROPOSALS.ckpt --clip ADAPTER.ckpt --out FOLDER`, or use `toy`"
        )
    if not (folder / "clip" / WEIGHTS).is_file():  # CLIPAdapter would start from random weights
        raise InputError(f"{folder / 'clip'} has no weights of CLIP ({WEIGHTS}); fetch the segmenter again")
    if fast and not (folder / FAST / SETTINGS).is_file():
        raise InputError(
            f"{folder} has no fast region encoder; add one with `ovseg bundle --proposer PROPOSALS.ckpt --clip "
            "ADAPTER.ckpt --fast SINGLE_PASS.ckpt --out FOLDER`, or leave out fast"
        )
    proposer, clip = MaskProposer(str(folder / "proposer")), CLIPAdapter(str(folder / "clip"))
    try:
        settings: dict[str, Any] = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
        fill = settings.pop("fill", None)  # of the crops, in segmenters saved before region encoders could be chosen
        if fast:
            folder, fill = folder / FAST, None
            settings |= yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
        saved = settings.pop("region_encoder", {"class_path": class_path(CropEncoder), "init_args": {}})
        options = saved.get("init_args", {}) | ({} if fill is None else {"fill": fill})
        name = str(saved["class_path"])
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise no_settings(folder, error) from error
    if make_encoder is None:
        if (saved_encoder := _saved_encoder(name, options, clip, folder)) is None:
            raise InputError(
                f"{folder / SETTINGS} needs the region encoder {name}, which is not imported; in Python, import its "
                f"module first; on the command line, give --model.region_encoder {name} and its settings"
            )
        return SegmenterParts(proposer, saved_encoder, settings)
    try:
        region_encoder = make_encoder(clip)
    except TypeError as error:
        raise InputError(f"the region encoder cannot be built: {first_line(error)}; choose another") from error
    if class_path(type(region_encoder)) == name:
        _load_own_weights(region_encoder, folder / ENCODER_WEIGHTS, options)
        _warn_of_other_settings(region_encoder, options, folder)
    elif (saved_encoder := _saved_encoder(name, options, clip, folder)) is not None:
        region_encoder.inherit(saved_encoder)
        if not isinstance(saved_encoder, SinglePassEncoder):
            _warn_of_random_prompts(region_encoder, folder)
    return SegmenterParts(proposer, region_encoder, settings)


def write_segmenter(folder: Path, parts: SegmenterParts) -> None:
    """Write the networks and settings into a new folder or over an earlier segmenter.

    Raises:
        InputError: the folder holds anything other than a segmenter, or the proposer cannot be saved.
    """
    check_segmenter_target(folder)
    proposer, encoder = parts.proposer, parts.region_encoder
    if not isinstance(proposer, MaskProposer):
        raise InputError(f"a segmenter with {type(proposer).__name__} cannot be saved; use a MaskProposer")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text("", encoding="utf-8")  # empty settings mark an incomplete folder
    proposer.save_pretrained(folder / "proposer")
    encoder.clip.save_pretrained(folder / "clip")
    for name in (SETTINGS, ENCODER_WEIGHTS):  # of an earlier segmenter, which may have had another CLIP
        (folder / FAST / name).unlink(missing_ok=True)
    _write_encoder(folder, encoder, parts.settings)


def write_fast(folder: Path, encoder: RegionEncoder, name: str) -> None:
    """Add a fast region encoder to a segmenter that `write_segmenter` wrote.

    Args:
        folder: the segmenter.
        encoder: the region encoder; its CLIP must be the segmenter's.
        name: where the encoder comes from, for the error.

    Raises:
        InputError: the CLIPs differ.
    """
    check_same_clip(CLIPAdapter(str(folder / "clip")), encoder.clip, name)
    (folder / FAST).mkdir(exist_ok=True)
    _write_encoder(folder / FAST, encoder, {})


def check_same_clip(clip: CLIPAdapter, other: CLIPAdapter, name: str) -> None:
    """Check that two CLIPs are equal, except for mask prompts and the temperature.

    Raises:
        InputError: they are not.
    """
    if not equal_weights(clip, other, image_tower=True):
        raise InputError(
            f"{name} has another CLIP than the segmenter, but the fast region encoder shares it; train it from that "
            "CLIP with --model.train prompt, or bundle it as a segmenter by itself"
        )


def _write_encoder(folder: Path, encoder: RegionEncoder, settings: Mapping[str, Any]) -> None:
    """Write a region encoder without its CLIP, then the settings, which complete a folder."""
    (folder / ENCODER_WEIGHTS).unlink(missing_ok=True)
    if weights := encoder.own_weights():
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / ENCODER_WEIGHTS)
    chosen = {"class_path": class_path(type(encoder)), "init_args": encoder.settings()}
    text = yaml.safe_dump({**settings, "region_encoder": chosen}, sort_keys=False)
    (folder / SETTINGS).write_text(text, encoding="utf-8")


def _split_fast(path: Path) -> tuple[Path, bool]:
    """Return the folder of a segmenter, and whether its fast region encoder is asked for."""
    fast = path.name == FAST and not (path / "clip").is_dir()
    folder = path.parent if fast else path
    return (toy_weights() if str(folder) == "toy" else folder), fast


def no_settings(folder: Path, error: Exception) -> InputError:
    """Return the error for settings that cannot be used."""
    return InputError(f"{folder / SETTINGS} holds no valid settings ({first_line(error)}); bundle it again")


def _saved_encoder(name: str, options: dict[str, Any], clip: CLIPAdapter, folder: Path) -> RegionEncoder | None:
    """Build the saved region encoder with its weights; return None if its class is not imported."""
    saved_class: Callable[..., RegionEncoder] | None = encoder_class(name)
    if saved_class is None:
        return None
    try:
        encoder = saved_class(clip, **options)
    except InputError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise no_settings(folder, error) from error
    _load_own_weights(encoder, folder / ENCODER_WEIGHTS, options)
    return encoder


def _load_own_weights(encoder: RegionEncoder, path: Path, saved: Mapping[str, Any]) -> None:
    """Load the weights of a region encoder that has the class of the saved one, but maybe other settings."""
    weights = read_state(path) if path.is_file() else {}
    if weights or encoder.own_weights():
        encoder.load_own_weights(weights, path, saved)


def _warn_of_random_prompts(encoder: RegionEncoder, folder: Path) -> None:
    """Warn of prompt keys for which a segmenter has no trained values."""
    single_pass = encoder.single_pass if isinstance(encoder, CascadeEncoder) else encoder
    if isinstance(single_pass, SinglePassEncoder) and single_pass.prompt_keys is not None:
        logging.getLogger(__name__).warning(
            "%s has no prompt keys, so those of %s are random; set prompt_keys to 0, or add trained ones with "
            "`ovseg bundle --fast` and use %s/fast",
            folder,
            type(encoder).__name__,
            folder,
        )


def _warn_of_other_settings(encoder: RegionEncoder, saved: Mapping[str, Any], folder: Path) -> None:
    """Warn that a region encoder has other settings than those that the segmenter was saved with."""
    if other := differences(encoder.settings(), saved):
        logging.getLogger(__name__).warning(
            "%s was saved with other settings of %s: using %s", folder, type(encoder).__name__, other
        )
