"""Runs every workload with every number of threads, as python does and in live mode, and sums up.

Each run is a process of its own, so that nothing is left of the run before. Machines
change speed while a benchmark runs: so stock and live take turns, and who is first
alternates over the rounds; a result is the median over the rounds, and a ratio the
median of the rounds' ratios, whose runs were near each other in time. Where objects lie
in memory, which decides what shares a slot, differs in each process.

The cyclic garbage collector stays enabled, as it is in programs.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import geometric_mean, median
from typing import NamedTuple

from .._bench.measure import Cell, Matrix, NothingDone
from .runner import WARM_UP, Answer
from .workloads import WORKLOADS

STOCK, LIVE = "stock", "live"
VARIANTS = (STOCK, LIVE)
RUNNER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "runner.py")

# Seconds from the start of a process to its end, without what it measures.
_OVERHEAD = {STOCK: 0.07, LIVE: 0.23}
# Shorter runs measure how threads start.
_SHORTEST_RUN = 0.02
# A process that takes so many seconds more than it should hangs.
_PATIENCE = 60.0

# Where stock scales worse than this, its threads contend.
CONTENDED_BELOW = 1.6
# The number of threads whose scaling is summed up, if it was measured.
_PREFERRED_THREADS = 2


class Row(NamedTuple):
    """A cell's result: medians over the rounds.

    The fields are those of the other benchmark, with an operation of the workload in
    the place of a pair.
    """

    workload: str
    variant: str
    threads: int
    ns_per_pair: float
    """Nanoseconds that a thread takes for an operation."""
    scaling: float
    """Throughput of all threads over that of one thread in the same variant."""
    atomics_per_1000_pairs: float | None
    """Atomic operations on counts that refbuf did for 1,000 operations; None for stock, which counts none."""
    pairs_per_second: float
    """Throughput: operations of all threads."""
    to_stock: float
    """Throughput over stock's with as many threads."""


class Results(NamedTuple):
    """All rows, and how they came about."""

    rows: list[Row]
    rounds: int
    cpu_share: float
    """What the runs with the most threads that have a CPU each got of these CPUs, in the median.

    Well below 1, other work has competed.
    """
    gil_enabled: bool
    """Whether the threads of any run took turns."""
    install_ms: float
    """What planning and preparing live mode took, in milliseconds, in the median."""
    sites: int
    """Instructions that live mode replaced, at the least."""
    lulls: bool = False
    """Whether live mode's sites were as they were while one thread ran."""


class Summary(NamedTuple):
    """All workloads in a few figures."""

    threads: int | None
    """Whose scaling is summed up: 2, or else the most that have a CPU each; None if only one was run."""
    contended: tuple[str, ...]
    """Workloads whose stock scales below `CONTENDED_BELOW` with so many threads."""
    contended_scaling: float | None
    """The geometric mean of live's scaling over these; None where there are none."""
    contended_scaling_stock: float | None
    """The same of stock's."""
    alone: float
    """The geometric mean of live's throughput over stock's, with one thread."""
    lowest: float
    """The lowest throughput of live over stock's, of all rows."""
    lowest_workload: str
    lowest_threads: int
    lowest_alone: float
    """The lowest with one thread."""
    lowest_alone_workload: str
    install_ms: float
    """What planning and preparing live mode took, in milliseconds."""


class ChildError(Exception):
    """A process that was to measure did not."""


def run_seconds(
    matrix: Matrix, budget: float, longest: float, overhead_of: Mapping[str, float] = _OVERHEAD
) -> float:
    """How long each run may take, so that all end within `budget` seconds.

    `overhead_of` has what else a process of each variant takes, in seconds.
    """
    pairs = matrix.runs / len(matrix.variants)
    overhead = pairs * sum(overhead_of[variant] for variant in matrix.variants)
    each = (budget - overhead) / matrix.runs / (1 + WARM_UP)
    return round(max(_SHORTEST_RUN, min(longest, each)), 3)


def measure(
    matrix: Matrix,
    seconds: float,
    cpus: int,
    on_run: Callable[[int, Cell], None],
    time_limit: float | None = None,
) -> Results:
    """Runs the matrix on so many CPUs; `on_run` hears of each run before it starts.

    With a `time_limit` in seconds, no round is started that would not end
    within it, apart from the first. Raises ChildError, and NothingDone.
    """
    samples, rounds_done = collect(matrix, lambda cell: run(cell, seconds), on_run, time_limit)
    answers = [answer for taken in samples.values() for answer in taken]
    return Results(
        rows=rows(samples),
        rounds=rounds_done,
        cpu_share=cpu_share(samples, cpus),
        gil_enabled=any(answer.gil_enabled for answer in answers),
        install_ms=1000 * median(answer.install_seconds for answer in answers if answer.install_seconds),
        sites=min(answer.sites for answer in answers if answer.sites),
        lulls=any(answer.lulls for answer in answers),
    )


def collect(
    matrix: Matrix,
    run_cell: Callable[[Cell], Answer],
    on_run: Callable[[int, Cell], None],
    time_limit: float | None,
) -> tuple[dict[Cell, list[Answer]], int]:
    """What each run of the matrix told, and how many rounds there were; see `measure`."""
    started = time.monotonic()
    samples: dict[Cell, list[Answer]] = {}
    rounds_done = 0
    for number in range(matrix.rounds):
        elapsed = time.monotonic() - started
        if time_limit is not None and number and elapsed * (number + 1) / number > time_limit:
            break
        for cell in turns(matrix, number):
            on_run(number, cell)
            samples.setdefault(cell, []).append(run_cell(cell))
        rounds_done += 1
    return samples, rounds_done


def turns(matrix: Matrix, number: int) -> Iterator[Cell]:
    """The runs of a round, in order: the variants of a cell follow each other."""
    first = number % len(matrix.variants)
    variants = (*matrix.variants[first:], *matrix.variants[:first])
    for workload in matrix.workloads:
        for threads in matrix.threads:
            for variant in variants:
                yield Cell(workload, threads, variant)


def run(cell: Cell, seconds: float) -> Answer:
    """Measures in a new process, which is gone when this returns or raises."""
    return ask(cell, command(cell, seconds), seconds, live=cell.variant == LIVE)


def ask(
    cell: Cell, line: list[str], seconds: float, *, live: bool, changes: Mapping[str, str] | None = None
) -> Answer:
    """What the process with this command line tells of its run of so many seconds.

    live: whether it must be in live mode; changes: to the environment, which is without PYTHON_GIL.
    Raises ChildError, and NothingDone. The process is gone when this returns or raises.
    """
    what = f"{cell.workload}, {cell.threads} thread{'s' * (cell.threads > 1)}, {cell.variant}"
    ended = _ended(what, line, _PATIENCE + 2 * seconds, changes or {})
    if ended.returncode:
        raise ChildError(f"{what}: {_why(ended)}")
    try:
        answer = Answer(**json.loads(ended.stdout))
    except (ValueError, TypeError):
        raise ChildError(f"{what}: printed {ended.stdout[:80]!r}, which is no answer") from None
    if (answer.sites is not None) != live:
        raise ChildError(f"{what}: live mode was {'off' if answer.sites is None else 'on'}")
    if not answer.operations:
        raise NothingDone(f"{what}: did nothing in {seconds} seconds: give more with --seconds")
    return answer


def command(cell: Cell, seconds: float) -> list[str]:
    """The command line of a run: the same program, as it is or with refbuf."""
    python = [sys.executable, "-P"]
    if cell.variant == LIVE:
        python += ["-m", "refbuf", "run"]
    return [*python, RUNNER, cell.workload, str(cell.threads), repr(seconds)]


def _ended(
    what: str, line: list[str], patience: float, changes: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a command. Its process is gone afterwards, also where this raises or is interrupted."""
    process = None
    try:
        with interrupts_wait():
            process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
                env={name: os.environ[name] for name in os.environ if name != "PYTHON_GIL"} | dict(changes),
            )
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        raise ChildError(f"{what}: did not end within {patience:g} seconds") from None
    finally:
        if process is not None:
            with process:
                process.kill()
    return subprocess.CompletedProcess(line, process.returncode, out, err)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Puts off an interrupt until a process has started, and can be ended."""
    usual = signal.default_int_handler
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        raise KeyboardInterrupt


def _why(ended: subprocess.CompletedProcess[str]) -> str:
    """How a process failed, with its last words."""
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    if ended.returncode < 0:
        how = f"was ended by signal {-ended.returncode} ({signal.strsignal(-ended.returncode)})"
    else:
        how = f"ended with status {ended.returncode}"
    return f"{how}: {lines[-1]}" if lines else how


def rows(
    samples: dict[Cell, list[Answer]], place: Callable[[Cell], tuple[int, int, int]] | None = None
) -> list[Row]:
    """Medians, and medians of the rounds' ratios to one thread and to stock.

    place: what to sort them by; without it, `_place`.
    """
    throughput = {cell: median(answer.per_second for answer in taken) for cell, taken in samples.items()}
    return [
        Row(
            workload=cell.workload,
            variant=cell.variant,
            threads=cell.threads,
            ns_per_pair=1e9 * cell.threads / throughput[cell],
            scaling=_ratio(samples[cell], samples[cell._replace(threads=1)]),
            atomics_per_1000_pairs=_atomics(samples[cell]),
            pairs_per_second=throughput[cell],
            to_stock=_ratio(samples[cell], samples[cell._replace(variant=STOCK)]),
        )
        for cell in sorted(samples, key=place or _place)
    ]


def _ratio(over: list[Answer], under: list[Answer]) -> float:
    """Of throughputs, round by round."""
    return median(one.per_second / other.per_second for one, other in zip(over, under, strict=True))


def summarize(results: Results, cpus: int) -> Summary:
    """A few figures of all rows, on so many CPUs."""
    live = [row for row in results.rows if row.variant == LIVE]
    alone = [row for row in live if row.threads == 1]
    lowest = min(live, key=lambda row: row.to_stock)
    lowest_alone = min(alone, key=lambda row: row.to_stock)
    threads = _chosen({row.threads for row in live}, cpus)
    scaling = {(row.workload, row.variant): row.scaling for row in results.rows if row.threads == threads}
    contended = tuple(
        name for (name, variant), value in scaling.items() if variant == STOCK and value < CONTENDED_BELOW
    )
    return Summary(
        threads=threads,
        contended=contended,
        contended_scaling=_mean([scaling[name, LIVE] for name in contended]),
        contended_scaling_stock=_mean([scaling[name, STOCK] for name in contended]),
        alone=geometric_mean(row.to_stock for row in alone),
        lowest=lowest.to_stock,
        lowest_workload=lowest.workload,
        lowest_threads=lowest.threads,
        lowest_alone=lowest_alone.to_stock,
        lowest_alone_workload=lowest_alone.workload,
        install_ms=results.install_ms,
    )


def _chosen(threads: set[int], cpus: int) -> int | None:
    """The number of threads whose scaling is summed up."""
    several = {count for count in threads if 1 < count <= cpus}
    return _PREFERRED_THREADS if _PREFERRED_THREADS in several else max(several, default=None)


def _mean(values: list[float]) -> float | None:
    return geometric_mean(values) if values else None


def _atomics(taken: list[Answer]) -> float | None:
    """For 1,000 operations, where they were counted."""
    counted = [1000 * answer.atomics / answer.operations for answer in taken if answer.atomics is not None]
    return median(counted) if counted else None


def cpu_share(samples: dict[Cell, list[Answer]], cpus: int) -> float:
    """See `Results.cpu_share`."""
    most = max(cell.threads for cell in samples if cell.threads <= cpus)
    return median(
        answer.cpu_share for cell, taken in samples.items() if cell.threads == most for answer in taken
    )


def _place(cell: Cell) -> tuple[int, int, int]:
    """Where a cell belongs in a table: rounds rotate the variants."""
    return list(WORKLOADS).index(cell.workload), cell.threads, VARIANTS.index(cell.variant)
