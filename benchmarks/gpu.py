"""Measure rope_ext on a GPU against a copy of the same bytes: ``python -m benchmarks.gpu``."""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.cases import CASES, Case, Inputs
from benchmarks.measure import Summary
from benchmarks.providers import PROVIDERS, Call

ROUNDS = 15
BLOCK_MILLISECONDS = 5.0


@dataclass(frozen=True)
class Row:
    """One subject of a case: microseconds a call, one entry a round, and those of the copy."""

    case: str
    dtype: str
    provider: str
    pairing: str
    microseconds: list[float]
    copy: list[float]

    @property
    def ratios(self) -> list[float]:
        """The speed in units of the copy's."""
        return [copy / own for copy, own in zip(self.copy, self.microseconds, strict=True)]


def _microseconds(call: Call, calls: int) -> float:
    call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / calls


def _calls_per_block(call: Call) -> int:
    once = min(_microseconds(call, 4) for _ in range(3))
    return max(1, round(BLOCK_MILLISECONDS * 1e3 / once))


def _in_graph(call: Call) -> Call:
    """Capture a call: what remains is the GPU's own time, without the host's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_GRAPH_CALLS):
            call()
    return graph.replay


_GRAPH_CALLS = 20


def _subjects(case: Case, inputs: Inputs) -> Iterator[tuple[str, str, Call, int]]:
    """Name, pairing, call and how often that call rotates."""
    for provider in PROVIDERS:
        pairing = "interleaved" if provider.interleaved else "half-split"
        call = provider.prepare(inputs)
        yield provider.name, pairing, call, 1
        if provider.name.startswith("eager"):
            compiled: Callable[[], object] = torch.compile(call, fullgraph=True)
            yield provider.name.replace("eager", "torch.compile"), pairing, compiled, 1
        elif provider.name == "rope.apply.default" and case.call_bound:
            yield "the same in a CUDA graph", pairing, _in_graph(call), _GRAPH_CALLS


def _measure(case: Case, dtype: torch.dtype, rounds: int) -> list[Row]:
    inputs = Inputs.of(case, dtype)
    inputs = replace(
        inputs, **{name: getattr(inputs, name).cuda() for name in ("query", "key", "cos", "sin")}
    )
    source = torch.empty(case.bytes(dtype) // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> object:
        return target.copy_(source)

    name = str(dtype).removeprefix("torch.")
    subjects = [
        (Row(case.name, name, provider, pairing, [], []), call, times, _calls_per_block(call))
        for provider, pairing, call, times in _subjects(case, inputs)
    ]
    copies = _calls_per_block(copy)
    for _ in range(rounds):
        for row, call, times, calls in subjects:
            row.copy.append(_microseconds(copy, copies))
            row.microseconds.append(_microseconds(call, calls) / times)
    return [row for row, *_ in subjects]


def _table(case: Case, rows: Sequence[Row]) -> Table:
    table = Table(title=str(case), title_justify="left")
    for column in ("dtype", "provider", "pairing", "of a copy", "quartiles", "us"):
        table.add_column(column)
    for row in rows:
        ratio = Summary.of(row.ratios)
        table.add_row(
            row.dtype,
            row.provider,
            row.pairing,
            f"{ratio.median:.2f}",
            f"{ratio.lower:.2f}-{ratio.upper:.2f}",
            f"{statistics.median(row.microseconds):.2f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each case, and write the record if one is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record of the run")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("a GPU must be there, got none that torch can use")
    console = Console()
    console.print(torch.cuda.get_device_name())
    rows: list[Row] = []
    for name in arguments.case:
        own = [
            row
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
            for row in _measure(CASES[name], dtype, arguments.rounds)
        ]
        console.print(_table(CASES[name], own))
        rows.extend(own)
    if arguments.json:
        record = {
            "device": torch.cuda.get_device_name(),
            "processor": machine.processor(),
            "software": machine.software(),
            "rounds": arguments.rounds,
            "results": [asdict(row) | {"ratio": asdict(Summary.of(row.ratios))} for row in rows],
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
