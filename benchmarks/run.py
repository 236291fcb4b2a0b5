"""Measure rope_ext and what users have instead: ``python -m benchmarks.run``."""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import rope_ext
from benchmarks import ceiling, machine
from benchmarks.cases import CASES, Case, Inputs
from benchmarks.measure import Run, Samples, Summary, interleave, repeated
from benchmarks.providers import PROVIDERS


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


DTYPES = {
    _name(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}
ROUNDS = 15


@dataclass(frozen=True)
class Row:
    """One line of a table: a subject and its samples."""

    name: str
    pairing: str
    samples: Samples

    @property
    def seconds(self) -> float:
        return statistics.median(self.samples.seconds)


@dataclass(frozen=True)
class Group:
    """The rows of one case and dtype; the first is the reference, the second is its companion."""

    case: Case
    dtype: torch.dtype
    rows: list[Row]


def _references(case: Case, inputs: Inputs) -> tuple[tuple[str, Run], tuple[str, Run]]:
    """Return what the case is bound by: an empty call where calls decide, the memory elsewhere."""
    if case.call_bound:
        tensors = (inputs.query, inputs.key, inputs.cos, inputs.sin)
        bare, ordinary = (
            repeated(partial(operator.default, *tensors))
            for operator in (torch.ops.rope_bench.empty_bare, torch.ops.rope_bench.empty_ordinary)
        )
        return ("empty, bare", bare), ("empty, ordinary", ordinary)
    arguments = (inputs.query, inputs.key, rope_ext._C.cpu_capability())
    return (
        ("ceiling, x *= c", partial(ceiling.scale, *arguments)),
        ("read and write", partial(ceiling.read_write, *arguments)),
    )


def _measure(case: Case, dtype: torch.dtype, rounds: int, progress: Progress) -> Group:
    inputs = Inputs.of(case, dtype)
    subjects = [(name, "", run) for name, run in _references(case, inputs)]
    for provider in PROVIDERS:
        pairing = "interleaved" if provider.interleaved else "half-split"
        subjects.append((provider.name, pairing, repeated(provider.prepare(inputs))))
    name = f"{case.name} {_name(dtype)}"
    task = progress.add_task(name, total=rounds * len(subjects))
    samples = interleave(
        reference=subjects[0][2],
        subjects=[run for _, _, run in subjects],
        rounds=rounds,
        advance=partial(progress.advance, task),
    )
    rows = [
        Row(name, pairing, own) for (name, pairing, _), own in zip(subjects, samples, strict=True)
    ]
    return Group(case, dtype, rows)


def _memory_cells(group: Group, row: Row) -> Iterator[str]:
    ratio = Summary.of(row.samples.ratios)
    yield f"{ratio.median:.2f}"
    yield f"{ratio.lower:.2f}-{ratio.upper:.2f}"
    yield f"{statistics.median(row.samples.ratios_to(group.rows[1].samples)):.2f}"
    yield f"{group.case.bytes(group.dtype) / row.seconds / 1e9:.1f}"
    yield f"{row.seconds * 1e6:.1f}"


def _call_cells(group: Group, row: Row) -> Iterator[str]:
    multiple = Summary.of([1 / ratio for ratio in row.samples.ratios])
    yield f"{multiple.median:.2f}"
    yield f"{multiple.lower:.2f}-{multiple.upper:.2f}"
    yield f"{1 / statistics.median(row.samples.ratios_to(group.rows[1].samples)):.2f}"
    yield f"{min(row.samples.seconds) * 1e6:.2f}"
    yield f"{row.seconds * 1e6:.2f}"


MEMORY_CAPTION = "speed in units of an in-place C++ x *= c; of a load and a store\n"
CALL_CAPTION = (
    "cost in units of an operator with apply's schema that does nothing;\n"
    "bare: it skips autograd's keys, ordinary: it leaves them to torch\n"
)
MEMORY_COLUMNS = ("of\nceiling", "\nquartiles", "of read\n+ write", "\nGB/s", "\nus")
CALL_COLUMNS = ("times\nbare", "\nquartiles", "times\nordinary", "\nmin us", "\nus")


def _table(case: Case, groups: Sequence[Group]) -> Table:
    table = Table(
        title=str(case),
        caption=CALL_CAPTION if case.call_bound else MEMORY_CAPTION,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("\nprovider", no_wrap=True)
    table.add_column("\npairing", no_wrap=True)
    for column in CALL_COLUMNS if case.call_bound else MEMORY_COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for group in groups:
        table.add_row(f"[bold]{_name(group.dtype)}[/bold]")
        for row in group.rows:
            cells = (_call_cells if case.call_bound else _memory_cells)(group, row)
            table.add_row(row.name, row.pairing, *cells)
        table.add_section()
    return table


def _records(group: Group) -> Iterator[dict[str, object]]:
    for row in group.rows:
        yield {
            "case": group.case.name,
            "layout": group.case.layout,
            "dtype": _name(group.dtype),
            "bytes": group.case.bytes(group.dtype),
            "provider": row.name,
            "pairing": row.pairing,
            "reference": group.rows[0].name,
            "ratio": asdict(Summary.of(row.samples.ratios)),
            "samples": asdict(row.samples),
        }


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, got {rounds}")
    return rounds


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: those of each case")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rounds", type=_rounds, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record of the run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each case, and write the record if one is asked for."""
    arguments = _arguments(argv)
    torch.set_num_threads(arguments.threads)
    console = Console()
    progress_console = Console(stderr=True)
    with progress_console.status("Building the ceiling"):
        ceiling.load()
    console.print(
        f"{machine.processor()['model']}, {rope_ext._C.cpu_capability()}, "
        f"threads {arguments.threads}, rounds {arguments.rounds}"
    )
    records: list[dict[str, object]] = []
    for name in arguments.case:
        case = CASES[name]
        dtypes = [DTYPES[dtype] for dtype in arguments.dtype or ()] or case.dtypes
        with Progress(console=progress_console, transient=True) as progress:
            groups = [_measure(case, dtype, arguments.rounds, progress) for dtype in dtypes]
        console.print(_table(case, groups))
        records.extend(record for group in groups for record in _records(group))
    if arguments.json:
        record = {
            "processor": machine.processor(),
            "software": machine.software(),
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "results": records,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
