"""PTX and SASS, as far as the claims about kernels need: accesses, registers, branches, loops."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

PTX_ACCESS = re.compile(r"(?:ld|st)\.(\w+)\S*?(?:\.v(\d))?\.[a-z](\d+)")
SASS_ACCESS = re.compile(r"(?:LDG|STG)\.E(?:\.(?:[US](8|16)|(64|128)))?")


@dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction, and the registers that it writes and reads."""

    opcode: str
    operands: str
    conditional: bool
    written: tuple[str, ...]
    read: tuple[str, ...]

    @property
    def name(self) -> str:
        """The operation alone: ld of ld.global.v4.u32."""
        return self.opcode.split(".")[0]

    @property
    def global_bytes(self) -> int:
        """The width of an access to global memory, and 0 of everything else."""
        if ptx := PTX_ACCESS.fullmatch(self.opcode):
            return int(ptx[2] or 1) * int(ptx[3]) // 8 if ptx[1] == "global" else 0
        sass = SASS_ACCESS.fullmatch(self.opcode)
        return int(sass[1] or sass[2] or 32) // 8 if sass else 0

    @property
    def jumps(self) -> bool:
        """Whether it goes on at a label: ptxas leaves loops by calls that never return."""
        to_label = re.match(r"`\(\.L_x_\d+\)", self.operands) is not None
        return self.name in ("bra", "BRA") or (self.name == "CALL" and to_label)

    @property
    def address(self) -> list[str]:
        """The registers of the address that PTX loads from or stores to."""
        return re.findall(r"%\w+", re.search(r"\[(.*?)\]", self.operands)[1])

    @property
    def loads(self) -> bool:
        return self.global_bytes > 0 and self.name in ("ld", "LDG")

    @property
    def stores(self) -> bool:
        return self.global_bytes > 0 and self.name in ("st", "STG")

    def __str__(self) -> str:
        return f"{self.opcode} {self.operands}"


@dataclass(frozen=True)
class Code:
    """The instructions of one kernel, and where each label stands."""

    instructions: list[Instruction]
    labels: dict[str, int]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions)

    def steps(self) -> Iterator[tuple[int, int]]:
        """Yield every step that control can take, from index to index."""
        for index, instruction in enumerate(self.instructions):
            if instruction.jumps:
                yield index, self.labels[re.search(r"[$.]L\w+", instruction.operands)[0]]
            ends = instruction.jumps or instruction.name in ("ret", "EXIT", "RET")
            if (instruction.conditional or not ends) and index + 1 < len(self.instructions):
                yield index, index + 1

    def around(self, some: Callable[[Instruction], bool]) -> Parts:
        """Sort all instructions by whether some come before them, and whether some come after."""
        chosen = [index for index, instruction in enumerate(self.instructions) if some(instruction)]
        steps = list(self.steps())
        after = reached(chosen, steps)
        before = reached(chosen, ((target, source) for source, target in steps))
        parts = Parts([], [], [], [])
        for index, instruction in enumerate(self.instructions):
            if index in after:
                (parts.loop if index in before else parts.after).append(instruction)
            else:
                (parts.before if index in before else parts.beside).append(instruction)
        return parts

    def around_stores(self, some: Callable[[Instruction], bool]) -> Parts:
        """Sort all instructions by the loop that goes on from some to stores."""
        loop = set(self.around(some).loop)
        return self.around(lambda instruction: instruction.stores and instruction in loop)

    @cached_property
    def loops(self) -> set[frozenset[Instruction]]:
        """All loops, the inner ones as parts of the outer: each of them steps back somewhere."""
        back = {self.instructions[source] for source, target in self.steps() if target <= source}
        return {frozenset(self.around({step}.__contains__).loop) for step in back} - {frozenset()}

    def loop_of(self, instruction: Instruction) -> frozenset[Instruction]:
        """Return the loop that an instruction is in, empty if there is none."""
        return next((loop for loop in self.loops if instruction in loop), frozenset())


@dataclass(frozen=True)
class Parts:
    """The instructions before some others, in a loop with them, after them, and on other ways."""

    before: list[Instruction]
    loop: list[Instruction]
    after: list[Instruction]
    beside: list[Instruction]


def reached(starts: Iterable[int], steps: Iterable[tuple[int, int]]) -> set[int]:
    """Return what one or more steps lead to."""
    targets: dict[int, list[int]] = {}
    for source, target in steps:
        targets.setdefault(source, []).append(target)
    found: set[int] = set()
    open_ends = list(starts)
    while open_ends:
        for target in targets.get(open_ends.pop(), []):
            if target not in found:
                found.add(target)
                open_ends.append(target)
    return found


def in_flight(instructions: Iterable[Instruction], some: Callable[[Instruction], bool]) -> int:
    """Return how many loads follow each other before an instruction reads what one has loaded."""
    most = count = 0
    awaited: set[str] = set()
    for instruction in instructions:
        if awaited.intersection(instruction.read):
            count, awaited = 0, set()
        if some(instruction):
            count += 1
            awaited.update(instruction.written)
            most = max(most, count)
    return most


def ptx_instruction(statement: str) -> Instruction:
    """Read one statement: its first operand is written, unless it is an address or a label."""
    guard, opcode, operands = re.fullmatch(r"(@!?%\w+ )?(\S+) ?(.*)", statement).groups()
    target = re.match(r"(?:\{[^}]*\}|%[\w|%]+),", operands)
    end = target.end() if target else 0
    registers = re.compile(r"%\w+")
    return Instruction(
        opcode,
        operands,
        guard is not None,
        tuple(registers.findall(operands[:end])),
        tuple(registers.findall(operands[end:])),
    )


def read_ptx(text: str) -> dict[str, Code]:
    """Return the code of every kernel of a PTX file, by its name."""
    text = re.sub(r"//.*|^[ \t]*\.loc\b.*", "", text, flags=re.M)
    kernels = {}
    for name, body in re.findall(r"^\.visible \.entry (\w+)\(.*?^\{$(.*?)^\}$", text, re.M | re.S):
        # Braces that begin or end a line are blocks of names.
        body = re.sub(
            r"^(\$\w+:)|^[ \t]*[{}]|\}[ \t]*$", lambda line: f"{line[1] or ''};", body, flags=re.M
        )
        code = Code([], {})
        for statement in (" ".join(part.split()) for part in body.split(";")):
            if statement.endswith(":"):
                code.labels[statement[:-1]] = len(code.instructions)
            elif statement and not statement.startswith("."):
                code.instructions.append(ptx_instruction(statement))
        kernels[name] = code
    return kernels


def sass_instruction(guard: str, opcode: str, operands: str) -> Instruction:
    """Read one instruction: a load writes registers of its whole width, an address is two."""
    first, _, rest = operands.partition(", ")
    jumps = opcode.startswith("BRA")
    writes = re.fullmatch(r"U?[RP]\d+", first) is not None and not jumps
    read = [
        f"R{int(number) + offset}"
        for number, wide in re.findall(r"\bR(\d+)(\.64)?", rest if writes else operands)
        for offset in range(2 if wide else 1)
    ]
    instruction = Instruction(
        opcode,
        operands,
        bool(guard) or (jumps and rest != ""),
        (first,) if writes else (),
        tuple(read),
    )
    if not instruction.loads:
        return instruction
    words = max(1, instruction.global_bytes // 4)
    return replace(
        instruction, written=tuple(f"R{int(first[1:]) + offset}" for offset in range(words))
    )


def read_sass(text: str) -> dict[str, Code]:
    """Return the code of every kernel of a disassembled file, by its name."""
    kernels: dict[str, Code] = {}
    code = Code([], {})
    for line in text.splitlines():
        if start := re.match(r"\.text\.(\w+):", line):
            code = kernels[start[1]] = Code([], {})
        elif label := re.match(r"(\.L\w+):", line):
            code.labels[label[1]] = len(code.instructions)
        elif found := re.match(
            r"\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", line
        ):
            code.instructions.append(sass_instruction(*(part or "" for part in found.groups())))
    return kernels
