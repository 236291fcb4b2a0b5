"""Fixtures that every test may use, and the hypothesis profiles."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from inputs import CAPABILITIES

import rope_ext._C

settings.register_profile("local", max_examples=200, deadline=None)
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which CPU paths these results stand for."""
    available = rope_ext._C.cpu_capabilities()
    missing = [capability for capability in CAPABILITIES if capability not in available]
    terminalreporter.section("rope_ext")
    terminalreporter.line(
        f"CPU paths: {', '.join(available)}; not on this machine: {', '.join(missing) or 'none'}; "
        f"by default {rope_ext._C.cpu_capability()}; torch {torch.__version__}"
    )


@pytest.fixture(params=["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


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
