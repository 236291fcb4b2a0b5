"""What a build says of itself, and what it refuses: by name, and before anything fails to load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rope_ext._C
from rope_ext import _built_for

ROOT = Path(__file__).parents[1]


def run(
    code: str, *, cwd: Path = Path(__file__).parent, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=120,
    )


def test_the_build_knows_its_torch_and_its_cuda():
    assert torch.__version__ == _built_for.TORCH
    info = rope_ext._C.build_info()
    assert _built_for.TORCH.startswith(info["torch"])
    assert (info["cuda"] is None) == (_built_for.CUDA is None)


@pytest.mark.skipif(_built_for.CUDA is not None, reason="this rope_ext is built with CUDA")
def test_a_build_without_cuda_says_how_to_get_one():
    """Called as the dispatcher would for a CUDA tensor, which few machines here could make."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    x, table = torch.ones(5, 2, 16), torch.ones(5, 8)
    message = r"built without CUDA, got .*\bCUDA build of torch and nvcc\b.*\bROPE_EXT_CUDA=1\b"
    with pytest.raises(NotImplementedError, match=f"^query must be on a CPU: .*{message}"):
        torch.ops.rope.apply.default.redispatch(cuda, x, None, table, table)
    with pytest.raises(NotImplementedError, match=f"^x must be on a CPU: .*{message}"):
        torch.ops.rope.rotate.default.redispatch(cuda, x, table, table)
    assert x.eq(1).all()


PRETEND = """
import sys, types
facts = types.ModuleType("rope_ext._built_for")
facts.TORCH, facts.CUDA = {torch!r}, {cuda!r}
sys.modules[facts.__name__] = facts
import torch
torch.version.cuda = {torch_cuda!r}
import rope_ext
"""


def test_another_minor_version_of_torch_is_refused_by_name():
    result = run(PRETEND.format(torch="2.99.0", cuda=None, torch_cuda=None))
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: rope_ext must run with the minor version of torch")
    assert "(2.99.0), got torch " + torch.__version__ in message


def test_a_build_with_cuda_is_refused_without():
    result = run(PRETEND.format(torch=torch.__version__, cuda="13.0", torch_cuda=None))
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: rope_ext was built with CUDA 13.0")
    assert "got torch " + torch.__version__ in message


def test_another_patch_version_of_torch_is_accepted():
    patch = ".".join([*torch.__version__.split(".")[:2], "99"])
    result = run(PRETEND.format(torch=patch, cuda=None, torch_cuda=None))
    assert result.returncode == 0, result.stderr


# What the setup script would build, with a torch and an nvcc that are said to be there.
CHOICE = """
import runpy, setuptools, sys, torch
torch.version.cuda = {torch_cuda!r}
torch.cuda._is_compiled = lambda: torch.version.cuda is not None
torch.cuda.is_available = lambda: False
setuptools.setup = lambda **arguments: print(
    "CUDA" if "csrc/ops/cuda.cpp" in arguments["ext_modules"][0].sources else "CPU"
)
sys.argv = ["setup.py"]
runpy.run_path("setup.py")
"""


def choice(tmp_path: Path, torch_cuda: str | None, nvcc: str | None, wanted: str) -> str:
    """Return what setup.py would build, or the message by which it refuses."""
    home = tmp_path / "toolkit"
    (home / "bin").mkdir(parents=True)
    if nvcc is not None:
        script = home / "bin" / "nvcc"
        script.write_text(
            "#!/bin/sh\n"
            f'case "$1" in --version) echo "Cuda compilation tools, release {nvcc}, V{nvcc}.1";;\n'
            f"*) echo '#$ TOP={home}';; esac\n"
        )
        script.chmod(0o755)
    code = CHOICE.format(torch_cuda=torch_cuda)
    result = run(code, cwd=ROOT, CUDA_HOME=str(home), ROPE_EXT_CUDA=wanted)
    return (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "wanted", "built"),
    [
        ("13.0", "13.0", "", "CUDA"),
        ("13.0", "13.0", "1", "CUDA"),
        ("13.0", "13.2", "1", "CUDA"),
        ("13.0", "13.0", "0", "CPU"),
        ("13.0", None, "", "CPU"),
        (None, "13.0", "", "CPU"),
        (None, None, "0", "CPU"),
    ],
)
def test_cuda_is_built_where_torch_and_nvcc_have_it(
    torch_cuda: str | None, nvcc: str | None, wanted: str, built: str, tmp_path: Path
):
    assert choice(tmp_path, torch_cuda, nvcc, wanted) == built


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "wanted", "message"),
    [
        (None, "13.0", "1", "ROPE_EXT_CUDA=1 needs a CUDA build of torch, got torch "),
        ("13.0", None, "1", "ROPE_EXT_CUDA=1 needs nvcc of CUDA 13.0, found none"),
        ("13.0", "12.8", "1", "must be of torch's CUDA major version (13.0), got release 12.8"),
        ("13.0", "12.8", "", "must be of torch's CUDA major version (13.0), got release 12.8"),
        ("13.0", "13.0", "yes", "ROPE_EXT_CUDA must be 0 or 1, got yes"),
    ],
)
def test_a_cuda_build_that_cannot_be_is_refused_by_name(
    torch_cuda: str | None, nvcc: str | None, wanted: str, message: str, tmp_path: Path
):
    assert message in choice(tmp_path, torch_cuda, nvcc, wanted)
