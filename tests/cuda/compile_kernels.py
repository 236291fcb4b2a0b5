"""Compiles every kernel of csrc/cuda for every architecture that is shipped.

Needs nvcc, but neither torch nor a GPU. ``python tests/cuda/compile_kernels.py`` builds what has
changed, prints the table of kernels and writes it into docs/kernels.md.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "kernels"
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def tool(name: str) -> str | None:
    """Return a program of the CUDA toolkit: CUDA_HOME's, this environment's, or the system's."""
    home = os.environ.get("CUDA_HOME")
    places = [
        *([Path(home, "bin")] if home else []),
        *Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"),
        None,
        Path("/usr/local/cuda/bin"),
    ]
    return next(filter(None, (shutil.which(name, path=place) for place in places)), None)


def release(nvcc: str) -> str:
    """Return the full release of a compiler, such as 13.0.88."""
    said = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", said)[1]


def shipped() -> tuple[dict[str, bool], list[str]]:
    """Return what setup.py has nvcc do.

    Each architecture, such as 120 for 12.0, with whether its PTX is shipped too; and the flags.
    """
    tree = list(ast.walk(ast.parse((ROOT / "setup.py").read_text())))
    architectures = next(
        node.value.value
        for node in tree
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CUDA_ARCHITECTURES"
    )
    flags = next(
        ast.literal_eval(value)
        for node in tree
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "nvcc"
    )
    named = re.findall(r"(\d+)\.(\d)(\+PTX)?", architectures)
    return {major + minor: bool(ptx) for major, minor, ptx in named}, flags


def command(nvcc: str, source: Path) -> list[str]:
    """Return the call of nvcc for one source and all architectures, with warnings as errors."""
    architectures, flags = shipped()
    codes = [(number, f"sm_{number}") for number in architectures]
    codes += [(number, f"compute_{number}") for number, ptx in architectures.items() if ptx]
    ptxas = ["-v", "-Werror", "-warn-spills", "-warn-lmem-usage"]
    if source.stem != "float64":
        ptxas.append("-warn-double-usage")
    return [
        *(nvcc, "-std=c++20", *flags, "-Werror", "all-warnings", "-Xptxas", ",".join(ptxas)),
        *(f"-gencode=arch=compute_{number},code={code}" for number, code in codes),
        # The PTX and the code of each architecture stay beside the whole.
        *("--keep", "--keep-dir", str(BUILD.relative_to(ROOT))),
        *("-fatbin", "-o", str((BUILD / f"{source.stem}.fatbin").relative_to(ROOT))),
        str(source.relative_to(ROOT)),
    ]


def compile_source(nvcc: str, source: Path) -> None:
    """Compile one source and keep the compiler's report."""
    result = subprocess.run(
        command(nvcc, source),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if result.returncode != 0:
        raise SystemExit(f"nvcc refuses {source.relative_to(ROOT)}:\n{result.stdout}")
    (BUILD / f"{source.stem}.report").write_text(result.stdout)


def compile_all(nvcc: str) -> None:
    """Compile every source, unless nothing has changed since they were."""
    headers = sorted(
        path for folder in ("core", "cuda") for path in (ROOT / "csrc" / folder).glob("*.*")
    )
    made_of = hashlib.sha256(release(nvcc).encode())
    for source in SOURCES:
        made_of.update(" ".join(command("nvcc", source)).encode())
    for path in headers:
        made_of.update(path.name.encode() + path.read_bytes())
    stamp = BUILD / "made_of"
    if stamp.exists() and stamp.read_text() == made_of.hexdigest():
        return
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source: compile_source(nvcc, source), SOURCES))
    stamp.write_text(made_of.hexdigest())


def main() -> None:
    """Build, print the table and write it."""
    from kernels import read_kernels, table, with_table

    nvcc = tool("nvcc")
    if nvcc is None:
        raise SystemExit(
            "nvcc must be in CUDA_HOME, this environment or PATH, found none: see `make kernels`"
        )
    compile_all(nvcc)
    text = table(read_kernels(BUILD), release(nvcc))
    print(text)
    page = ROOT / "docs" / "kernels.md"
    page.write_text(with_table(page.read_text(), text))


if __name__ == "__main__":
    main()
