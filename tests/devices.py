"""The CUDA device that tests get: a real one, an emulated one, or none and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

import rope_ext._C

try:
    import gpu_emu
except ImportError:
    gpu_emu = None

# A stand-in for CUDA's runtime under the real torch: it executes the PTX of our kernels and writes
# down what it is asked for. torch's own kernels it does not have.
EMULATED = gpu_emu is not None and gpu_emu.active


def missing_cuda() -> str | None:
    """Say why there is no CUDA device to test on."""
    if rope_ext._C.build_info()["cuda"] is None:
        return "rope_ext is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None


def cuda_device() -> torch.device:
    """Return the last device: where there are several it is not the current one."""
    return torch.device("cuda", torch.cuda.device_count() - 1)


def description() -> str:
    """Say which device the results of CUDA stand for."""
    if missing := missing_cuda():
        return f"not tested, {missing}"
    name = "an emulated device" if EMULATED else torch.cuda.get_device_name(cuda_device())
    return f"{name}, {cuda_device()} of {torch.cuda.device_count()}"


def torch_operators() -> AbstractContextManager[object]:
    """Let torch's own operators run on an emulated device too, computed on the CPU.

    They pass a dispatch mode there: what is recorded under one is not what runs without.
    """
    return gpu_emu.fallback() if EMULATED else nullcontext()


@contextmanager
def late_streams() -> Iterator[None]:
    """Let the current stream run behind the host, as late as can be on an emulated device."""
    if EMULATED:
        with gpu_emu.mode(async_=True):
            yield
    else:
        torch.cuda._sleep(10**8)
        yield


def clear_fault() -> None:
    """Bring an emulated device back after a fault, which would fail every test behind it."""
    if EMULATED:
        gpu_emu.clear_fault()
