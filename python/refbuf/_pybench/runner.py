"""One run of one workload, in a process of its own.

    python -P runner.py WORKLOAD THREADS SECONDS
    python -P -m refbuf run runner.py WORKLOAD THREADS SECONDS

Run by its path, as it must load nothing of refbuf: only in the second form it is there.
The main thread makes what is shared, then waits: it counts nothing while threads do.

Prints one line of JSON, see `Answer`.
"""

import os
import sys
import threading
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any, NamedTuple

# Of the time that is measured: each thread first runs so long, as code is specialized
# for the thread that runs it, and objects have to earn their places in its table.
WARM_UP = 0.2
# Passes through the loop's body between two looks at the clock.
PASSES = 200


class Answer(NamedTuple):
    """What a process tells of its run."""

    operations: int
    """Of all threads."""
    per_second: float
    """Throughput: the sum of what each thread did in a second of its own time."""
    cpu_share: float
    """CPU time that the process got, over that of a CPU for each thread."""
    atomics: int | None
    """Atomic operations on counts, where they are counted: where refbuf was loaded."""
    install_seconds: float | None
    """Time to plan and prepare live mode; None without it."""
    sites: int | None
    """Instructions that live mode has replaced; None without it."""
    gil_enabled: bool
    """Whether the threads took turns."""
    counts: int | None = None
    """Increments and decrements that came to refbuf, where it was loaded; see `refbuf.Stats`."""
    lulls: bool | None = None
    """Whether the sites are as they were while one thread at a time runs; None without live mode."""


class _Start:
    """What the last thread that is ready for the start does for all: it reads the clocks."""

    def __call__(self) -> None:
        self.stats = _stats()
        self.cpu = process_time()
        self.wall = perf_counter()


def run(loop: Callable[[int], int], threads: int, seconds: float) -> Answer:
    """Has so many threads run the loop for so long, all at once."""
    start = _Start()
    barrier = threading.Barrier(threads, start)
    done: list[tuple[int, float]] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            _run_until(loop, perf_counter() + seconds * WARM_UP)
            barrier.wait()
            operations = _run_until(loop, start.wall + seconds)
            done.append((operations, perf_counter() - start.wall))
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    try:
        for worker in workers:
            worker.start()
    except BaseException:
        barrier.abort()
        raise
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    wall, cpu = perf_counter() - start.wall, process_time() - start.cpu
    before, after = start.stats, _stats()
    counted = before is not None and after is not None
    # Loaded is not installed: an extension may have imported it, to count through it.
    report = _refbuf().install() if _refbuf() and _refbuf().installed() else None
    return Answer(
        operations=sum(operations for operations, _ in done),
        per_second=sum(operations / taken for operations, taken in done),
        cpu_share=cpu / (wall * threads),
        atomics=after.atomics - before.atomics if counted else None,
        install_seconds=report and report.seconds,
        sites=report and report.sites,
        gil_enabled=getattr(sys, "_is_gil_enabled", lambda: True)(),
        counts=after.operations - before.operations if counted else None,
        lulls=report and report.lulls,
    )


def _run_until(loop: Callable[[int], int], deadline: float) -> int:
    """How many operations were done until then."""
    operations = 0
    while perf_counter() < deadline:
        operations += loop(PASSES)
    return operations


def _refbuf() -> Any:
    """The package, where `python -m refbuf run` has loaded it, or an extension."""
    return sys.modules.get("refbuf")


def _stats() -> Any:
    return _refbuf().stats() if _refbuf() else None


def main(name: str, threads: str, seconds: str) -> None:
    """Makes what is shared, and runs."""
    # The file beside this one, even if python was told to look for none there.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from workloads import WORKLOADS

    workload = WORKLOADS[name]
    answer = run(workload.loop(workload.make()), int(threads), float(seconds))
    import json

    print(json.dumps(answer._asdict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
