"""Hashes of weights, which depend on their content and not on file names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from ovseg.checkpoint.files import Architecture


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of dtype, shape and bytes, a hash that most processors accelerate."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the hash of each tensor, computed in threads: hashing a large buffer releases the interpreter lock."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(tensors, pool.map(tensor_digest, tensors.values()), strict=True))


def network_digest(network: nn.Module, architecture: Architecture) -> str:
    """Return a hash of the architecture and of the names and bytes of all weights."""
    content = [architecture, tensor_digests(network.state_dict())]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
