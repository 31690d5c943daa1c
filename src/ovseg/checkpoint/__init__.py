"""Weights on disk: what a checkpoint of ours holds, loading it with an error that can be read, and released ones."""

from ovseg.checkpoint.digest import network_digest, tensor_digest, tensor_digests
from ovseg.checkpoint.files import (
    ARCHITECTURES,
    Architecture,
    check_and_load,
    check_target,
    first_line,
    hub_or_cache,
    load_weights,
    quiet,
    read_architecture,
    read_state,
    toy_weights,
    under,
)
from ovseg.checkpoint.official import UNTOLD, Official, Untold, read_official

__all__ = [
    "ARCHITECTURES",
    "UNTOLD",
    "Architecture",
    "Official",
    "Untold",
    "check_and_load",
    "check_target",
    "first_line",
    "hub_or_cache",
    "load_weights",
    "network_digest",
    "quiet",
    "read_architecture",
    "read_official",
    "read_state",
    "tensor_digest",
    "tensor_digests",
    "toy_weights",
    "under",
]
