"""Builds rope_ext._C. The C++ standard and torch's ABI flags come from torch's own build_ext."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
except ImportError as error:
    raise SystemExit(
        "rope_ext is built against the torch that it will run with, and none is installed here: "
        "install torch first, then `pip install --no-build-isolation .`"
    ) from error

HEADERS = sorted(str(path) for pattern in ("*.h", "*.cuh") for path in Path("csrc").rglob(pattern))
# One per generation that torch is built for, and code that the next ones can translate.
CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def ask(*command: str) -> str:
    """Return all that a command prints."""
    return subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout


def find_nvcc() -> str | None:
    """Look where torch looks: CUDA_HOME, the path, the usual folder."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [Path(home, "bin")] if home else [None, Path("/usr/local/cuda/bin")]
    return next(filter(None, (shutil.which("nvcc", path=place) for place in places)), None)


def cuda_toolkit() -> str | None:
    """Return the folder of the CUDA toolkit to build with, or None to build without CUDA.

    ``ROPE_EXT_CUDA=1`` refuses to build without, ``ROPE_EXT_CUDA=0`` does not look for it.
    """
    wanted = os.environ.get("ROPE_EXT_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"ROPE_EXT_CUDA must be 0 or 1, got {wanted}")
    nvcc = find_nvcc()
    if wanted == "1" and torch.version.cuda is None:
        raise SystemExit(
            f"ROPE_EXT_CUDA=1 needs a CUDA build of torch, got torch {torch.__version__}"
        )
    if wanted == "1" and nvcc is None:
        raise SystemExit(
            f"ROPE_EXT_CUDA=1 needs nvcc of CUDA {torch.version.cuda}, "
            "found none in CUDA_HOME or PATH"
        )
    if wanted == "0" or torch.version.cuda is None or nvcc is None:
        return None
    release = re.search(r"release (\d+)\.\d+", ask(nvcc, "--version"))
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        raise SystemExit(
            f"nvcc must be of torch's CUDA major version ({torch.version.cuda}), got "
            f"{release[0] if release else 'an unknown release'} in {nvcc}; "
            "set CUDA_HOME to another toolkit, or ROPE_EXT_CUDA=0 to build without CUDA"
        )
    # The nvcc of the path may be a script that starts another.
    top = re.search(r"^#\$ TOP=(.+)$", ask(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.M)
    return os.path.realpath(top[1]) if top else None


TOOLKIT = cuda_toolkit()
if TOOLKIT:
    # torch reads both when it is imported or builds.
    os.environ["CUDA_HOME"] = TOOLKIT
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)

from torch.utils.cpp_extension import (  # noqa: E402
    BuildExtension,
    CppExtension,
    CUDAExtension,
)


def sources(*folders: str) -> list[str]:
    """Return the sources of some folders of csrc: ops has one of two for the CUDA key."""
    left_out = "without_cuda.cpp" if TOOLKIT else "cuda.cpp"
    return sorted(
        str(path)
        for folder in folders
        for path in Path("csrc", folder).iterdir()
        if path.suffix in (".cpp", ".cu") and path.name != left_out
    )


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


def extension() -> Extension:
    """Describe the one extension module, with CUDA or without."""
    flags = compile_flags()
    if TOOLKIT is None:
        return CppExtension(
            "rope_ext._C", sources("cpu", "ops"), depends=HEADERS, extra_compile_args=flags
        )
    return CUDAExtension(
        "rope_ext._C",
        sources("cpu", "cuda", "ops"),
        depends=HEADERS,
        define_macros=[("ROPE_EXT_CUDA", None)],
        extra_compile_args={"cxx": flags, "nvcc": ["-O3", "-lineinfo"]},
    )


class Build(BuildExtension):  # type: ignore[misc]
    """Keeps objects, in a folder for each torch: the next build compiles what has changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = f"build/torch-{torch.__version__}" + ("-cuda" if TOOLKIT else "")

    def run(self) -> None:
        """Build, and write down for which torch: to be read before anything is loaded."""
        super().run()
        folder = Path(self.get_ext_fullpath("rope_ext._C")).parent
        facts = {"TORCH": torch.__version__, "CUDA": torch.version.cuda if TOOLKIT else None}
        (folder / "_built_for.py").write_text(
            "".join(f"{name} = {value!r}\n" for name, value in facts.items())
        )


setup(ext_modules=[extension()], cmdclass={"build_ext": Build})
