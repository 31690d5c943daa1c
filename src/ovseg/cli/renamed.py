"""Flags and config keys that have been renamed. An old one is refused, and the error names the new one."""

from __future__ import annotations

# old dotted key → new one; the table "Renamed" of CHANGELOG.md has the same rows, with `--` in front
RENAMED: dict[str, str] = {
    "model.compile": "trainer.compile",
    "model.loss_weights": "model.loss",
    "model.repeated_texts": "model.loss.repeated_texts",
    "proposals": "proposer",
    "model.proposals": "model.proposer",
    "model.clip_batch": "model.region_encoder.regions_per_batch",
    "model.regions_per_pass": "model.region_encoder.regions_per_batch",
}


def new_name(key: str) -> str | None:
    """Return the current name of a renamed key, or of a key inside a renamed group; None for any other key.

    Args:
        key: dotted key of a flag or config, such as `model.proposals`; `init_args` may be part of it.
    """
    key = ".".join(part for part in key.split(".") if part != "init_args")
    return next((new for old, new in RENAMED.items() if key == old or key.startswith(f"{old}.")), None)
