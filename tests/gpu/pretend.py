"""A simulated GPU: tensors that claim to be on `cuda:0`, compute on the CPU and refuse to be mixed with CPU tensors.

It detects tensors created on the wrong device and counts how often the host waits for the device, on any machine. It
computes real numbers, so code that depends on values runs as well. Half precision and a backward pass are missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.backends import cudnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda:0")
SIZED_BY_VALUES = {"nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "bincount"}
READS = {"_local_scalar_dense", "equal", "is_nonzero"}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}
MOVES = {"_to_copy", "copy_", "_copy_from"}


class There(Tensor):
    """A tensor on the simulated GPU.

    Args:
        here: the CPU tensor that holds its values.
    """

    here: Tensor
    gpu: ClassVar[PretendGPU]

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        wrapper: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=GPU
        )
        wrapper.here = here.detach()
        return wrapper

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.tolist:  # torch refuses it for subclasses
            return args[0].cpu().tolist()
        if function is Tensor.numpy:
            raise TypeError("a tensor on a GPU has no numpy array; copy it to the CPU first")
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return There.gpu.__torch_dispatch__(
            function, types, args, kwargs
        )  # reached in threads, which have no dispatch mode


class PretendGPU(TorchDispatchMode):
    """Run every operation on the CPU; `waits` counts, by name, those for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [leaf for leaf in leaves if isinstance(leaf, There)]
        here = [leaf for leaf in leaves if not isinstance(leaf, There)]
        on_gpu, kwargs = bool(there), dict(kwargs or {})
        if kwargs.get("device") is not None:
            on_gpu = torch.device(kwargs["device"]).type == GPU.type
            kwargs["device"] = "cpu"
        if there and name not in MOVES and self._is_mixed(name, args, here):
            raise RuntimeError(f"{function} got tensors on two devices, of shapes {[leaf.shape for leaf in leaves]}")
        if self._waits(name, args, kwargs, bool(there), on_gpu, here):
            self.waits[name] += 1
        result = function(*tree_map(_here, args), **tree_map(_here, kwargs))
        if not on_gpu:
            return result
        wrappers = {id(leaf.here): leaf for leaf in there}  # tensors changed in place keep their wrapper
        return tree_map(lambda leaf: wrappers[id(leaf)] if id(leaf) in wrappers else _there(leaf), result)

    @contextmanager
    def never_waits(self) -> Iterator[None]:
        """Fail if the host waits for the device inside."""
        before = self.waits.copy()
        yield
        assert not (waits := self.waits - before), f"the host waits for {dict(waits)}"

    @staticmethod
    def _is_mixed(name: str, args: Any, here: list[Tensor]) -> bool:
        """Return whether CPU tensors are mixed with GPU tensors where torch would refuse it."""
        if name in INDEXES:  # torch moves indices to the GPU
            return not isinstance(args[0], There) or any(leaf.ndim for leaf in here if leaf is args[-1])
        return any(leaf.ndim for leaf in here) or (bool(here) and name in ("cat", "stack"))

    @staticmethod
    def _waits(name: str, args: Any, kwargs: Any, has_gpu_input: bool, on_gpu: bool, here: list[Tensor]) -> bool:
        """Return whether `torch.cuda.set_sync_debug_mode` would report a wait."""
        if name in ("_to_copy", "copy_"):
            return has_gpu_input + on_gpu >= 1 and bool(here or not on_gpu) and not kwargs.get("non_blocking", False)
        if name in INDEXES and has_gpu_input:
            indices = [index for index in args[1] if index is not None]
            return any(index.dtype in (torch.bool, torch.uint8) or not isinstance(index, There) for index in indices)
        return has_gpu_input and (name in SIZED_BY_VALUES or name in READS)


def _here(leaf: Any) -> Any:
    return leaf.here if isinstance(leaf, There) else leaf


def _there(leaf: Any) -> Any:
    return There(leaf) if isinstance(leaf, Tensor) else leaf


@contextmanager
def pretend_gpu() -> Iterator[PretendGPU]:
    """Make `.to("cuda")` and `device="cuda"` work on any machine."""
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter that is moved must become a `There`
    torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]  # `torch.tensor(…, device="cuda")`
    no_cuda = patch("torch.cuda._lazy_init"), patch("torch.cuda.current_device", lambda: 0)
    no_kernels_of_cuda = sdpa_kernel(SDPBackend.MATH), cudnn.flags(enabled=False)
    try:
        with ExitStack() as stack:
            for context in (*no_cuda, *no_kernels_of_cuda):
                stack.enter_context(context)
            There.gpu = stack.enter_context(PretendGPU())
            yield There.gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(False)  # type: ignore[attr-defined]
        torch.__future__.set_swap_module_params_on_conversion(swapped)
