"""`python -m refbuf bench --extensions`: packages of others on shared objects, stock and with the shim."""

import shlex
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .. import _refbuf
from .._bench import machine
from .._bench.measure import Matrix, NothingDone
from .._extbench.measure import (
    LIVE_VARIANTS,
    OVERHEAD,
    VARIANTS,
    Places,
    Results,
    measure,
    summarize,
)
from .._extbench.packages import FLAGS, PACKAGES, BuildError, provide
from .._extbench.workloads import WORKLOADS
from .._pybench.measure import ChildError, run_seconds
from .._pybench.runner import WARM_UP
from .._pybench.workloads import UNROLLED
from . import CommandError
from .arguments import names
from .files import check_installed, check_writable, picture_kind
from .measuring import COMMAND, add_options, thread_counts, write_files
from .parser import Parser

DESCRIPTION = f"""Measures what threads do that call into packages of others, with objects that they
share: {", ".join(PACKAGES)}, compiled as they are (stock), and with
refbuf's shim (shim), by which their own reference counts go through the buffers.
The packages are downloaded, at pinned versions, and built once each way, into
$XDG_CACHE_HOME or ~/.cache, below refbuf/extensions: the first time that takes
minutes. Each run is a process of its own, and all variants take turns. Prints a table:
nanoseconds that a thread takes for an operation of the workload, scaling
(throughput of all threads over that of one), throughput over stock's, and atomic
operations; then which share of the counts the interpreter still does."""

EPILOG = """The main thread makes the objects and only waits, so that one thread too works on
objects of another. One thread, and stock, are always measured, to compare with.
In the JSON, rows have the keys of bench without --extensions, where a pair is an
operation of the workload here. Free-threaded interpreters run with PYTHON_GIL=0.
Needed: pip, a C compiler, and once the network.
Exit status: 0, 2 for bad usage or where something is missing, 130 if interrupted."""

TITLE = "Packages on shared objects"
DEFAULT_ROUNDS, QUICK_ROUNDS = 5, 3
# Seconds for all runs, from which follows how long each may take.
DEFAULT_BUDGET, QUICK_BUDGET = 120.0, 40.0
LONGEST_RUN, LONGEST_QUICK_RUN = 0.5, 0.25
# No quick round starts that would end after so many seconds: what is slower
# than planned gets fewer rounds.
QUICK_LIMIT = 52.0
# Of bench without --extensions.
OTHERS_OPTIONS = ("--variants", "--work-ns")


def main(arguments: Sequence[str]) -> int:
    """Builds, measures and reports; returns the exit status."""
    options = _parser().parse_args(arguments)
    for option in OTHERS_OPTIONS:
        if getattr(options, option[2:].replace("-", "_")) is not None:
            raise CommandError(f"bench: {option} is not for --extensions, which measures stock and shim")
    chosen_workloads = names(COMMAND, "workload", options.workloads, tuple(WORKLOADS))
    chosen_threads = thread_counts(options.threads)
    # All that can fail does so before minutes of building and measuring.
    obstacle = _refbuf.live_obstacle()
    if options.live and obstacle is not None:
        raise CommandError(f"bench: --live: {obstacle}")
    suffix = picture_kind(COMMAND, options.plot)
    for path in (options.json, options.plot):
        check_writable(COMMAND, path)
    check_installed(COMMAND, options.plot)

    quick = options.quick
    matrix = Matrix(
        workloads=chosen_workloads,
        threads=tuple(sorted({1, *chosen_threads})),
        variants=VARIANTS + LIVE_VARIANTS if options.live else VARIANTS,
        rounds=options.rounds or (QUICK_ROUNDS if quick else DEFAULT_ROUNDS),
    )
    places = _provide(chosen_workloads)
    seconds = options.seconds or run_seconds(
        matrix,
        QUICK_BUDGET if quick else DEFAULT_BUDGET,
        LONGEST_QUICK_RUN if quick else LONGEST_RUN,
        OVERHEAD,
    )
    used = dict.fromkeys(WORKLOADS[name].package for name in chosen_workloads)
    meta = machine.describe() | {
        "python_name": machine.python_name(),
        "command": shlex.join(["python", "-m", "refbuf", "bench", *arguments]),
        "quick": quick,
        "live": options.live,
        "packages": {name: PACKAGES[name].source.version for name in used},
        "flags": " ".join(FLAGS),
        "seconds": seconds,
        "warm_up_seconds": round(seconds * WARM_UP, 4),
        "unit": f"a pair is an operation of the workload; a loop's body has {UNROLLED}",
        "operations": {name: WORKLOADS[name].operation for name in matrix.workloads},
        "garbage_collector": "enabled",
    }
    results = _measure(matrix, seconds, places, QUICK_LIMIT if quick else None, obstacle is None)
    _report(results, matrix, meta, ["1 thread"] if 1 not in chosen_threads else [], obstacle)

    from .._pybench.report import as_json

    def drawing() -> Callable[[], bytes]:
        from .._pybench.plot import draw

        return partial(draw, results.rows, meta, suffix, TITLE)

    write_files(options.json, partial(as_json, results, meta), options.plot, drawing)
    return 0


def _provide(workloads: tuple[str, ...]) -> Places:
    """The packages of these workloads, built."""
    used = dict.fromkeys(WORKLOADS[name].package for name in workloads)
    try:
        return provide([PACKAGES[name] for name in used], _say)
    except (BuildError, OSError) as error:
        # OSError: headers that are missing, or a cache that cannot be written.
        raise CommandError(f"bench: --extensions: {error}") from None


def _say(step: str) -> None:
    print(step, file=sys.stderr, flush=True)


def _measure(
    matrix: Matrix, seconds: float, places: Places, time_limit: float | None, live_possible: bool
) -> Results:
    from .._bench.report import progress

    try:
        with progress(matrix) as on_run:
            return measure(
                matrix,
                seconds,
                machine.cpus(),
                places,
                on_run,
                time_limit=time_limit,
                live_possible=live_possible,
            )
    except (ChildError, NothingDone, OSError) as error:
        # OSError: no process can be started.
        raise CommandError(f"bench: {error}") from None


def _report(
    results: Results, matrix: Matrix, meta: dict[str, Any], added: list[str], obstacle: str | None
) -> None:
    """Prints all, and adds to `meta` what is known only now."""
    from rich.console import Console

    from .._extbench import report
    from .._pybench.report import short

    console = Console(highlight=False)
    figures = summarize(results.rows)
    meta |= {
        "gil_enabled": results.gil_enabled,
        "rounds": results.rounds,
        "cpu_share": round(results.cpu_share, 3),
        "counts": report.counts_as_json(results.counts),
        "summary": [{name: short(value) for name, value in each._asdict().items()} for each in figures],
    }
    meta["notes"] = report.notes(meta, matrix, results, added)
    report.introduce(console, meta)
    console.print(report.table(results.rows))
    if results.counts:
        console.print(report.shares(results.counts))
        console.print(report.shares_line(results.counts, obstacle))
    for line in report.summary(figures):
        console.print(line)


def _parser() -> Parser:
    parser = Parser("bench --extensions", DESCRIPTION, EPILOG)
    # So that errors begin as all of bench do.
    parser.command = COMMAND
    add = parser.add_argument
    add("--extensions", action="store_true", help="this benchmark; without it, bench counts references alone")
    add("--live", action="store_true", help="measure both under live mode too: stock-live and shim-live")
    for option in OTHERS_OPTIONS:
        add(option, help=SUPPRESS)
    add_options(
        parser,
        workloads=WORKLOADS,
        rounds=(DEFAULT_ROUNDS, QUICK_ROUNDS),
        quick_seconds=60,
        minutes="two minutes",
        picture=", stock and shim",
    )
    return parser
