"""What a rotation is measured against: an in-place C++ scale and an empty operator.

The C++ sources beside this file are built on demand into ``build/benchmarks`` of the checkout.
"""

import functools
import os
from pathlib import Path

import ninja
import torch
from torch.utils import cpp_extension

SOURCES = Path(__file__).parent
ROOT = SOURCES.parents[1]
BUILD_DIRECTORY = ROOT / "build" / "benchmarks"

EMPTY_BARE = "empty_bare"
EMPTY_ORDINARY = "empty_ordinary"


@functools.cache
def load() -> None:
    """Register the operators of ``rope_bench``, after building them if their sources changed."""
    os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])
    BUILD_DIRECTORY.mkdir(parents=True, exist_ok=True)
    cpp_extension.load(
        name="rope_bench",
        sources=[str(source) for source in sorted(SOURCES.glob("*.cpp"))],
        extra_cflags=["-O3", "-fopenmp"],
        extra_ldflags=["-fopenmp"],
        extra_include_paths=[str(ROOT / "csrc")],
        build_directory=str(BUILD_DIRECTORY),
        is_python_module=False,
    )


def scale(query: torch.Tensor, key: torch.Tensor, capability: str, repeats: int) -> None:
    """Multiply query and key by -1 in place, `repeats` times: every bit pattern stays finite."""
    torch.ops.rope_bench.scale(query, key, -1.0, repeats, capability)


def read_write(query: torch.Tensor, key: torch.Tensor, capability: str, repeats: int) -> None:
    """Load query and key and store them unchanged, `repeats` times."""
    torch.ops.rope_bench.read_write(query, key, repeats, capability)
