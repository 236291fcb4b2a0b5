"""The arrows of the design, read from include and import lines: who may know whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each folder of csrc, and the folders that it may include from.
INCLUDES = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "ops": {"core", "cpu", "cuda", "ops"},
}
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|caffe2|pybind11)/|^Python\.h$")
X86_HEADER = re.compile(r"^([a-z]*mmintrin|immintrin|x86intrin|cpuid)\.h$")
X86_FILE = re.compile(r"avx|x86")

# Each part of the package, and the parts below it, which it may import.
IMPORTS = {
    "_built_for": set(),
    "frequencies": set(),
    "positions": set(),
    "reference": set(),
    "scaling": set(),
    "ops": {"_C", "_built_for"},
    "functional": {"ops"},
    "modules": {"frequencies", "positions", "scaling", "ops", "functional", "modules"},
    "plot": {"frequencies", "positions", "scaling"},
    "__main__": {"frequencies", "plot", "scaling"},
    "integrations": {"frequencies", "ops", "functional", "modules", "integrations"},
    "__init__": {
        *("_C", "frequencies", "positions", "reference", "scaling"),
        *("ops", "functional", "modules"),
    },
}
TORCH_ONLY = {"_built_for", "frequencies", "positions", "reference", "scaling"}


def sources(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})


def wrong_includes(csrc: Path) -> Iterator[str]:
    """Name every include line under ``csrc`` that crosses an arrow."""
    for path in sources(csrc):
        file = path.relative_to(csrc)
        folder = file.parts[0]
        for quote, header in re.findall(
            r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.M
        ):
            own = next(
                (place for place in (path.parent / header, csrc / header) if place.is_file()), None
            )
            if quote == '"' and own is not None:
                target = own.resolve().relative_to(csrc.resolve()).parts[0]
                if target not in INCLUDES[folder]:
                    yield f"{file} includes {header}: {folder} may not know {target}"
            elif quote == '"':
                yield f"{file} includes {header}, which is no file of csrc"
            elif TORCH_HEADER.search(header) and folder != "ops":
                yield f"{file} includes {header}: only ops may know torch"
            elif X86_HEADER.search(header) and not (folder == "cpu" and X86_FILE.search(file.name)):
                yield f"{file} includes {header}: only the x86 files of cpu may"
            elif header.startswith("cuda") and folder not in {"cuda", "ops"}:
                yield f"{file} includes {header}: only cuda and ops may know CUDA"


def imported(path: Path, package: Path) -> Iterator[str]:
    """Every module that a file of the package imports, by its full name."""
    folders = ["rope_ext", *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folders[: len(folders) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            if module == "rope_ext":
                yield from (f"rope_ext.{alias.name}" for alias in node.names)
            else:
                yield module


def wrong_imports(package: Path) -> Iterator[str]:
    """Name every import of the package that crosses an arrow."""
    parts = {*IMPORTS, "_C"}
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package)
        part = file.parts[0].removesuffix(".py")
        for module in imported(path, package):
            top, *rest = module.split(".")
            if top == "rope_ext":
                target = rest[0] if rest and rest[0] in parts else "__init__"
                if target not in IMPORTS[part]:
                    yield f"{file} imports {module}: {part} may not know {target}"
            elif part in TORCH_ONLY and top != "torch" and top not in sys.stdlib_module_names:
                yield f"{file} imports {module}: {part} may know torch alone"


def files_that_name_the_operators(package: Path) -> set[str]:
    """The files whose code, apart from what their docstrings show, says ``torch.ops``."""
    return {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.ops")
        or (
            isinstance(node, ast.ImportFrom)
            and f"{node.module}.ops" == "torch.ops"
            and "ops" in {alias.name for alias in node.names}
        )
        or (isinstance(node, ast.ImportFrom) and node.module == "torch.ops")
    }


def test_every_folder_of_csrc_has_its_place_and_its_sources():
    folders = {path.relative_to(ROOT / "csrc").parts[0] for path in sources(ROOT / "csrc")}
    assert folders == set(INCLUDES)


def test_includes_follow_the_arrows():
    assert list(wrong_includes(ROOT / "csrc")) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("core/rotate.h", "#include <torch/library.h>"),
        ("core/rotate.h", "#include <immintrin.h>"),
        ("core/rotate.h", '#include "../cpu/launch.h"'),
        ("cpu/launch.cpp", "#include <ATen/Parallel.h>"),
        ("cpu/launch.cpp", "  #  include <c10/util/Half.h>"),
        ("cpu/launch.cpp", '#include "../ops/describe.h"'),
        ("cpu/launch.cpp", "#include <immintrin.h>"),
        ("cpu/avx2.cpp", "#include <cuda_runtime.h>"),
        ("cuda/launch.cu", '#include "../cpu/launch.h"'),
        ("cuda/launch.cu", "#include <ATen/cuda/CUDAContext.h>"),
        ("ops/cpu.cpp", '#include "missing.h"'),
    ],
)
def test_an_include_against_the_arrows_is_seen(file: str, line: str, tmp_path: Path):
    for accepted in ("core/problem.h", "cpu/launch.h", "ops/describe.h"):
        (tmp_path / accepted).parent.mkdir(exist_ok=True)
        (tmp_path / accepted).write_text("#include <cstdint>\n")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text('#include "../core/problem.h"\n')
    assert list(wrong_includes(tmp_path)) == []
    (tmp_path / file).write_text(f"#pragma once\n{line}\n")
    assert len(list(wrong_includes(tmp_path))) == 1


def test_every_part_of_the_package_has_its_place():
    parts = {path.relative_to(ROOT / "rope_ext").parts[0] for path in ROOT.glob("rope_ext/**/*.py")}
    assert {part.removesuffix(".py") for part in parts} == set(IMPORTS)


def test_imports_follow_the_arrows():
    assert list(wrong_imports(ROOT / "rope_ext")) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("functional.py", "from rope_ext.modules import RotaryEmbedding"),
        ("functional.py", "from .modules import RotaryEmbedding"),
        ("ops.py", "from rope_ext import functional"),
        ("ops.py", "import rope_ext.functional"),
        ("modules.py", "def late():\n    from . import integrations"),
        ("reference.py", "from rope_ext.functional import rotate"),
        ("reference.py", "import numpy"),
        ("integrations/transformers.py", "from .. import reference"),
    ],
)
def test_an_import_against_the_arrows_is_seen(file: str, line: str, tmp_path: Path):
    (tmp_path / "integrations").mkdir()
    for part in ("__init__", "ops", "functional", "modules", "reference", "frequencies"):
        (tmp_path / f"{part}.py").write_text("import torch\nimport math\n")
    assert list(wrong_imports(tmp_path)) == []
    (tmp_path / file).write_text(line + "\n")
    assert len(list(wrong_imports(tmp_path))) == 1


def test_one_file_names_the_operators():
    assert files_that_name_the_operators(ROOT / "rope_ext") == {"ops.py"}


@pytest.mark.parametrize(
    "code",
    ["import torch\ntorch.ops.rope.apply", "from torch import ops", "from torch.ops import rope"],
)
def test_a_second_file_that_names_the_operators_is_seen(code: str, tmp_path: Path):
    (tmp_path / "modules.py").write_text('"""Calls torch.ops.rope.apply."""\n')
    assert files_that_name_the_operators(tmp_path) == set()
    (tmp_path / "modules.py").write_text(code)
    assert files_that_name_the_operators(tmp_path) == {"modules.py"}


@pytest.mark.parametrize("part", sorted(TORCH_ONLY))
def test_what_depends_on_torch_alone_works_before_anything_is_built(part: str, tmp_path: Path):
    code = f"import runpy; runpy.run_path({str(ROOT / 'rope_ext' / f'{part}.py')!r})"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)


def test_setup_py_is_short():
    assert len((ROOT / "setup.py").read_text().splitlines()) < 150
