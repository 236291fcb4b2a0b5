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
from kernels import (
    ACCESS_BYTES,
    ANGLE_POINTERS,
    ELEMENT_BYTES,
    RADIAN_PAIRS,
    Form,
    Kernel,
    read_kernels,
    table,
    with_table,
)

MOVES = {"ld", "st", "mov", "selp", "setp", "neg", "cvt"}
WAITS = {"atom", "red", "bar", "barrier", "shfl", "fence", "membar"}
REGISTERS = 64
LOADS_IN_FLIGHT = 4
# csrc/core/angle.h: what the cosine and the sine of an angle take, and their scale.
ANGLE_PRODUCTS = {"f32": {"mul": 6, "fma": 7}, "f64": {"mul": 6, "fma": 13}}


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
    """What a thread reads before the loop over heads: tables and turns as wide as may be.

    From tables outside any loop, with at most one position. Frequencies in loops over axes, with at
    most one position in a step: of turns all pairs, of radians one. The compiler may make a loop
    for each kind of positions.
    """
    names, source = ANGLE_POINTERS[kernel.source], kernel.source
    if len(kernel.angles) != len(names):
        yield f"{len(kernel.angles)} pointers beside those of query and key, not {names}"
    sizes = sorted(size for sizes in kernel.form.angle_accesses(source).values() for size in sizes)
    most = {name: Counter(sizes if name != "positions" else [4, 8]) for name in names}
    least = dict(most) if source == "tables" else {**most, "positions": Counter()}
    if source == "radians":
        most = {"positions": Counter([4, 4, 8, 8]), "frequencies": Counter([4, 8])}
        least = {name: Counter() for name in names}
    steps: dict[frozenset[Instruction], dict[str, Counter[int]]] = {}
    for name, accesses in zip(names, kernel.angles, strict=False):
        for access in accesses:
            step = steps.setdefault(kernel.ptx.loop_of(access), {name: Counter() for name in names})
            step[name][access.global_bytes] += 1
            if not access.loads or access not in kernel.parts.before:
                yield f"{name}: {access} is no load before the loop over heads"
        if {access.global_bytes for access in accesses} != set(most[name]):
            yield f"{name} not in accesses of {set(most[name])} bytes"
    for loop, step in steps.items():
        if bool(loop) == (source == "tables"):
            yield f"{step} {'in a' if loop else 'outside any'} loop"
        if not all(least[name] <= step[name] <= most[name] for name in names):
            yield f"a step reads {step} bytes, not {least} to {most}"
        if source != "tables" and not step["frequencies"]:
            yield f"a step reads {step}: no frequency"
    if len(steps) % (kernel.form.pairs if source == "radians" else 1):
        yield f"{len(steps)} loops for {kernel.form.pairs} pairs"


def wrong_constants(kernel: Kernel) -> Iterator[str]:
    """Of 1 / (2 pi) four words for each radian, in a step over axes for one or two kinds of it."""
    loads = [instruction for instruction in kernel.ptx if instruction.opcode.startswith("ld.const")]
    words = Counter(kernel.ptx.loop_of(load) for load in loads)
    loops = set(map(kernel.ptx.loop_of, kernel.angles[-1])) if kernel.source == "radians" else set()
    if set(words) != loops or not set(words.values()) <= {4, 8}:
        yield f"{list(words.values())} words of constants in {len(loops)} loops over axes"
    for load in loads:
        symbols = [
            origin.operands
            for origin in kernel.origins(load.address, {"add"})
            if origin.name == "mov" and "kTurnsOfRadian" in origin.operands
        ]
        if load.opcode != "ld.const.u64" or len(symbols) != 1:
            yield f"{load} reads {symbols}"


def other_memory(kernel: Kernel) -> Iterator[str]:
    """Global memory, parameters, constants: nothing local or shared, nothing to wait for."""
    for instruction in kernel.ptx:
        space = instruction.opcode.partition(".")[2].partition(".")[0]
        moves = instruction.name in ("ld", "st") and space not in ("param", "global", "const")
        if moves or instruction.name in WAITS:
            yield str(instruction)


def calls_of(code: Code) -> list[Instruction]:
    return [
        instruction
        for instruction in code
        if instruction.name in ("call", "CALL") and not instruction.jumps
    ]


def wrong_calls(kernel: Kernel) -> Iterator[str]:
    """Of tables one call, outside any loop: the assertion that a position is a row."""
    calls = calls_of(kernel.ptx)
    expected = ["__assertfail"] if kernel.source == "tables" else []
    if [call.operands.partition(",")[0] for call in calls] != expected:
        yield f"calls: {[call.operands for call in calls]}"
    if any(kernel.ptx.loop_of(call) for call in calls):
        yield "a call in a loop"


def divisions(kernel: Kernel) -> Iterator[str]:
    return (
        str(instruction) for instruction in kernel.ptx if instruction.name in ("div", "rem", "rcp")
    )


FLOATING = re.compile(r"\.(b?f(16|32|64)|tf32)(x2)?(\.|$)")


def angle_products(kernel: Kernel) -> Counter[str]:
    """Return how many products make the cosines and sines of a thread."""
    each = ANGLE_PRODUCTS[kernel.form.compute_type] if kernel.source != "tables" else {}
    return Counter({name: count * kernel.form.pairs for name, count in each.items()})


def head_products(kernel: Kernel) -> Counter[str]:
    """Return how many products turn the pairs of all heads that are under way together."""
    return Counter(dict.fromkeys(("mul", "fma"), 2 * kernel.turned))


def wrong_arithmetic(kernel: Kernel) -> Iterator[str]:
    """Products rounded and fused as the source names them.

    Two and two for each pair of a head; before, once for each pair, cosine, sine and their scale.
    """
    parts = kernel.parts
    for place, part, products in (
        ("before the loop", parts.before, angle_products(kernel)),
        ("in the loop", parts.loop, head_products(kernel)),
        ("elsewhere", parts.after + parts.beside, Counter()),
    ):
        found = [
            instruction
            for instruction in part
            if FLOATING.search(instruction.opcode) and instruction.name not in MOVES
        ]
        expected = Counter(
            {f"{name}.rn.{kernel.form.compute_type}": count for name, count in products.items()}
        )
        if Counter(instruction.opcode for instruction in found) != expected:
            yield f"{place} {[instruction.opcode for instruction in found]}, not {expected}"
        if part is parts.before and any(kernel.ptx.loop_of(product) for product in found):
            yield "products in a loop over axes"
    if kernel.form.compute_type != "f64":
        yield from (
            str(instruction)
            for instruction in kernel.ptx
            if FLOATING.search(instruction.opcode) and "f64" in instruction.opcode
        )


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
    wrong_constants,
    other_memory,
    wrong_calls,
    divisions,
    wrong_arithmetic,
    few_in_flight,
    wrong_resources,
]


def sass_that_differs(kernel: Kernel) -> Iterator[str]:
    """The GPU executes the accesses, the products and the calls of the PTX, nothing local."""
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
    products = angle_products(kernel) + head_products(kernel)
    for compute, prefix in (("f32", "F"), ("f64", "D")):
        for name in ("mul", "fma"):
            executed = names[prefix + name.upper()]
            expected = products[name] if kernel.form.compute_type == compute else 0
            if executed != expected:
                yield f"{executed} {prefix + name.upper()}, not {expected}"
    for instruction in kernel.sass:
        memory = re.match(r"(LD|ST)[A-Z]*", instruction.name)
        if memory and not (instruction.global_bytes or instruction.name in ("LDC", "LDCU")):
            yield str(instruction)
        if re.match(r"MUFU|ATOM|RED|BAR|SHFL|RET", instruction.name):
            yield str(instruction)
    calls = calls_of(kernel.sass)
    if len(calls) != len(calls_of(kernel.ptx)) or any(map(kernel.sass.loop_of, calls)):
        yield f"{len(calls)} calls, or one in a loop"


def few_in_flight_in_sass(kernel: Kernel) -> Iterator[str]:
    loop = kernel.sass.around_stores(lambda product: product.name in ("FMUL", "DMUL")).loop
    wide = in_flight(loop, lambda access: access.loads and access.global_bytes == ACCESS_BYTES)
    if kernel.form.width == ACCESS_BYTES and wide < LOADS_IN_FLIGHT:
        yield f"{wide} loads under way in the loop"


def hold(check: Callable[[Kernel], Iterator[str]], kernels: list[Kernel]) -> None:
    faults = [f"{kernel}: {fault}" for kernel in kernels for fault in check(kernel)]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:40]])


def test_every_access_source_and_architecture_has_its_kernel(kernels: list[Kernel]):
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
    expected = [
        (form, source, architecture)
        for form in forms
        for source in ANGLE_POINTERS
        for architecture in architectures
        if source != "radians" or form.pairs <= RADIAN_PAIRS
    ]
    found = [(kernel.form, kernel.source, kernel.architecture) for kernel in kernels]
    assert Counter(found) == Counter(expected)


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
PTX_FAULTS = {
    "tables": [
        (wrong_element_accesses, r"st\.global\.v4.*", "st.global.v2.u32 {}"),
        (wrong_element_accesses, r"ld\.global\.v4.*", "ld.global.nc.v4.u32 {}"),
        (wrong_element_accesses, r"neg\.f32", "st.global.v4.u32 {store}"),
        (wrong_angle_accesses, r"ld\.global\.s32", "ld.global.s16 {}"),
        (wrong_angle_accesses, r"ld\.global\.v2\.u64", "ld.global.u64 {}"),
        (wrong_constants, r"ret", "ld.const.u64 %rd1, [%rd2]"),
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
    ],
    "turns": [
        (wrong_angle_accesses, r"ld\.global\.v2\.u64", "ld.global.u64 {}"),
        (wrong_angle_accesses, r"ld\.global\.s32", "ld.global.s16 {}"),
        (wrong_angle_accesses, r"ld\.global\.s32", "mov.u64 %rd1, %rd2"),
        (wrong_angle_accesses, r"fma\.rn\.f32", "ld.global.v2.u64 {frequencies}"),
        (wrong_angle_accesses, r"cvt\.rn\.f32\.s32", "ld.global.s32 {positions}"),
        (wrong_constants, r"ret", "ld.const.u64 %rd1, [%rd2]"),
        (other_memory, r"ld\.global\.s32", "ld.s32 {}"),
        (wrong_calls, r"ret", "call.uni __assertfail, (param0)"),
        (divisions, r"cvt\.rn\.f32\.s32", "rcp.rn.f32 %f1, %f2"),
        (wrong_arithmetic, r"cvt\.rn\.f32\.s32", "mul.rn.f32 %f1, %f2, %f3"),
        (wrong_arithmetic, r"cvt\.rn\.f32\.s32", "sin.approx.f32 %f1, %f2"),
        (wrong_arithmetic, r"cvt\.rn\.f32\.s32", "cvt.rn.f64.s64 %fd1, %rd1"),
        (wrong_arithmetic, r"fma\.rn\.f32", "fma.f32 {}"),
    ],
    "radians": [
        (wrong_angle_accesses, r"ld\.const\.u64", "ld.global.u64 {frequencies}"),
        (wrong_angle_accesses, r"ld\.const\.u64", "ld.global.s32 {positions}"),
        (wrong_angle_accesses, r"fma\.rn\.f32", "ld.global.u64 {frequencies}"),
        (wrong_constants, r"ld\.const\.u64", "ld.const.u32 {}"),
        (wrong_constants, r"ld\.const\.u64", "mov.u64 %rd1, %rd2"),
        (wrong_constants, r"ld\.const\.u64", "ld.const.u64 %rd1, [%rd1]"),
        (wrong_constants, r"cvt\.rn\.f32\.s32", "ld.const.u64 {constants}"),
        (other_memory, r"ld\.global\.s32", "ld.s32 {}"),
        (other_memory, r"ld\.const\.u64", "ld.local.u64 {}"),
        (wrong_calls, r"ld\.const\.u64", "call.uni __umul64hi, (param0)"),
        (divisions, r"ld\.const\.u64", "div.u64 %rd1, %rd2, %rd3"),
        (wrong_arithmetic, r"ld\.const\.u64", "cvt.rn.f64.u64 %fd1, %rd1"),
        (wrong_arithmetic, r"ld\.const\.u64", "mul.rn.f64 %fd1, %fd2, %fd3"),
    ],
}


@pytest.fixture(scope="module")
def widest(kernels: list[Kernel]) -> dict[str, Kernel]:
    """A float32 kernel of 16 bytes for each source of angles."""
    forms = {source: Form("float32", True, 4) for source in ANGLE_POINTERS}
    forms["radians"] = Form("float32", False, RADIAN_PAIRS)
    return {
        kernel.source: kernel
        for kernel in kernels
        if kernel.form == forms[kernel.source] and kernel.architecture == "90"
    }


def last(code: Code, kind: str) -> int:
    return max(
        index for index, instruction in enumerate(code) if re.fullmatch(kind, instruction.opcode)
    )


def planted(code: Code, kind: str, fault: Callable[[Instruction], Instruction]) -> Code:
    instructions, place = list(code), last(code, kind)
    instructions[place] = fault(instructions[place])
    return Code(instructions, code.labels)


@pytest.mark.parametrize(
    ("source", "check", "kind", "fault"),
    [(source, *fault) for source, faults in PTX_FAULTS.items() for fault in faults],
)
def test_a_fault_in_the_ptx_is_seen(
    source: str,
    check: Callable[[Kernel], Iterator[str]],
    kind: str,
    fault: str,
    widest: dict[str, Kernel],
):
    kernel = widest[source]
    operands = {
        "{store}": next(access.operands for access in kernel.elements if access.stores),
        **{
            f"{{{name}}}": accesses[-1].operands
            for name, accesses in zip(ANGLE_POINTERS[source], kernel.angles, strict=True)
        },
        "{constants}": next(
            (load.operands for load in kernel.ptx if load.opcode == "ld.const.u64"), ""
        ),
    }

    def statement(old: Instruction) -> Instruction:
        text = fault.replace("{}", old.operands)
        for name, value in operands.items():
            text = text.replace(name, value)
        return ptx_instruction(text)

    assert list(check(kernel)) == []
    assert list(check(replace(kernel, ptx=planted(kernel.ptx, kind, statement)))) != []


@pytest.mark.parametrize("source", ["turns", "radians"])
@pytest.mark.parametrize(
    ("check", "kind", "other"),
    [
        (wrong_arithmetic, "an angle's product", r"ld\.global\.s32"),
        (wrong_arithmetic, "an angle's product", r"st\.global\.v4\..*"),
        (wrong_angle_accesses, r"ld\.global\.s32", r"cvt\.rn\.f32\.s32"),
    ],
    ids=["product in a loop over axes", "product in the loop over heads", "position outside"],
)
def test_an_instruction_in_another_loop_is_seen(
    source: str,
    check: Callable[[Kernel], Iterator[str]],
    kind: str,
    other: str,
    widest: dict[str, Kernel],
):
    kernel = widest[source]
    instructions = list(kernel.ptx)
    first = (
        next(place for place, product in enumerate(instructions) if product.name == "fma")
        if kind == "an angle's product"
        else last(kernel.ptx, kind)
    )
    second = max(
        place
        for place, instruction in enumerate(instructions)
        if re.fullmatch(other, instruction.opcode) and instruction not in kernel.parts.beside
    )
    instructions[first], instructions[second] = instructions[second], instructions[first]
    faulty = replace(kernel, ptx=Code(instructions, kernel.ptx.labels))
    assert list(check(kernel)) == []
    assert list(check(faulty)) != []


@pytest.mark.parametrize("source", ANGLE_POINTERS)
def test_a_load_that_waits_for_another_is_seen(source: str, widest: dict[str, Kernel]):
    kernel = widest[source]
    loads = [access for access in kernel.parts.loop if access in kernel.elements and access.loads]

    waiting = replace(loads[-1], read=(*loads[-1].read, loads[-2].written[0]))
    code = [waiting if instruction is loads[-1] else instruction for instruction in kernel.ptx]
    faulty = replace(kernel, ptx=Code(code, kernel.ptx.labels))
    assert list(few_in_flight(kernel)) == []
    assert list(few_in_flight(faulty)) != []


@pytest.mark.parametrize(
    "fault",
    [{"registers": 65}, {"stack": 8}, {"spill_stores": 4}, {"spill_loads": 4}, {"barriers": 1}],
)
def test_a_resource_too_many_is_seen(fault: dict[str, int], widest: dict[str, Kernel]):
    kernel = widest["tables"]
    faulty = replace(kernel, resources=replace(kernel.resources, **fault))
    assert list(wrong_resources(kernel)) == []
    assert list(wrong_resources(faulty)) != []


@pytest.mark.parametrize(
    ("source", "kind", "opcode", "operands"),
    [
        ("tables", r"LDG\.E\.128", "LDG.E.64", "R4, [R2.64]"),
        ("tables", r"STG\.E\.128", "STG.E", "[R2.64], R4"),
        ("tables", r"FMUL", "FADD", "R1, R2, R3"),
        ("tables", r"IMAD.*", "FFMA", "R1, R2, R3, R4"),
        ("tables", r"IMAD.*", "LDL", "R1, [R2]"),
        ("tables", r"IMAD.*", "STL.64", "[R2], R4"),
        ("tables", r"IMAD.*", "LD.E", "R1, [R2.64]"),
        ("tables", r"IMAD.*", "MUFU.RCP", "R1, R2"),
        ("tables", r"IMAD.*", "CALL.REL.NOINC", "`(__divide)"),
        ("tables", r"FMUL", "CALL.ABS.NOINC", "R14"),
        ("turns", r"IMAD.*", "CALL.ABS.NOINC", "R14"),
        ("turns", r"IMAD.*", "MUFU.SIN", "R1, R2"),
        ("turns", r"FMUL", "FADD", "R1, R2, R3"),
        ("turns", r"IMAD.*", "DMUL", "R2, R4, R6"),
        ("radians", r"IMAD.*", "CALL.REL.NOINC", "`(__divide)"),
        ("radians", r"IMAD.*", "RET.REL.NODEC", "R4 `(rotate_heads)"),
        ("radians", r"IMAD.*", "LDG.E.64", "R4, [R2.64]"),
        ("radians", r"IMAD.*", "LDL.64", "R2, [R4]"),
    ],
)
def test_a_fault_in_the_sass_is_seen(
    source: str,
    kind: str,
    opcode: str,
    operands: str,
    disassembled: list[Kernel],
    widest: dict[str, Kernel],
):
    chosen = widest[source]
    kernel = next(
        kernel
        for kernel in disassembled
        if (kernel.form, kernel.source, kernel.architecture)
        == (chosen.form, source, chosen.architecture)
    )
    code = planted(kernel.sass, kind, lambda _: sass_instruction("", opcode, operands))
    assert list(sass_that_differs(kernel)) == []
    assert list(sass_that_differs(replace(kernel, sass=code))) != []
