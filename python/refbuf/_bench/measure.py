"""Runs every workload with every number of threads in every variant, and sums up.

Machines change speed while a benchmark runs. So the variants take turns within
each round, in an order that rotates, on the same objects; a result is the
median over the rounds. Each round makes new objects, since where they lie in
memory decides which of them share a slot.

The cyclic garbage collector stays enabled. It is run before the objects of each
workload are made; while threads are measured no Python code runs that could
set it off.
"""

import gc
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from .. import flush_all, workloads
from ..workloads import Run

STOCK = "stock"
# Variants of threads that are not attached.
DETACHED = ("detached", "attach-per-clone", "arc", "pool")

# Between the runs, in seconds: threads, and copies of the lists of objects.
_OVERHEAD = 0.006
_OVERHEAD_WIDE = 0.12
# Threads that are not attached get a million handles first.
_OVERHEAD_WIDE_DETACHED = 0.45
_OVERHEAD_WIDE_ROUND = 0.6
# Shorter runs measure how threads start.
_SHORTEST_RUN = 0.02


class Matrix(NamedTuple):
    """What is to be measured."""

    workloads: tuple[str, ...]
    threads: tuple[int, ...]
    variants: tuple[str, ...]
    rounds: int
    work_ns: float = 0.0
    """Other work beside each pair, in nanoseconds."""

    @property
    def runs(self) -> int:
        """All runs of all rounds."""
        return self.rounds * len(self.workloads) * len(self.threads) * len(self.variants)

    def run_seconds(self, budget: float, longest: float) -> float:
        """How long each run may take, so that all end within `budget` seconds."""
        overhead = _OVERHEAD * self.runs
        if "wide" in self.workloads:
            detached = len(set(self.variants) & set(DETACHED))
            each = self.rounds * len(self.threads)
            overhead += each * _OVERHEAD_WIDE * (len(self.variants) - detached)
            overhead += each * _OVERHEAD_WIDE_DETACHED * detached + _OVERHEAD_WIDE_ROUND * self.rounds
        return round(max(_SHORTEST_RUN, min(longest, (budget - overhead) / self.runs)), 3)


class Cell(NamedTuple):
    """One workload with so many threads in one variant."""

    workload: str
    threads: int
    variant: str


class Row(NamedTuple):
    """A cell's result: medians over the rounds."""

    workload: str
    variant: str
    threads: int
    ns_per_pair: float
    """Nanoseconds that a thread takes for an increment and a decrement."""
    scaling: float
    """Throughput of all threads over that of one thread in the same variant."""
    atomics_per_1000_pairs: float
    pairs_per_second: float
    """Throughput: pairs of all threads."""
    to_stock: float
    """Throughput over stock's with as many threads."""


class Sample(NamedTuple):
    """One run of a cell."""

    run: Run
    cpu_share: float
    """CPU time that the process got, over that of `threads` CPUs."""


class Results(NamedTuple):
    """All rows, and how they came about."""

    rows: list[Row]
    rounds: int
    cpu_share: float
    """What the runs with the most threads that have a CPU each got of these CPUs, in the median.

    Well below 1, other work has competed, or threads have taken turns.
    """


class NothingDone(Exception):
    """A run was too short for its threads to do anything."""


def measure(
    matrix: Matrix,
    seconds: float,
    cpus: int,
    on_run: Callable[[int, Cell], None],
    time_limit: float | None = None,
) -> Results:
    """Runs the matrix on so many CPUs; `on_run` hears of each run before it starts.

    With a `time_limit` in seconds, no round is started that would not end
    within it, apart from the first.
    """
    started = time.monotonic()
    samples: dict[Cell, list[Sample]] = {}
    rounds_done = 0
    for number in range(matrix.rounds):
        elapsed = time.monotonic() - started
        if time_limit is not None and number and elapsed * (number + 1) / number > time_limit:
            break
        for workload in matrix.workloads:
            _run_workload(matrix, workload, number, seconds, samples, on_run)
        rounds_done += 1
    return Results(_rows(samples), rounds_done, _cpu_share(samples, cpus))


def _run_workload(
    matrix: Matrix,
    workload: str,
    number: int,
    seconds: float,
    samples: dict[Cell, list[Sample]],
    on_run: Callable[[int, Cell], None],
) -> None:
    """One round of one workload. Its objects live no longer: those of wide are many."""
    gc.collect()
    # Made in this thread, and so foreign to the workers.
    objects = workloads.make_objects(workload)
    for threads in matrix.threads:
        for variant in _rotated(matrix.variants, number):
            cell = Cell(workload, threads, variant)
            on_run(number, cell)
            wall, cpu = time.perf_counter(), time.process_time()
            run = workloads.run(
                workload,
                variant,
                objects,
                threads=threads,
                seconds=seconds,
                seed=number,
                work_ns=matrix.work_ns,
            )
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            # Settles what the ended threads have left, before the next run.
            flush_all()
            if not run.pairs:
                raise NothingDone(f"{workload} did nothing in {seconds} seconds: give more with --seconds")
            samples.setdefault(cell, []).append(Sample(run, cpu / (wall * threads)))


def _rotated(variants: Sequence[str], by: int) -> list[str]:
    by %= len(variants)
    return [*variants[by:], *variants[:by]]


def _rows(samples: dict[Cell, list[Sample]]) -> list[Row]:
    """Medians, and their ratios to those of one thread and of stock."""
    runs = {cell: [sample.run for sample in taken] for cell, taken in samples.items()}
    throughput = {cell: median(run.pairs_per_second for run in taken) for cell, taken in runs.items()}
    return [
        Row(
            workload=cell.workload,
            variant=cell.variant,
            threads=cell.threads,
            ns_per_pair=median(run.ns_per_pair for run in runs[cell]),
            scaling=throughput[cell] / throughput[cell._replace(threads=1)],
            atomics_per_1000_pairs=median(run.atomics_per_1000_pairs for run in runs[cell]),
            pairs_per_second=throughput[cell],
            to_stock=throughput[cell] / throughput[cell._replace(variant=STOCK)],
        )
        for cell in sorted(samples, key=_place)
    ]


def _cpu_share(samples: dict[Cell, list[Sample]], cpus: int) -> float:
    most = max(cell.threads for cell in samples if cell.threads <= cpus)
    fullest = [taken for cell, taken in samples.items() if cell.threads == most]
    return median(sample.cpu_share for taken in fullest for sample in taken)


def _place(cell: Cell) -> tuple[int, int, int]:
    """Where a cell belongs in a table: rounds rotate the variants."""
    return (
        workloads.WORKLOADS.index(cell.workload),
        cell.threads,
        workloads.VARIANTS.index(cell.variant),
    )
