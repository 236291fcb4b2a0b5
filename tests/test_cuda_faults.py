"""The test of the CUDA tests: faults planted in copies of kernel and launcher must be caught."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CPP = ROOT / "tests" / "cpp"
CUDA = ROOT / "csrc" / "cuda"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = [
    *("-std=c++20", "-O1", "-ffp-contract=off", "-x", "c++"),
    *(f"-I{CPP / 'cuda_on_host'}", f"-I{ROOT / 'csrc'}"),
]
# A misaligned access traps, as on a GPU; of every access the test of traffic is told.
WATCHED = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", "-fsanitize=thread"]


class Fault(NamedTuple):
    """A line of a file in csrc/cuda, what becomes of it, and the test that must fail."""

    name: str
    file: str
    right: str
    wrong: str
    caught_by: str


HEADS = "Cuda.TurnsEveryNumberOfHeads"
SIZES = "Cuda.TurnsHeadsOfEverySize"
ANY = "Cuda.DependsOnNoOrderOfItsThreads"
BEYOND = "Cuda.DoesNothingInThreadsThatHaveNothingToDo"
WIDTHS = "Cuda.TakesTheWidestAccessThatEveryAddressAdmits"
FAR = "Cuda.ReachesElementsThatLieFarApart"
ROWS = "CudaPositions/*.NameRowsThatLieFarBehind"
TRAFFIC = "CudaTraffic.IsOneReadAndOneWriteOfWhatTurnsOrIsKept"
OUTSIDE = "CudaPositions/*.OutsideOfTheTableStopTheKernel"

FAULTS = [
    Fault(
        "the wrong sign of the sine",
        "kernel.cuh",
        "rotate(pair, by.cos[i], by.sin[i])",
        "rotate(pair, by.cos[i], -by.sin[i])",
        SIZES,
    ),
    Fault(
        "no inverse",
        "kernel.cuh",
        "work.problem.angles.inverse ? -by.sin[i] : by.sin[i]",
        "by.sin[i]",
        "Cuda.RoundsNoMoreThanTheDefinition",
    ),
    Fault(
        "the sine product fused",
        "kernel.cuh",
        "rotate(pair, by.cos[i], by.sin[i])",
        "Pair<Compute<T>>{fma(-pair.y, by.sin[i], multiply(pair.x, by.cos[i])),"
        " fma(pair.x, by.sin[i], multiply(pair.y, by.cos[i]))}",
        SIZES,
    ),
    Fault(
        "a tail of heads dropped", "kernel.cuh", "; heads > 0; load()", "; heads > 1; load()", HEADS
    ),
    Fault(
        "a head too many loaded",
        "kernel.cuh",
        "if (h < heads) accesses[h][a]",
        "accesses[h][a]",
        HEADS,
    ),
    Fault(
        "a head too many in a lane",
        "kernel.cuh",
        "lane < extra",
        "lane <= extra",
        HEADS,
    ),
    Fault(
        "a lane too many",
        "kernel.cuh",
        "lane < work.lanes[0] + work.lanes[1]",
        "lane <= work.lanes[0] + work.lanes[1]",
        BEYOND,
    ),
    Fault(
        "a column too many",
        "kernel.cuh",
        "place.column < work.columns",
        "place.column <= work.columns",
        TRAFFIC,
    ),
    Fault(
        "a turning column too many",
        "kernel.cuh",
        "place.column < work.turning_columns",
        "place.column <= work.turning_columns",
        SIZES,
    ),
    Fault(
        "angles read for every head",
        "kernel.cuh",
        "turn<Form>(accesses[h], by);",
        "turn<Form>(accesses[h], source.turn());",
        TRAFFIC,
    ),
    Fault(
        "a token too many",
        "kernel.cuh",
        "place.token < work.tokens ",
        "place.token <= work.tokens ",
        BEYOND,
    ),
    Fault(
        "y one element too near",
        "launch.cuh",
        "problem.interleaved ? 1 : problem.pairs,",
        "problem.interleaved ? 1 : problem.pairs - 1,",
        SIZES,
    ),
    Fault(
        "a column too few",
        "launch.cuh",
        "problem.pairs / Form::pairs",
        "problem.pairs / Form::pairs - 1",
        SIZES,
    ),
    Fault(
        "a tail of the rest dropped",
        "launch.cuh",
        "divide_up(rest, Form::elements * Form::accesses)",
        "rest / (Form::elements * Form::accesses)",
        SIZES,
    ),
    Fault(
        "the rest off by one",
        "kernel.cuh",
        "whole || element < problem.start",
        "whole || element <= problem.start",
        SIZES,
    ),
    Fault(
        "a tail of tokens dropped",
        "launch.cuh",
        "divide_up(work.tokens, tokens)",
        "std::max<int64_t>(1, work.tokens / tokens)",
        "CudaLaunch.IsOneForQueryAndKeyOnTheStream",
    ),
    Fault(
        "a tail of lanes dropped",
        "launch.cuh",
        "divide_up(lanes, heads)",
        "std::max<int64_t>(1, lanes / heads)",
        HEADS,
    ),
    Fault(
        "a tail of columns dropped",
        "launch.cuh",
        "divide_up(work.columns, columns))",
        "1)",
        "Cuda.TurnsHeadsWiderThanABlock",
    ),
    Fault(
        "a batch's sines for its cosines",
        "kernel.cuh",
        "own * angles.cos.strides.batch[d]",
        "own * angles.sin.strides.batch[d]",
        ANY,
    ),
    Fault(
        "a target where its source is",
        "kernel.cuh",
        "place.of(query.to.head, key.to.head)",
        "place.of(query.from.head, key.from.head)",
        ANY,
    ),
    Fault(
        "positions of the other width",
        "kernel.cuh",
        "return positions.wide ?",
        "return !positions.wide ?",
        ROWS,
    ),
    Fault(
        "a misaligned source",
        "launch.cuh",
        "alignment.add(view.source);",
        "",
        WIDTHS,
    ),
    Fault(
        "a misaligned head",
        "launch.cuh",
        "if (heads > 1) add(strides.head, bytes);",
        "",
        WIDTHS,
    ),
    Fault(
        "a misaligned table",
        "launch.cuh",
        "tables.add(table->data);",
        "",
        "Cuda.TakesTheWidestAccessThatItsTablesAdmit",
    ),
    Fault(
        "32 bits for a row of a table",
        "kernel.cuh",
        "batch + row * strides.token",
        "batch + static_cast<int32_t>(row * strides.token)",
        ROWS,
    ),
    Fault(
        "32 bits for a head",
        "kernel.cuh",
        "place.of(work.from_step[0], work.from_step[1])",
        "static_cast<int32_t>(place.of(work.from_step[0], work.from_step[1]))",
        FAR,
    ),
    Fault(
        "a position one too large",
        "kernel.cuh",
        "row < angles_.rows",
        "row <= angles_.rows",
        OUTSIDE,
    ),
    Fault("a negative position", "kernel.cuh", "assert(0 <= row && ", "assert(", OUTSIDE),
    Fault(
        "one position for all axes",
        "kernel.cuh",
        "      at += positions.axis;\n    }",
        "    }",
        SIZES,
    ),
    Fault(
        "a position without its sign",
        "kernel.cuh",
        "of_unit[i] * static_cast<Turns>(position)",
        "of_unit[i] * static_cast<uint32_t>(position)",
        SIZES,
    ),
    Fault("no scale", "kernel.cuh", "multiply(pair.y, scale)", "pair.y", ANY),
    Fault(
        "an infinite angle taken for a finite one",
        "kernel.cuh",
        "finite[i] &= position.finite;",
        "",
        ANY,
    ),
    Fault(
        "frequencies read for heads that are kept",
        "kernel.cuh",
        "place.head < place.of(problem.view[0].heads, problem.view[1].heads)",
        "true",
        TRAFFIC,
    ),
    Fault(
        "misaligned turns",
        "launch.cuh",
        "turns.add(frequencies.data);",
        "",
        "Cuda.TakesTheWidestAccessThatItsFrequenciesAdmit",
    ),
    Fault("a wrong quotient", "divisor.h", "/ divisor_) + 1", "/ divisor_)", ANY),
    Fault(
        "a launch too few",
        "launch.cuh",
        "work.first_token < work.tokens",
        "work.first_token == 0",
        "CudaLaunch.IsRepeatedBeyondTheLargestGrid",
    ),
]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], text=True, capture_output=True, timeout=120)


def compile_to(target: Path, source: Path) -> Path:
    watched = WATCHED if source.parent.name == "cuda" else []
    result = run(COMPILER, *FLAGS, *watched, "-c", source, "-o", target)
    assert result.returncode == 0, result.stderr
    return target


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The objects of the tests and of csrc/cuda as it is."""
    if COMPILER is None:
        pytest.skip("no C++ compiler is found by CXX or as g++")
    if run(COMPILER, "-x", "c++", "-E", "-include", "gtest/gtest.h", os.devnull).returncode != 0:
        pytest.skip("GoogleTest's headers are not installed")
    folder = tmp_path_factory.mktemp("right")
    tests = [CPP / "test_cuda.cpp", CPP / "test_cuda_traffic.cpp"]
    sources = [*tests, CUDA / "launch.cpp", *sorted(CUDA.glob("*.cu"))]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda path: compile_to(folder / f"{path.stem}.o", path), sources))


def outcome(objects: list[Path], tests: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "tests"
    linked = run(COMPILER, *objects, "-o", program, "-lgtest", "-lgtest_main", "-pthread")
    assert linked.returncode == 0, linked.stderr
    return run(program, f"--gtest_filter={tests}", "--gtest_fail_fast", "--gtest_brief=1")


def test_the_sources_as_they_are_pass(right: list[Path], tmp_path: Path):
    tests = {fault.caught_by for fault in FAULTS}
    result = outcome(right, ":".join(sorted(tests)), tmp_path)
    assert result.returncode == 0, result.stdout
    assert f"[  PASSED  ] {len(tests) + 2} tests." in result.stdout  # positions of two widths


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_planted_fault_is_caught(fault: Fault, right: list[Path], tmp_path: Path):
    for folder in ("core", "cuda"):
        shutil.copytree(ROOT / "csrc" / folder, tmp_path / folder)
    file = tmp_path / "cuda" / fault.file
    source = file.read_text()
    assert source.count(fault.right) == 1, f"{fault.file} must have the line of this fault once"
    file.write_text(source.replace(fault.right, fault.wrong))
    # First, so that the linker takes its copies of what all objects share.
    faulty = compile_to(tmp_path / "float32.o", tmp_path / "cuda" / "float32.cu")
    objects = [faulty, *(path for path in right if path.stem != "float32")]
    result = outcome(objects, fault.caught_by, tmp_path)
    assert result.returncode != 0, f"{fault.caught_by} did not see it"
