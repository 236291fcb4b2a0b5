"""Fixtures that every test may use, and the hypothesis profiles."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from devices import EMULATED, clear_fault, cuda_device, description, missing_cuda, torch_operators
from hypothesis import HealthCheck, settings
from inputs import CAPABILITIES

import rope_ext._C

# Of this folder's parent, benchmarks and examples are wanted, and not the package: last.
sys.path.append(str(Path(__file__).parents[1]))

settings.register_profile(
    "local",
    max_examples=200,
    deadline=None,
    # One device serves all examples of a test.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device, real or emulated")
    config.addinivalue_line("markers", "real_cuda(reason): on CUDA, needs a real device")
    config.addinivalue_line("markers", "own_kernels: needs none of torch's kernels on CUDA")
    config.addinivalue_line("markers", "sanitizer: what compute-sanitizer watches")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this CUDA device cannot show, one line of the summary for each reason."""
    if item.get_closest_marker("cuda") is None:
        return
    if missing := missing_cuda():
        if os.environ.get("ROPE_EXT_REQUIRE_CUDA") == "1":
            pytest.fail(f"ROPE_EXT_REQUIRE_CUDA=1 needs a CUDA device: {missing}")
        pytest.skip(missing)
    real_cuda = item.get_closest_marker("real_cuda")
    if EMULATED and real_cuda:
        pytest.skip(f"not on an emulated device: {real_cuda.args[0]}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which CPU paths and which CUDA device these results stand for."""
    available = rope_ext._C.cpu_capabilities()
    missing = [capability for capability in CAPABILITIES if capability not in available]
    terminalreporter.section("rope_ext")
    terminalreporter.line(
        f"CPU paths: {', '.join(available)}; not on this machine: {', '.join(missing) or 'none'}; "
        f"by default {rope_ext._C.cpu_capability()}; torch {torch.__version__}"
    )
    terminalreporter.line(f"CUDA: {description()}")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device that a test runs on: tensors are made there unless a test says otherwise."""
    if request.param == "cpu":
        yield torch.device("cpu")
        return
    cuda = request.getfixturevalue("cuda")
    own_kernels = request.node.get_closest_marker("own_kernels")
    with nullcontext() if own_kernels else torch_operators():
        yield cuda


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """A CUDA device as it is: of torch, an emulated one runs copies and fills alone."""
    device = cuda_device()
    with device:
        yield device
    clear_fault()


@pytest.fixture
def restored_capability() -> Iterator[None]:
    """Give the CPU path back after a test that chooses others."""
    capability = rope_ext._C.cpu_capability()
    yield
    rope_ext._C.set_cpu_capability(capability)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Give the number of threads back after a test that chooses others."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
