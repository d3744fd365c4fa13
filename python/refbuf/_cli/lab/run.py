"""`python -m refbuf lab run`: programs on the schemes of the 2007 discussion."""

import shlex
from collections.abc import Sequence
from typing import Any

from ..._bench import machine
from ..._lab.measure import MAKERS, PLAIN, Matrix, Results, measure, steps
from ..._refbuf import PROGRAMS, SCHEMES
from .. import CommandError
from ..arguments import counts, names, number
from ..files import check_installed, check_writable, picture_kind, write
from ..parser import Parser

COMMAND = "lab run"

DESCRIPTION = f"""Runs small programs on cells of the laboratory's own, counted by each scheme:
{", ".join(SCHEMES)}. Beside each pair of an increment
and a decrement stands other work, so much that counting alone takes 5 % of the time
of one thread under plain. Prints a table: the speed of one thread against plain's,
scaling, atomic operations, cells in memory; then for each scheme its memory, and how
long after its last reference a cell is freed."""

EPILOG = """plain and one thread are always measured, to compare with. docs/LAB.md has what
each program and scheme is.

The object that --json writes: meta, all about the run and the machine; rows, each
with workload, scheme, threads, ns_per_pair, speed (of one thread) and throughput
(of all) over plain's one thread, scaling, atomics_per_1000_pairs, header_bytes,
thread_bytes, most_cells; reclaim, by scheme: reclaimed (false where nothing
is freed until a collection), median_ms, p99_ms (null where so many are not freed
within five heartbeats), samples.

Exit status: 0, 2 for bad usage or a missing package, 130 if interrupted."""

DEFAULT_ROUNDS = 5
DEFAULT_SECONDS = 0.2
MOST_THREADS = 1024
MOST_ROUNDS = 1000
MOST_SECONDS = 3600.0


def main(arguments: Sequence[str]) -> int:
    """Measures and reports; returns the exit status."""
    options = _parser().parse_args(arguments)
    schemes = names(COMMAND, "scheme", options.scheme, SCHEMES)
    suffix = picture_kind(COMMAND, options.plot)
    for path in (options.json, options.plot):
        check_writable(COMMAND, path)
    check_installed(COMMAND, options.plot)
    matrix = Matrix(
        schemes=tuple(name for name in SCHEMES if name in {PLAIN, *schemes}),
        workloads=names(COMMAND, "workload", options.workload, PROGRAMS),
        threads=tuple(sorted({1, *_threads(options.threads)})),
        rounds=options.rounds,
        seconds=options.seconds,
        counting_share=options.counting_share,
        shared=options.shared,
        made_by=options.made_by,
        heartbeat_ms=options.heartbeat,
    )
    meta = describe(matrix, shlex.join(["python", "-m", "refbuf", *COMMAND.split(), *arguments]))
    results = run(COMMAND, matrix)
    meta["calibrations"] = results.calibrations
    _report(results, meta)
    _write_files(results, meta, options.json, options.plot, suffix)
    return 0


def describe(matrix: Matrix, command: str) -> dict[str, Any]:
    """What a reader of the numbers has to know."""
    return machine.describe() | matrix._asdict() | {"command": command}


def run(command: str, matrix: Matrix) -> Results:
    """Measures, with a progress bar."""
    from ..._simulate.report import progress

    try:
        with progress(steps(matrix)) as on_run:
            return measure(matrix, on_run)
    except (RuntimeError, MemoryError) as error:
        raise CommandError(f"{command}: {error or 'out of memory'}") from None


def _threads(text: str | None) -> list[int]:
    if text is not None:
        return counts(COMMAND, "--threads", text, MOST_THREADS)
    most = machine.cpus()
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def _report(results: Results, meta: dict[str, Any]) -> None:
    from rich.console import Console

    from ..._lab import report

    console = Console(highlight=False)
    report.introduce(console, meta)
    console.print(report.table(results.rows))
    console.print(report.scheme_table(results))


def _write_files(
    results: Results, meta: dict[str, Any], json: str | None, plot: str | None, suffix: str
) -> None:
    from ..._lab.report import as_json

    if json:
        write(COMMAND, json, as_json(results, meta).encode())
    if plot:
        write(COMMAND, plot, picture(COMMAND, results, meta, suffix))


def picture(command: str, results: Results, meta: dict[str, Any], suffix: str) -> bytes:
    """The picture's content. Imported late: matplotlib may enable the GIL."""
    try:
        from ..._lab.plot import draw
    except ImportError as error:
        raise CommandError(f"{command}: matplotlib cannot be imported ({error})") from None
    return draw(results.rows, meta, suffix)


def _parser() -> Parser:
    parser = Parser(COMMAND, DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("--scheme", metavar="A,B", help=f"which of {', '.join(SCHEMES)} (default: all)")
    add("--workload", metavar="A,B", help=f"which of {', '.join(PROGRAMS)} (default: all)")
    add("--threads", metavar="N,N", help="numbers of threads (default: 1 and powers of two up to the CPUs)")
    add(
        "--shared",
        metavar="PART",
        type=number(float, 0, 1),
        default=Matrix._field_defaults["shared"],
        help="part of the literals of calls that threads share (default: %(default)s)",
    )
    add(
        "--made-by",
        choices=tuple(MAKERS),
        default=Matrix._field_defaults["made_by"],
        help="who makes what threads share: "
        + "; ".join(f"{name}: {what}" for name, what in MAKERS.items())
        + " (default: main)",
    )
    add(
        "--counting-share",
        metavar="PART",
        type=number(float, 0.001, 1),
        default=Matrix._field_defaults["counting_share"],
        help="part of the time of one thread that counting alone has under plain (default: %(default)s)",
    )
    add(
        "--heartbeat",
        metavar="MS",
        type=number(float, 0.1, 60_000),
        default=Matrix._field_defaults["heartbeat_ms"],
        help="the heartbeat of credits, in milliseconds (default: %(default)s)",
    )
    add(
        "--rounds",
        metavar="N",
        type=number(int, 1, MOST_ROUNDS),
        default=DEFAULT_ROUNDS,
        help="rounds to take medians of (default: %(default)s)",
    )
    add(
        "--seconds",
        metavar="S",
        type=number(float, 0.001, MOST_SECONDS),
        default=DEFAULT_SECONDS,
        help="seconds of each single run (default: %(default)s)",
    )
    add("--json", metavar="FILE", help="write the results and all about the machine")
    add("--plot", metavar="FILE.png", help="write a picture of throughput over threads (png, svg or pdf)")
    return parser
