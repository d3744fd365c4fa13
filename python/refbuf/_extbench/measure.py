"""Runs every workload with every number of threads, with the packages as they are and with the
shim, and finds out who counts.

As for `bench --python`, each run is a process of its own, variants take turns, results are medians
over the rounds, and ratios medians of the rounds' ratios. All processes of a free-threaded build
have PYTHON_GIL=0, as lru-dict would enable the GIL; those with the shim have REFBUF_REQUIRE=1, and
must have counted through refbuf.

Who counts. On a free-threaded build each count of a foreign object is an atomic operation, unless
refbuf does it. How many there are for an operation follows from two runs with the shim:

- as it is run, only the extension's counts come to refbuf: `refbuf.stats().operations` is theirs;
- under live mode the interpreter's come there as well, by the instructions that live mode has
  replaced, so that it is all of them, and the rest is the interpreter's.

Sound as far as live mode sees the interpreter's counts: a swap of an object that has no place in
the table is not seen (docs/LIVE.md), nor is what was left alone. For few shared objects, as here,
which nearly always have their places, that is next to nothing: the extension's are whole numbers,
the sum is one but for 0.1 of the loop, and the stock builds give the same sums under live mode. A
thread's counts of its own objects, and of immortal ones, are no atomic operations, and not among them.
"""

import os
import sys
from collections.abc import Callable, Mapping
from statistics import geometric_mean, median
from typing import NamedTuple

from .._bench.machine import free_threaded
from .._bench.measure import Cell, Matrix
from .._pybench.measure import ChildError, Row, ask, collect, cpu_share, rows
from .._pybench.runner import Answer
from .packages import SHIM, STOCK
from .workloads import WORKLOADS

STOCK_LIVE, SHIM_LIVE = "stock-live", "shim-live"
VARIANTS = (STOCK, SHIM)
LIVE_VARIANTS = (STOCK_LIVE, SHIM_LIVE)
ALL_VARIANTS = VARIANTS + LIVE_VARIANTS
PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "program.py")

# Seconds from the start of a process to its end, without what it measures.
OVERHEAD = {STOCK: 0.15, SHIM: 0.2, STOCK_LIVE: 0.4, SHIM_LIVE: 0.4}

# By a package's name and the build's, the directory that has it.
Places = Mapping[tuple[str, str], str]


class Counts(NamedTuple):
    """Increments and decrements of foreign objects, for one operation of a workload."""

    extension: float
    """Those that the package's own code does."""
    interpreter: float | None
    """Those that it has the interpreter do, and what calls it; None where live mode is not possible."""
    atomics: float
    """Atomic operations on counts that refbuf did with the shim, for the extension's."""

    @property
    def all(self) -> float | None:
        """As many atomic operations has the stock build."""
        return None if self.interpreter is None else self.extension + self.interpreter

    @property
    def share(self) -> float | None:
        """The interpreter's share, from 0 to 1."""
        return None if self.interpreter is None or not self.all else self.interpreter / self.all

    @property
    def left(self) -> float | None:
        """Atomic operations that the build with the shim still has."""
        return None if self.interpreter is None else self.interpreter + self.atomics


class Results(NamedTuple):
    """All rows, and how they came about."""

    rows: list[Row]
    rounds: int
    cpu_share: float
    """See `refbuf._pybench.measure.Results`."""
    gil_enabled: bool
    """Whether the threads of any run took turns."""
    counts: dict[str, Counts]
    """Of each workload; empty on builds with a GIL, which count without atomic operations."""


class Summary(NamedTuple):
    """A variant's throughput over stock's with one number of threads."""

    threads: int
    variant: str
    mean: float
    """The geometric mean over the workloads."""
    lowest: float
    lowest_workload: str
    highest: float
    highest_workload: str


def measure(
    matrix: Matrix,
    seconds: float,
    cpus: int,
    places: Places,
    on_run: Callable[[int, Cell], None],
    *,
    time_limit: float | None = None,
    live_possible: bool,
) -> Results:
    """Runs the matrix on so many CPUs; `on_run` hears of each run before it starts.

    With a `time_limit` in seconds, no round is started that would not end within it, apart from
    the first. Raises ChildError, and NothingDone.
    """

    def run_cell(cell: Cell) -> Answer:
        return run(cell, seconds, places)

    samples, rounds_done = collect(matrix, run_cell, on_run, time_limit)
    return Results(
        rows=rows(samples, _place),
        rounds=rounds_done,
        cpu_share=cpu_share(samples, cpus),
        gil_enabled=any(answer.gil_enabled for taken in samples.values() for answer in taken),
        counts=_counts(matrix.workloads, samples, run_cell if live_possible else None)
        if free_threaded()
        else {},
    )


def run(cell: Cell, seconds: float, places: Places) -> Answer:
    """Measures in a new process, which is gone when this returns or raises."""
    live, shim = cell.variant in LIVE_VARIANTS, cell.variant in (SHIM, SHIM_LIVE)
    changes = {"REFBUF_REQUIRE": "0"}
    if free_threaded():
        changes = {"REFBUF_REQUIRE": str(int(shim)), "PYTHON_GIL": "0"}
    answer = ask(cell, command(cell, seconds, places), seconds, live=live, changes=changes)
    if free_threaded() and not live and bool(answer.counts) != shim:
        how = "counted nothing through refbuf" if shim else "counted through refbuf"
        raise ChildError(f"{cell.workload}, {cell.variant}: the package {how}")
    return answer


def command(cell: Cell, seconds: float, places: Places) -> list[str]:
    """The command line of a run."""
    python = [sys.executable, "-P"]
    if cell.variant in LIVE_VARIANTS:
        python += ["-m", "refbuf", "run"]
    build = SHIM if cell.variant in (SHIM, SHIM_LIVE) else STOCK
    place = places[WORKLOADS[cell.workload].package, build]
    return [*python, PROGRAM, cell.workload, str(cell.threads), repr(seconds), place]


def _counts(
    workloads: tuple[str, ...],
    samples: dict[Cell, list[Answer]],
    run_cell: Callable[[Cell], Answer] | None,
) -> dict[str, Counts]:
    """Of runs with one thread. What is missing is measured, if there is something to do so."""
    found = {}
    for workload in workloads:
        shim = samples[Cell(workload, 1, SHIM)]
        cell = Cell(workload, 1, SHIM_LIVE)
        live = samples.get(cell) or ([run_cell(cell)] if run_cell else None)
        extension = median(_each(answer, answer.counts) for answer in shim)
        found[workload] = Counts(
            extension=extension,
            # Not below 0, where the two runs differ by chance.
            interpreter=live
            and max(0.0, median(_each(answer, answer.counts) for answer in live) - extension),
            atomics=median(_each(answer, answer.atomics) for answer in shim),
        )
    return found


def _each(answer: Answer, number: int | None) -> float:
    return (number or 0) / answer.operations


def summarize(found: list[Row]) -> list[Summary]:
    """For each number of threads, and each variant but stock."""
    made = []
    for threads, variant in dict.fromkeys((row.threads, row.variant) for row in found):
        if variant == STOCK:
            continue
        chosen = [row for row in found if (row.threads, row.variant) == (threads, variant)]
        lowest, highest = (pick(chosen, key=lambda row: row.to_stock) for pick in (min, max))
        made.append(
            Summary(
                threads=threads,
                variant=variant,
                mean=geometric_mean(row.to_stock for row in chosen),
                lowest=lowest.to_stock,
                lowest_workload=lowest.workload,
                highest=highest.to_stock,
                highest_workload=highest.workload,
            )
        )
    return made


def _place(cell: Cell) -> tuple[int, int, int]:
    """Where a cell belongs in a table: rounds rotate the variants."""
    return list(WORKLOADS).index(cell.workload), cell.threads, ALL_VARIANTS.index(cell.variant)
