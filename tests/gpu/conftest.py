"""Every test here runs twice: on a simulated GPU, on any machine, and on a real one (`pytest -m gpu`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from tests.gpu.pretend import pretend_gpu

NONE = "no GPU here; run `pytest -m gpu tests/gpu` on a machine with one"


class GPU:
    """The interface of a real and a simulated GPU."""

    device = "cuda"

    def __init__(self, never_waits: AbstractContextManager[object]) -> None:
        self._never_waits = never_waits

    def never_waits(self) -> AbstractContextManager[object]:
        """Raise if anything inside makes the host wait for the device."""
        return self._never_waits


@contextmanager
def full_precision() -> Iterator[None]:
    """Disable TF32, which is too coarse for the golden numbers of fp32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> Iterator[GPU]:
    if request.param == "pretended":
        with pretend_gpu() as pretended:
            yield GPU(pretended.never_waits())
    else:
        if not torch.cuda.is_available():
            pytest.skip(NONE)
        with full_precision():
            yield GPU(_sync_is_an_error())


@pytest.fixture
def real_gpu() -> Iterator[torch.device]:
    """Return a real GPU, for what a simulated one lacks: half precision and a backward pass."""
    if not torch.cuda.is_available():
        pytest.skip(NONE)
    with full_precision():
        yield torch.device("cuda")
