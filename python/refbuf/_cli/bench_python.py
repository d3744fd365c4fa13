"""`python -m refbuf bench --python`: programs of Python on shared objects, as they are and in live mode."""

import shlex
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .. import _refbuf
from .._bench import machine
from .._bench.measure import Matrix, NothingDone
from .._pybench.measure import VARIANTS, ChildError, Results, measure, run_seconds, summarize
from .._pybench.runner import WARM_UP
from .._pybench.workloads import UNROLLED, WORKLOADS
from . import CommandError
from .arguments import names
from .files import check_installed, check_writable, picture_kind
from .measuring import COMMAND, add_options, thread_counts, write_files
from .parser import Parser

DESCRIPTION = """Measures what pure Python costs on objects that threads share: as python runs it
(stock), and under `python -m refbuf run` (live), where the interpreter's own
reference counts go through the buffers. Each run is a process of its own; stock
and live take turns. Prints a table: nanoseconds that a thread takes for an
operation of the workload, live's throughput over stock's, and scaling
(throughput of all threads over that of one); then the table in a few figures."""

EPILOG = """The main thread makes the objects and only waits, so that one thread too works on
objects of another. One thread, and stock, are always measured, to compare with.
In the JSON, rows have the keys of bench without --python, where a pair is an
operation of the workload here. Environment: as it is, without PYTHON_GIL.
Exit status: 0, 2 for bad usage or where live mode is not possible, 130 if
interrupted."""

DEFAULT_ROUNDS, QUICK_ROUNDS = 5, 3
# Seconds for all runs, from which follows how long each may take.
DEFAULT_BUDGET, QUICK_BUDGET = 170.0, 45.0
LONGEST_RUN, LONGEST_QUICK_RUN = 0.5, 0.25
# No quick round starts that would end after so many seconds: what is slower
# than planned gets fewer rounds.
QUICK_LIMIT = 52.0
# Of bench without --python.
OTHERS_OPTIONS = ("--variants", "--work-ns")


def main(arguments: Sequence[str]) -> int:
    """Measures and reports; returns the exit status."""
    options = _parser().parse_args(arguments)
    for option in OTHERS_OPTIONS:
        if getattr(options, option[2:].replace("-", "_")) is not None:
            raise CommandError(f"bench: {option} is not for --python, which measures stock and live")
    chosen_workloads = names(COMMAND, "workload", options.workloads, tuple(WORKLOADS))
    chosen_threads = thread_counts(options.threads)
    # All that can fail does so before minutes of measuring.
    obstacle = _refbuf.live_obstacle()
    if obstacle is not None:
        raise CommandError(f"bench: --python: {obstacle}")
    suffix = picture_kind(COMMAND, options.plot)
    for path in (options.json, options.plot):
        check_writable(COMMAND, path)
    check_installed(COMMAND, options.plot)

    quick = options.quick
    matrix = Matrix(
        workloads=chosen_workloads,
        threads=tuple(sorted({1, *chosen_threads})),
        variants=VARIANTS,
        rounds=options.rounds or (QUICK_ROUNDS if quick else DEFAULT_ROUNDS),
    )
    seconds = options.seconds or (
        run_seconds(matrix, QUICK_BUDGET, LONGEST_QUICK_RUN)
        if quick
        else run_seconds(matrix, DEFAULT_BUDGET, LONGEST_RUN)
    )
    meta = machine.describe() | {
        "python_name": machine.python_name(),
        "command": shlex.join(["python", "-m", "refbuf", "bench", *arguments]),
        "quick": quick,
        "seconds": seconds,
        "warm_up_seconds": round(seconds * WARM_UP, 4),
        "unit": f"a pair is an operation of the workload; a loop's body has {UNROLLED}",
        "operations": {name: WORKLOADS[name].operation for name in matrix.workloads},
        "garbage_collector": "enabled",
    }
    results = _measure(matrix, seconds, QUICK_LIMIT if quick else None)
    _report(results, matrix, meta, ["1 thread"] if 1 not in chosen_threads else [])

    from .._pybench.report import as_json

    def drawing() -> Callable[[], bytes]:
        from .._pybench.plot import draw

        return partial(draw, results.rows, meta, suffix)

    write_files(options.json, partial(as_json, results, meta), options.plot, drawing)
    return 0


def _measure(matrix: Matrix, seconds: float, time_limit: float | None) -> Results:
    from .._bench.report import progress

    try:
        with progress(matrix) as on_run:
            return measure(matrix, seconds, machine.cpus(), on_run, time_limit)
    except (ChildError, NothingDone, OSError) as error:
        # OSError: no process can be started.
        raise CommandError(f"bench: {error}") from None


def _report(results: Results, matrix: Matrix, meta: dict[str, Any], added: list[str]) -> None:
    """Prints all, and adds to `meta` what is known only now."""
    from rich.console import Console

    from .._pybench import report

    console = Console(highlight=False)
    figures = summarize(results, machine.cpus())
    meta |= {
        "gil_enabled": results.gil_enabled,
        "rounds": results.rounds,
        "cpu_share": round(results.cpu_share, 3),
        "sites": results.sites,
        "lulls": results.lulls,
        "summary": {name: report.short(value) for name, value in figures._asdict().items()},
    }
    meta["notes"] = report.notes(meta, matrix, results, added)
    report.introduce(console, meta)
    console.print(report.table(results.rows))
    for line in report.summary(figures, results.sites):
        console.print(line)


def _parser() -> Parser:
    parser = Parser("bench --python", DESCRIPTION, EPILOG)
    # So that errors begin as all of bench do.
    parser.command = COMMAND
    add = parser.add_argument
    add("--python", action="store_true", help="this benchmark; without it, bench counts references alone")
    for option in OTHERS_OPTIONS:
        add(option, help=SUPPRESS)
    add_options(
        parser,
        workloads=WORKLOADS,
        rounds=(DEFAULT_ROUNDS, QUICK_ROUNDS),
        quick_seconds=60,
        minutes="three minutes",
        picture=", stock and live",
    )
    return parser
