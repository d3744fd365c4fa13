"""Runs every program with every scheme and number of threads, and sums up.

Machines change speed while a benchmark runs. So the schemes take turns within each
round, in an order that rotates; a result is the median over the rounds, and a ratio
that of the rounds' own ratios.
"""

from collections.abc import Callable, Sequence
from math import ceil, inf, isfinite
from statistics import median
from typing import Any, NamedTuple

from .._refbuf import PROGRAMS, SCHEMES, calibrate_program, reclaim_delays, run_program

PLAIN = "plain"

MAKERS = {
    "main": "the main thread, which works if it is the only one, and waits for the others if not",
    "worker": "the first of the threads that work",
    "waiter": "a thread that waits meanwhile",
}


class Matrix(NamedTuple):
    """What is to be measured."""

    schemes: tuple[str, ...]
    workloads: tuple[str, ...]
    threads: tuple[int, ...]
    rounds: int
    seconds: float
    """Of each run."""
    counting_share: float = 0.05
    """The part of the time of one thread that counting has under `plain`."""
    shared: float = 0.25
    """The part of the literals of `calls` that threads share."""
    made_by: str = "main"
    """Who has made what threads share: see `MAKERS`."""
    heartbeat_ms: float = 10.0
    slots: int = 1024
    samples: int = 100
    """Cells whose way from last reference to end is timed, for each scheme."""

    @property
    def runs(self) -> int:
        """All runs of all rounds."""
        return self.rounds * len(self.workloads) * len(self.threads) * len(self.schemes)


class Cell(NamedTuple):
    """One program with so many threads in one scheme."""

    workload: str
    threads: int
    scheme: str


class Reclaim(NamedTuple):
    """From a cell's last reference to its end."""

    reclaimed: bool
    """False: never, until something is collected."""
    median_ms: float | None
    p99_ms: float | None
    """None where so many cells did not end within five heartbeats."""
    samples: int


class Row(NamedTuple):
    """A cell's result: medians over the rounds."""

    workload: str
    scheme: str
    threads: int
    ns_per_pair: float
    """Nanoseconds that a thread takes for an increment, a decrement and the work beside."""
    speed: float
    """Throughput of one thread over that of plain's one thread."""
    throughput: float
    """Throughput of all threads over that of plain's one thread."""
    scaling: float
    """Throughput of all threads over that of one thread in the same scheme."""
    atomics_per_1000_pairs: float
    header_bytes: int
    thread_bytes: int
    most_cells: int


class Results(NamedTuple):
    """All there is to report."""

    rows: list[Row]
    reclaim: dict[str, Reclaim]
    calibrations: dict[str, dict[str, float]]


def measure(matrix: Matrix, on_run: Callable[[str], None]) -> Results:
    """Measures all; `on_run` hears of each step before it starts."""
    calibrations: dict[str, dict[str, float]] = {}
    for workload in matrix.workloads:
        on_run(f"{workload}: how much work")
        calibrations[workload] = dict(
            calibrate_program(workload, share=matrix.shared, target=matrix.counting_share, seed=0)
        )
    samples: dict[Cell, list[dict[str, Any]]] = {}
    for number in range(matrix.rounds):
        for workload in matrix.workloads:
            for threads in matrix.threads:
                for scheme in _rotated(matrix.schemes, number):
                    cell = Cell(workload, threads, scheme)
                    on_run(f"{workload}, {threads} thread{'s' * (threads > 1)}, {scheme}")
                    samples.setdefault(cell, []).append(_run(matrix, cell, number, calibrations[workload]))
    reclaim = {}
    for scheme in matrix.schemes:
        on_run(f"last reference to end, {scheme}")
        reclaim[scheme] = _reclaim(matrix, scheme)
    return Results(_rows(samples), reclaim, calibrations)


def steps(matrix: Matrix) -> int:
    """How often `on_run` is called."""
    return matrix.runs + len(matrix.workloads) + len(matrix.schemes)


def _run(matrix: Matrix, cell: Cell, number: int, calibration: dict[str, float]) -> dict[str, Any]:
    return dict(
        run_program(
            cell.scheme,
            cell.workload,
            threads=cell.threads,
            seconds=matrix.seconds,
            work=int(calibration["work"]),
            share=matrix.shared,
            made_by_worker=matrix.made_by == "worker" or (matrix.made_by == "main" and cell.threads == 1),
            seed=number,
            heartbeat_ms=matrix.heartbeat_ms,
            slots=matrix.slots,
        )
    )


def _reclaim(matrix: Matrix, scheme: str) -> Reclaim:
    delays = reclaim_delays(
        scheme, samples=matrix.samples, heartbeat_ms=matrix.heartbeat_ms, slots=matrix.slots
    )
    if all(delay is None for delay in delays):
        return Reclaim(False, None, None, len(delays))
    ordered = sorted(inf if delay is None else delay / 1e6 for delay in delays)
    p99 = ordered[ceil(len(ordered) * 0.99) - 1]
    return Reclaim(True, _or_none(median(ordered)), _or_none(p99), len(delays))


def _or_none(delay: float) -> float | None:
    return delay if isfinite(delay) else None


def _rotated(schemes: Sequence[str], by: int) -> list[str]:
    by %= len(schemes)
    return [*schemes[by:], *schemes[:by]]


def _rows(samples: dict[Cell, list[dict[str, Any]]]) -> list[Row]:
    rows = []
    for cell in sorted(samples, key=_place):
        taken = samples[cell]
        plain = samples[Cell(cell.workload, 1, PLAIN)]
        alone = samples[cell._replace(threads=1)]
        rows.append(
            Row(
                workload=cell.workload,
                scheme=cell.scheme,
                threads=cell.threads,
                ns_per_pair=median(run["ns_per_pair"] for run in taken),
                speed=_ratio(alone, plain),
                throughput=_ratio(taken, plain),
                scaling=_ratio(taken, alone),
                atomics_per_1000_pairs=median(run["atomics_per_1000_pairs"] for run in taken),
                header_bytes=taken[0]["header_bytes"],
                thread_bytes=max(run["thread_bytes"] for run in taken),
                most_cells=max(run["most_cells"] for run in taken),
            )
        )
    return rows


def _ratio(taken: Sequence[dict[str, Any]], to: Sequence[dict[str, Any]]) -> float:
    """Of throughputs. Runs of one round are neighbours in time, and the machine's speed is the same."""
    return median(
        run["pairs_per_second"] / other["pairs_per_second"] for run, other in zip(taken, to, strict=True)
    )


def _place(cell: Cell) -> tuple[int, int, int]:
    return PROGRAMS.index(cell.workload), cell.threads, SCHEMES.index(cell.scheme)
