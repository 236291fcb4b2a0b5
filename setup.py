"""Builds rope_ext._C. The C++ standard and torch's ABI flags come from torch's own build_ext."""

import os
import platform
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        "rope_ext is built against the torch that it will run with, and none is installed here: "
        "install torch first, then `pip install --no-build-isolation .`"
    ) from error

SOURCES = sorted(
    str(path) for folder in ("cpu", "ops") for path in Path("csrc", folder).glob("*.cpp")
)
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))


def compile_flags() -> list[str]:
    """Only the fused operations that the source names: the same bits on every machine."""
    if sys.platform == "win32":
        return ["/O2", "/fp:precise"]
    flags = ["-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
    if platform.system() == "Linux" and "clang" not in os.environ.get("CXX", ""):
        # Compiled for OpenMP, not linked with it: torch's runtime, already loaded, serves both.
        # It is GCC's, and clang calls another: without it, kernels run on one thread.
        flags.append("-fopenmp")
    return flags


class Build(BuildExtension):  # type: ignore[misc]
    """Keeps objects, in a folder for each torch: the next build compiles what has changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = f"build/torch-{torch.__version__}"


setup(
    ext_modules=[
        CppExtension("rope_ext._C", SOURCES, depends=HEADERS, extra_compile_args=compile_flags())
    ],
    cmdclass={"build_ext": Build},
)
