"""No test reaches beyond this machine, and none writes to the user's caches."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import Any

import pytest

# before any import that reads them
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_cache = tempfile.TemporaryDirectory(prefix="ovseg-tests-")  # empty, so that no earlier code's results are tested
os.environ["OVSEG_CACHE"] = _cache.name

_LOOPBACK = {"localhost", "127.0.0.1", "::1", "", None}
_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo


def _refuse(host: Any) -> None:
    if isinstance(host, bytes):
        host = host.decode()
    if host not in _LOOPBACK and host != socket.gethostname():
        # not an OSError, which the caller could take for a machine without a network
        pytest.fail(f"a test tried to reach {host!r}; tests must not use the network", pytrace=True)


def _guarded_connect(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _refuse(address[0])
    _connect(self, address)


def _guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    _refuse(host)
    return _getaddrinfo(host, *args, **kwargs)


socket.socket.connect = _guarded_connect  # type: ignore[method-assign]
socket.getaddrinfo = _guarded_getaddrinfo


@pytest.fixture(autouse=True, scope="session")
def _two_threads() -> None:
    """Tiny tensors gain nothing from more threads, and with `pytest -n` the workers would fight for the cores."""
    import torch

    torch.set_num_threads(1 if os.environ.get("PYTEST_XDIST_WORKER") else 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first, so that of two processes none waits for it in the end."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
