"""Compare the weights of two CLIPs."""

from __future__ import annotations

from torch import Tensor

from ovseg.models.clip.adapter import CLIPAdapter


def equal_weights(one: CLIPAdapter, other: CLIPAdapter, image_tower: bool) -> bool:
    """Return whether two CLIPs have equal weights, apart from mask prompts and the temperature.

    CLIPs with equal text towers share their embedding space; adaptation leaves the text tower unchanged.

    Args:
        image_tower: whether the image towers have to be equal, too.
    """
    skipped = ("logit_", "visual.prompt.") if image_tower else ("logit_", "visual.")
    ours, theirs = (_weights(clip, skipped) for clip in (one, other))
    return ours.keys() == theirs.keys() and all(
        ours[key].shape == theirs[key].shape and bool((ours[key] == theirs[key].to(ours[key])).all()) for key in ours
    )


def _weights(clip: CLIPAdapter, skipped: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: value for key, value in clip.clip.state_dict().items() if not key.startswith(skipped)}
