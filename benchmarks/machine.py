"""Where and with what a benchmark ran: the part of a record that makes its numbers comparable."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

import rope_ext
import rope_ext._C

_CACHES = ("L1d cache", "L2 cache", "L3 cache")


def _output(*command: str) -> str:
    """Return what a command prints, or nothing where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        env={**os.environ, "LC_ALL": "C"},
    )
    return result.stdout.strip() if result.returncode == 0 else ""


def processor() -> dict[str, object]:
    """Return the processor's model, cores and caches, and the instruction sets of the kernels."""
    lines = (line.partition(":") for line in _output("lscpu").splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    return {
        "model": facts.get("Model name", platform.processor() or platform.machine()),
        "family": facts.get("CPU family"),
        "model_number": facts.get("Model"),
        "cores": os.cpu_count(),
        "caches": {name: facts[name] for name in _CACHES if name in facts},
        "capabilities": rope_ext._C.cpu_capabilities(),
        "capability": rope_ext._C.cpu_capability(),
    }


def software() -> dict[str, object]:
    """Return versions, the commit measured, and the settings that move an allocator."""
    return {
        "rope_ext": rope_ext.__version__,
        "torch": torch.__version__,
        "build": rope_ext._C.build_info(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=40") or None,
        "allocator": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("MALLOC_") or name == "LD_PRELOAD"
        },
    }
