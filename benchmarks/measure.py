"""Timing in interleaved rounds: all subjects of a case meet the same state of a shared machine."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat

# What is timed: it makes as many calls as it is told.
Run = Callable[[int], object]

BLOCK_SECONDS = 0.02


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one entry a round, and those of the reference block just before it."""

    calls: int
    seconds: list[float]
    reference: list[float]

    @property
    def ratios(self) -> list[float]:
        """The speed in units of the reference's, one entry a round."""
        return [
            reference / seconds
            for reference, seconds in zip(self.reference, self.seconds, strict=True)
        ]

    def ratios_to(self, other: "Samples") -> list[float]:
        """The speed in units of another subject's, each first set against its own reference."""
        return [own / others for own, others in zip(self.ratios, other.ratios, strict=True)]


@dataclass(frozen=True)
class Summary:
    """The median and the quartiles around it."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper)


def repeated(call: Callable[[], object]) -> Run:
    """Return the run that makes a call from Python again and again."""

    def run(calls: int) -> None:
        for _ in repeat(None, calls):
            call()

    return run


def _seconds(run: Run, calls: int) -> float:
    # The first call finds the caches as the block before left them: it is not counted.
    run(1)
    begin = time.perf_counter()
    run(calls)
    return time.perf_counter() - begin


def _calls_per_block(run: Run) -> int:
    calls = 1
    while _seconds(run, calls) < BLOCK_SECONDS:
        calls *= 2
    return calls


def interleave(
    reference: Run,
    subjects: Sequence[Run],
    rounds: int,
    advance: Callable[[], object] = lambda: None,
) -> list[Samples]:
    """Time every subject once a round, each block just after a block of the reference.

    The order changes from round to round: some subjects leave the machine slower for a while, and
    none should always follow the same one. `advance` is called after each subject's block.

    Returns the samples of each subject, in the order given.
    """
    reference_calls = _calls_per_block(reference)
    samples = [Samples(_calls_per_block(subject), [], []) for subject in subjects]
    pairs = list(zip(subjects, samples, strict=True))
    shuffler = random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for subject, own in shuffler.sample(pairs, len(pairs)):
                own.reference.append(_seconds(reference, reference_calls) / reference_calls)
                own.seconds.append(_seconds(subject, own.calls) / own.calls)
                advance()
    finally:
        if collecting:
            gc.enable()
    return samples
