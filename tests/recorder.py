"""What reaches PyTorch's dispatcher, and what allocators and a CUDA device are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from devices import EMULATED, gpu_emu
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Keeps the name of every operator that reaches the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def allocations(call: Callable[[], object]) -> list[int]:
    """The size in bytes of every allocation on the default device during ``call``.

    The trace lists each allocation by itself. The profiler's tables add allocations and releases
    up, so that a temporary copy would not show there.
    """
    if EMULATED and torch.get_default_device().type == "cuda":
        return device_work(call).allocations
    return _allocations(_trace(call, ProfilerActivity.CPU))


@dataclass
class DeviceWork:
    """What a CUDA device was asked for."""

    kernels: list[str]
    streams: list[int]  # of each kernel: equal numbers, equal streams
    copies: list[str]  # and fills
    allocations: list[int]  # in bytes
    synchronisations: list[str]


def device_work(call: Callable[[], object]) -> DeviceWork:
    """Watch what ``call`` asks of a CUDA device."""
    if not EMULATED:
        return _device_work_of(_trace(call, ProfilerActivity.CPU, ProfilerActivity.CUDA))
    with gpu_emu.record() as log:
        call()
    return DeviceWork(
        kernels=[launch["name"] for launch in log.launches],
        streams=[launch["handle"] for launch in log.launches],
        copies=[copy["op"] for copy in log.of("memcpy", "memset")],
        allocations=[allocation["bytes"] for allocation in log.mallocs],
        synchronisations=[sync["op"] for sync in log.syncs],
    )


_MEASURED = "the measured call"


def _trace(call: Callable[[], object], *activities: ProfilerActivity) -> list[dict]:
    """The events of the profiler's trace."""
    with (
        profile(activities=activities, profile_memory=True) as profiler,
        record_function(_MEASURED),
    ):
        result = call()
    del result
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        return json.loads(trace.read_text())["traceEvents"]


def _allocations(events: list[dict]) -> list[int]:
    device_type = {"cpu": 0, "cuda": 1}[torch.get_default_device().type]  # as c10 counts them
    changes = [event["args"] for event in events if event["name"] == "[memory]"]
    sizes = [change["Bytes"] for change in changes if change["Device Type"] == device_type]
    return [size for size in sizes if size > 0]


def _device_work_of(events: list[dict]) -> DeviceWork:
    """Count what happened on the device, and the host's waiting during the call alone."""
    measured = next(event for event in events if event["name"] == _MEASURED)
    end = measured["ts"] + measured["dur"]
    kernels = [event for event in events if event.get("cat") == "kernel"]
    return DeviceWork(
        kernels=[kernel["name"] for kernel in kernels],
        streams=[kernel["args"]["stream"] for kernel in kernels],
        copies=[e["name"] for e in events if e.get("cat") in ("gpu_memcpy", "gpu_memset")],
        allocations=_allocations(events),
        synchronisations=[
            event["name"]
            for event in events
            if event.get("cat") == "cuda_runtime"
            and "Synchronize" in event["name"]
            and measured["ts"] <= event["ts"] <= end
        ],
    )
