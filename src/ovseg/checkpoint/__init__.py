"""Read, check, hash and load weight files."""

from ovseg.checkpoint.digest import network_digest, tensor_digest, tensor_digests
from ovseg.checkpoint.files import (
    ARCHITECTURES,
    Architecture,
    check_and_load,
    check_fit,
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

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "check_and_load",
    "check_fit",
    "check_target",
    "first_line",
    "hub_or_cache",
    "load_weights",
    "network_digest",
    "quiet",
    "read_architecture",
    "read_state",
    "tensor_digest",
    "tensor_digests",
    "toy_weights",
    "under",
]
