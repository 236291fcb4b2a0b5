"""What the compiler made of each kernel: its form, angles, accesses, arithmetic and resources."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from assembly import Code, Instruction, Parts, in_flight, read_ptx, read_sass

ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
# csrc/cuda/kernel.cuh: of an access, and of what a thread reads of each table; and its most pairs
# where frequencies are in radians.
ACCESS_BYTES, TABLE_BYTES, RADIAN_PAIRS = 16, 32, 2
# What a kernel takes angles from, and the pointers to it in the order of csrc/core/problem.h.
ANGLE_POINTERS = {
    "tables": ("cos", "sin", "positions"),
    "turns": ("positions", "frequencies"),
    "radians": ("positions", "frequencies"),
}


def wide(size: int) -> list[int]:
    """Return the bytes of each access to neighbouring bytes."""
    return [min(size, ACCESS_BYTES)] * -(-size // ACCESS_BYTES)


@dataclass(frozen=True)
class Form:
    """How pairs lie in a thread's accesses, as the name of a kernel says it."""

    element: str
    apart: bool
    pairs: int

    @classmethod
    def of(cls, symbol: str) -> Form:
        element = r"(?:N\w*?\d(float16|bfloat16)E|(f)|(d))"
        found = re.search(rf"\d(Apart|Together)I{element}Li(\d+)E", symbol)
        pairing, sixteen, single, _, pairs = found.groups()
        return cls(sixteen or ("float32" if single else "float64"), pairing == "Apart", int(pairs))

    @property
    def width(self) -> int:
        """The bytes of an access."""
        return ELEMENT_BYTES[self.element] * self.pairs * (1 if self.apart else 2)

    @property
    def compute_type(self) -> str:
        return "f64" if self.element == "float64" else "f32"

    def angle_accesses(self, source: str) -> dict[str, list[int]]:
        """Return the bytes of each access to one table, or to the frequencies of one axis.

        By the types that they may have.
        """
        if source == "turns":
            return {"int64": wide(8 * self.pairs)}
        if source == "radians":
            return {"float32": [4] * self.pairs, "float64": [8] * self.pairs}
        types = dict.fromkeys([self.element, "float32", "float64"])
        return {
            element: wide(size)
            for element in types
            if (size := self.pairs * ELEMENT_BYTES[element]) <= TABLE_BYTES
        }

    @property
    def pairing(self) -> str:
        if self.apart and self.pairs == 1:
            return "anyhow, any stride"
        return "half-split" if self.apart else "interleaved"

    def __str__(self) -> str:
        return f"{self.element}, {self.pairing}, {self.width} bytes"


@dataclass(frozen=True)
class Resources:
    """Of a thread, as ptxas reports them."""

    stack: int
    spill_stores: int
    spill_loads: int
    registers: int
    barriers: int


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture."""

    form: Form
    source: str
    architecture: str
    ptx: Code
    resources: Resources
    sass: Code | None

    def __str__(self) -> str:
        architecture = f"{self.architecture[:-1]}.{self.architecture[-1]}"
        return f"{self.form}, from {self.source}, on {architecture}"

    @cached_property
    def parts(self) -> Parts:
        """What comes before, in and after the loop that turns heads, and beside it."""
        return self.ptx.around_stores(lambda instruction: instruction.opcode.startswith("mul.rn."))

    @cached_property
    def writers(self) -> dict[str, list[Instruction]]:
        """For each register what writes to it."""
        writers: dict[str, list[Instruction]] = {}
        for instruction in self.ptx:
            for register in instruction.written:
                writers.setdefault(register, []).append(instruction)
        return writers

    def origins(self, registers: Iterable[str], through: set[str]) -> Iterator[Instruction]:
        """Yield what registers are made of, by way of some operations."""
        wanted, seen = set(registers), set[str]()
        while wanted - seen:
            register = (wanted - seen).pop()
            seen.add(register)
            for writer in self.writers.get(register, []):
                if writer.name in through:
                    wanted.update(writer.read)
                else:
                    yield writer

    @cached_property
    def pointers(self) -> dict[Instruction, tuple[int, ...]]:
        """For each access to global memory its pointers, as offsets into the parameters."""

        def pointers_of(access: Instruction) -> Iterator[int]:
            for generic in self.origins(access.address, {"add", "sub", "mad", "mov", "selp"}):
                if generic.opcode == "cvta.to.global.u64":
                    for parameter in self.origins(generic.read, {"mov", "selp"}):
                        if parameter.name == "ld":
                            yield int(re.search(r"\+(\d+)\]|$", parameter.operands)[1] or 0)

        return {
            instruction: tuple(sorted(set(pointers_of(instruction))))
            for instruction in self.ptx
            if instruction.global_bytes
        }

    @cached_property
    def elements(self) -> list[Instruction]:
        """The accesses by a pointer of the query's or the key's."""
        return [access for access, pointers in self.pointers.items() if len(pointers) == 2]

    @cached_property
    def angles(self) -> list[list[Instruction]]:
        """The accesses by each other pointer, in the order of ANGLE_POINTERS."""
        others = sorted(
            set(self.pointers.values()) - {self.pointers[access] for access in self.elements}
        )
        return [
            [access for access, pointers in self.pointers.items() if pointers == other]
            for other in others
        ]

    @property
    def in_flight(self) -> tuple[int, int]:
        """Loads of elements under way together before the loop and in it."""
        loads = {access for access in self.elements if access.loads}
        return tuple(
            in_flight(part, loads.__contains__) for part in (self.parts.before, self.parts.loop)
        )

    @property
    def turned(self) -> int:
        """How many pairs the code turns, told by the bytes that it stores."""
        kept = set(self.parts.beside)
        stored = sum(
            access.global_bytes for access in self.elements if access.stores and access not in kept
        )
        return stored // (2 * ELEMENT_BYTES[self.form.element])


def read_report(text: str) -> dict[tuple[str, str], Resources]:
    """Return the resources of each kernel, by architecture and symbol, from `ptxas -v`."""
    found = re.findall(
        r"entry function '(\w+)' for 'sm_(\d+)'\n"
        r"(?:.*\n)?? *(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*Used (\d+) registers, used (\d+) barriers",
        text,
    )
    return {
        (architecture, symbol): Resources(*map(int, numbers))
        for symbol, architecture, *numbers in found
    }


def read_kernels(build: Path, nvdisasm: str | None = None) -> list[Kernel]:
    """Return every kernel that compile_kernels built, with its SASS if there is a disassembler."""
    kernels = []
    for report in sorted(build.glob("*.report")):
        resources = read_report(report.read_text())
        for architecture in dict.fromkeys(architecture for architecture, _ in resources):
            compiled = f"{report.stem}.compute_{architecture}"
            sass = {}
            if nvdisasm is not None:
                [cubin] = build.glob(f"{compiled}.*cubin")
                sass = read_sass(
                    subprocess.run(
                        [nvdisasm, "-c", cubin], check=True, capture_output=True, text=True
                    ).stdout
                )
            for symbol, ptx in read_ptx((build / f"{compiled}.ptx").read_text()).items():
                kernels.append(
                    Kernel(
                        Form.of(symbol),
                        re.search(r"\dFrom(Tables|Turns|Radians)E", symbol)[1].lower(),
                        architecture,
                        ptx,
                        resources[architecture, symbol],
                        sass.get(symbol),
                    )
                )
    return kernels


MARKER = "<!-- What follows is written by `make kernels`. -->\n"


def with_table(page: str, text: str) -> str:
    """Return a page whose end, from the marker on, is this text."""
    return page[: page.index(MARKER)] + MARKER + "\n" + text


def table(kernels: list[Kernel], release: str) -> str:
    """Return the tables of docs/kernels.md: one for each source of angles, a row for each form."""
    parts = [
        f"Compiled by nvcc {release}; the last columns are registers of a thread, by architecture."
    ]
    for source, what in (
        ("tables", "each table"),
        ("turns", "turns, for an axis"),
        ("radians", "frequencies, for an axis"),
    ):
        rows = rows_of([kernel for kernel in kernels if kernel.source == source], what)
        parts.append(f"## Angles from {source}\n\n{rows}")
    return "\n\n".join(parts) + "\n"


def rows_of(kernels: list[Kernel], what: str) -> str:
    """Return one table, of kernels that read the angles of each pair from the same."""
    architectures = sorted({kernel.architecture for kernel in kernels}, key=int)
    forms: dict[Form, dict[str, Kernel]] = {}
    for kernel in kernels:
        forms.setdefault(kernel.form, {})[kernel.architecture] = kernel
    head = [
        "elements",
        "pairs lie",
        "bytes of an access",
        "pairs of a thread",
        f"bytes read of {what}",
        *(f"{number[:-1]}.{number[-1]}" for number in architectures),
    ]
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * 2 + " ---: |" * 2 + " --- |" + " ---: |" * len(architectures),
    ]
    order = list(ELEMENT_BYTES)
    for form in sorted(
        forms, key=lambda form: (order.index(form.element), -form.width, not form.apart)
    ):
        of_each = forms[form]
        reads = "; ".join(
            f"{element} {' + '.join(map(str, sizes))}"
            for element, sizes in form.angle_accesses(kernels[0].source).items()
        )
        registers = [str(of_each[number].resources.registers) for number in architectures]
        row = [form.element, form.pairing, str(form.width), str(form.pairs), reads, *registers]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)
