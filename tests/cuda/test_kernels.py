"""What is claimed of the CUDA kernels, held to what the compiler made of them: no GPU is needed."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from assembly import Code, Instruction, in_flight, ptx_instruction, sass_instruction
from compile_kernels import BUILD, ROOT, SOURCES, compile_all, release, shipped, tool
from kernels import ACCESS_BYTES, ELEMENT_BYTES, Form, Kernel, read_kernels, table, with_table

MOVES = {"ld", "st", "mov", "selp", "setp", "neg", "cvt"}
WAITS = {"atom", "red", "bar", "barrier", "shfl", "fence", "membar"}
REGISTERS = 64
LOADS_IN_FLIGHT = 4


def needed(name: str) -> str:
    """Return a program of the toolkit, or skip for want of it; ROPE_EXT_REQUIRE_NVCC=1 fails."""
    program = tool(name)
    if program is None:
        reason = f"the compiled kernels need {name}: `make kernels` brings it, or set CUDA_HOME"
        if os.environ.get("ROPE_EXT_REQUIRE_NVCC") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


@pytest.fixture(scope="module")
def nvcc() -> str:
    return needed("nvcc")


@pytest.fixture(scope="module")
def kernels(nvcc: str) -> list[Kernel]:
    compile_all(nvcc)
    return read_kernels(BUILD)


@pytest.fixture(scope="module")
def disassembled(kernels: list[Kernel]) -> list[Kernel]:
    return read_kernels(BUILD, needed("nvdisasm"))


def wrong_element_accesses(kernel: Kernel) -> Iterator[str]:
    """Elements move in whole accesses, and never by way of the read-only cache."""
    plain = re.compile(r"(ld|st)\.global(\.v[24])?\.[a-z]\d+")
    for access in kernel.elements:
        if access.global_bytes != kernel.form.width or not plain.fullmatch(access.opcode):
            yield str(access)
    counts = [
        sum(access in part for access in kernel.elements if access.loads == loads)
        for part in (set(kernel.parts.before), set(kernel.parts.loop))
        for loads in (True, False)
    ]
    first_loads, first_stores, loads, stores = counts
    if not (first_stores == 0 < first_loads and loads == stores > 0):
        yield f"before the loop, then in it, loads and stores: {counts}"


def wrong_angle_accesses(kernel: Kernel) -> Iterator[str]:
    """Before the loop a thread reads the tables as wide as may be, and at most one position."""
    tables = sorted(size for sizes in kernel.form.table_accesses().values() for size in sizes)
    names = ["cos", "sin", "positions"]
    if len(kernel.cos_sin_positions) != len(names):
        yield f"{len(kernel.cos_sin_positions)} pointers beside those of query and key"
    for name, accesses in zip(names, kernel.cos_sin_positions, strict=False):
        expected = [4, 8] if name == "positions" else tables
        sizes = sorted(access.global_bytes for access in accesses)
        if sizes != expected:
            yield f"{name} in accesses of {sizes} bytes, not {expected}"
        for access in accesses:
            if not access.loads or access not in kernel.parts.before:
                yield f"{name}: {access} is no load before the loop"


def other_memory(kernel: Kernel) -> Iterator[str]:
    """Global memory and parameters: nothing local, nothing shared, nothing to wait for."""
    for instruction in kernel.ptx:
        space = instruction.opcode.partition(".")[2].partition(".")[0]
        moves = instruction.name in ("ld", "st") and space not in ("param", "global")
        if moves or instruction.name in WAITS:
            yield str(instruction)


def calls_of(code: Code) -> list[Instruction]:
    return [instruction for instruction in code if instruction.name in ("call", "CALL")]


def wrong_calls(kernel: Kernel) -> Iterator[str]:
    """One call, outside any loop: the assertion that a position is a row."""
    calls = calls_of(kernel.ptx)
    if len(calls) != 1 or not calls[0].operands.startswith("__assertfail,"):
        yield f"calls: {[call.operands for call in calls]}"
    if kernel.ptx.around(calls.__contains__).loop:
        yield "a call in a loop"


def divisions(kernel: Kernel) -> Iterator[str]:
    return (
        str(instruction) for instruction in kernel.ptx if instruction.name in ("div", "rem", "rcp")
    )


def wrong_arithmetic(kernel: Kernel) -> Iterator[str]:
    """Two products rounded and two fused for each pair, as the source names them."""
    compute = kernel.form.compute_type
    floating = [
        instruction
        for instruction in kernel.ptx
        if re.search(r"\.(b?f(16|32|64)|tf32)(x2)?(\.|$)", instruction.opcode)
    ]
    arithmetic = Counter(
        instruction.opcode for instruction in floating if instruction.name not in MOVES
    )
    expected = {f"{name}.rn.{compute}": 2 * kernel.turned for name in ("mul", "fma")}
    if arithmetic != expected:
        yield f"{dict(arithmetic)}, not {expected}"
    if compute != "f64":
        yield from (str(instruction) for instruction in floating if "f64" in instruction.opcode)


def few_in_flight(kernel: Kernel) -> Iterator[str]:
    """Of the widest accesses several are under way, before the loop and in it."""
    if kernel.form.width == ACCESS_BYTES and min(kernel.in_flight) < LOADS_IN_FLIGHT:
        yield f"{kernel.in_flight} loads before the loop and in it"


def wrong_resources(kernel: Kernel) -> Iterator[str]:
    used = kernel.resources
    spills = used.stack + used.spill_stores + used.spill_loads
    if used.registers > REGISTERS or spills or used.barriers:
        yield str(used)


CHECKS = [
    wrong_element_accesses,
    wrong_angle_accesses,
    other_memory,
    wrong_calls,
    divisions,
    wrong_arithmetic,
    few_in_flight,
    wrong_resources,
]


def sass_that_differs(kernel: Kernel) -> Iterator[str]:
    """The GPU executes the accesses, the products and the one call of the PTX, nothing local."""
    for stores in (False, True):
        ptx, sass = (
            Counter(
                access.global_bytes
                for access in code
                if access.global_bytes and access.stores == stores
            )
            for code in (kernel.ptx, kernel.sass)
        )
        if ptx != sass:
            yield f"{'stores' if stores else 'loads'} of {dict(sass)}, not {dict(ptx)} bytes"
    names = Counter(instruction.name for instruction in kernel.sass)
    single, double = (0, 2) if kernel.form.compute_type == "f64" else (2, 0)
    expected = {"FMUL": single, "FFMA": single, "DMUL": double, "DFMA": double}
    for name, each in expected.items():
        if names[name] != each * kernel.turned:
            yield f"{names[name]} {name}, not {each * kernel.turned}"
    for instruction in kernel.sass:
        memory = re.match(r"(LD|ST)[A-Z]*", instruction.name)
        if memory and not (instruction.global_bytes or instruction.name in ("LDC", "LDCU")):
            yield str(instruction)
        if re.match(r"MUFU|ATOM|RED|BAR|SHFL", instruction.name):
            yield str(instruction)
    calls = calls_of(kernel.sass)
    if len(calls) != 1 or kernel.sass.around(calls.__contains__).loop:
        yield f"{len(calls)} calls, or one in a loop"


def few_in_flight_in_sass(kernel: Kernel) -> Iterator[str]:
    loop = kernel.sass.around(lambda instruction: instruction.name in ("FMUL", "DMUL")).loop
    wide = in_flight(loop, lambda access: access.loads and access.global_bytes == ACCESS_BYTES)
    if kernel.form.width == ACCESS_BYTES and wide < LOADS_IN_FLIGHT:
        yield f"{wide} loads under way in the loop"


def hold(check: Callable[[Kernel], Iterator[str]], kernels: list[Kernel]) -> None:
    faults = [f"{kernel}: {fault}" for kernel in kernels for fault in check(kernel)]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:40]])


def test_every_access_and_every_architecture_has_its_kernel(kernels: list[Kernel]):
    forms = {
        form
        for element, size in ELEMENT_BYTES.items()
        for form in (
            Form(element, apart=True, pairs=1),
            *(Form(element, True, width // size) for width in (4, 8, 16) if width > size),
            *(Form(element, False, width // size // 2) for width in (4, 8, 16) if width > size),
        )
    }
    architectures, _ = shipped()
    expected = [(form, architecture) for form in forms for architecture in architectures]
    assert Counter((kernel.form, kernel.architecture) for kernel in kernels) == Counter(expected)


@pytest.mark.parametrize("check", CHECKS)
def test_the_kernels_are_what_they_claim_to_be(
    check: Callable[[Kernel], Iterator[str]], kernels: list[Kernel]
):
    hold(check, kernels)


@pytest.mark.parametrize("check", [sass_that_differs, few_in_flight_in_sass])
def test_what_a_gpu_executes_keeps_it(
    check: Callable[[Kernel], Iterator[str]], disassembled: list[Kernel]
):
    hold(check, disassembled)


def test_what_is_shipped_has_code_for_every_architecture_and_ptx_for_the_next(
    kernels: list[Kernel],
):
    cuobjdump = needed("cuobjdump")
    architectures, _ = shipped()
    for source in SOURCES:
        listed = subprocess.run(
            [cuobjdump, "--list-elf", "--list-ptx", BUILD / f"{source.stem}.fatbin"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert re.findall(r"ELF.*\.sm_(\d+)\.", listed) == list(architectures)
        assert re.findall(r"PTX.*\.sm_(\d+)\.", listed) == [
            number for number, ptx in architectures.items() if ptx
        ]


def test_the_table_in_the_documentation_is_current(kernels: list[Kernel], nvcc: str):
    page = (ROOT / "docs" / "kernels.md").read_text()
    written_with = re.search(r"Compiled by nvcc (\d+\.\d+\.\d+)", page)[1]
    if release(nvcc) != written_with:
        pytest.skip(f"docs/kernels.md is of nvcc {written_with}, and this is {release(nvcc)}")
    assert page == with_table(page, table(kernels, written_with)), "run make kernels"


# Faults that are put in the place of the last instruction of a kind, and who must see them.
PTX_FAULTS = [
    (wrong_element_accesses, r"st\.global\.v4.*", "st.global.v2.u32 {}"),
    (wrong_element_accesses, r"ld\.global\.v4.*", "ld.global.nc.v4.u32 {}"),
    (wrong_element_accesses, r"neg\.f32", "st.global.v4.u32 {store}"),
    (wrong_angle_accesses, r"ld\.global\.s32", "ld.global.s16 {}"),
    (wrong_angle_accesses, r"ld\.global\.v2\.u64", "ld.global.u64 {}"),
    (other_memory, r"ret", "st.local.u32 [%rd1], %r1"),
    (other_memory, r"ret", "ld.u32 %r1, [%rd1]"),
    (other_memory, r"ret", "ld.shared.u32 %r1, [%rd1]"),
    (other_memory, r"ret", "bar.sync 0"),
    (wrong_calls, r"ret", "call.uni __divide, (param0)"),
    (wrong_calls, r"call.*", "call.uni __divide, (param0)"),
    (wrong_calls, r"call.*", "mov.u32 %r1, %r2"),
    (wrong_calls, r"neg\.f32", "call.uni __assertfail, (param0)"),
    (divisions, r"mul\.lo\.s64", "div.s64 {}"),
    (divisions, r"mul\.lo\.s64", "rem.u32 {}"),
    (wrong_arithmetic, r"mul\.rn\.f32", "mul.f32 {}"),
    (wrong_arithmetic, r"fma\.rn\.f32", "fma.rn.ftz.f32 {}"),
    (wrong_arithmetic, r"neg\.f32", "fma.rn.f32 %f1, %f2, %f3, %f4"),
    (wrong_arithmetic, r"neg\.f32", "add.f32 %f1, %f2, %f3"),
    (wrong_arithmetic, r"neg\.f32", "cvt.f64.f32 %fd1, %f1"),
]


@pytest.fixture(scope="module")
def widest(kernels: list[Kernel]) -> Kernel:
    return next(
        kernel
        for kernel in kernels
        if (kernel.form, kernel.architecture) == (Form("float32", True, 4), "90")
    )


def planted(code: Code, kind: str, fault: Callable[[Instruction], Instruction]) -> Code:
    instructions = list(code)
    last = max(
        index
        for index, instruction in enumerate(instructions)
        if re.fullmatch(kind, instruction.opcode)
    )
    instructions[last] = fault(instructions[last])
    return Code(instructions, code.labels)


@pytest.mark.parametrize(("check", "kind", "fault"), PTX_FAULTS)
def test_a_fault_in_the_ptx_is_seen(
    check: Callable[[Kernel], Iterator[str]], kind: str, fault: str, widest: Kernel
):
    store = next(access.operands for access in widest.elements if access.stores)

    def statement(old: Instruction) -> Instruction:
        return ptx_instruction(fault.replace("{}", old.operands).replace("{store}", store))

    assert list(check(widest)) == []
    assert list(check(replace(widest, ptx=planted(widest.ptx, kind, statement)))) != []


def test_a_load_that_waits_for_another_is_seen(widest: Kernel):
    loads = [access for access in widest.parts.loop if access in widest.elements and access.loads]

    def use(old: Instruction) -> Instruction:
        return replace(old, read=(*old.read, loads[-2].written[0]))

    assert list(few_in_flight(widest)) == []
    code = planted(widest.ptx, re.escape(loads[-1].opcode), use)
    assert list(few_in_flight(replace(widest, ptx=code))) != []


@pytest.mark.parametrize(
    "fault",
    [{"registers": 65}, {"stack": 8}, {"spill_stores": 4}, {"spill_loads": 4}, {"barriers": 1}],
)
def test_a_resource_too_many_is_seen(fault: dict[str, int], widest: Kernel):
    faulty = replace(widest, resources=replace(widest.resources, **fault))
    assert list(wrong_resources(widest)) == []
    assert list(wrong_resources(faulty)) != []


@pytest.mark.parametrize(
    ("kind", "opcode", "operands"),
    [
        (r"LDG\.E\.128", "LDG.E.64", "R4, [R2.64]"),
        (r"STG\.E\.128", "STG.E", "[R2.64], R4"),
        (r"FMUL", "FADD", "R1, R2, R3"),
        (r"IMAD.*", "FFMA", "R1, R2, R3, R4"),
        (r"IMAD.*", "LDL", "R1, [R2]"),
        (r"IMAD.*", "STL.64", "[R2], R4"),
        (r"IMAD.*", "LD.E", "R1, [R2.64]"),
        (r"IMAD.*", "MUFU.RCP", "R1, R2"),
        (r"IMAD.*", "CALL.REL.NOINC", "`(__divide)"),
        (r"FMUL", "CALL.ABS.NOINC", "R14"),
    ],
)
def test_a_fault_in_the_sass_is_seen(
    kind: str, opcode: str, operands: str, disassembled: list[Kernel], widest: Kernel
):
    kernel = next(
        kernel
        for kernel in disassembled
        if (kernel.form, kernel.architecture) == (widest.form, widest.architecture)
    )
    code = planted(kernel.sass, kind, lambda _: sass_instruction("", opcode, operands))
    assert list(sass_that_differs(kernel)) == []
    assert list(sass_that_differs(replace(kernel, sass=code))) != []
