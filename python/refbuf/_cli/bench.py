"""`python -m refbuf bench`: what shared objects cost, with refbuf and without."""

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .. import workloads
from .._bench import machine
from .._bench.measure import DETACHED, STOCK, Matrix, NothingDone, Results, measure
from .._refbuf import build_info, work_iteration_ns
from . import CommandError
from .arguments import names, number
from .files import check_installed, check_writable, picture_kind
from .measuring import COMMAND, add_options, thread_counts, write_files
from .parser import Parser

DESCRIPTION = """Measures what it costs to count references to Python objects that threads share:
CPython's own way (stock), through the inline path of refbuf.h (refbuf), and
through refbuf's exported functions (refbuf-call); and by threads that are not
attached to the interpreter: through refbuf's Ref (detached), attaching each time
(attach-per-clone), with Arc<Py<T>> (arc), and with PyO3's pool of dropped
references (pool). All in turn in one run. Prints a table: nanoseconds that a
thread takes for a pair (one increment and one decrement), scaling (throughput of
all threads over that of one), throughput over stock's, and atomic operations on
counts. Then how long after its
last reference an object is finalized while threads with credits on it sleep."""

EPILOG = """One thread, and stock, are always measured, to compare with. The garbage
collector stays enabled, and is run before the objects of each workload are
made. On an interpreter with a GIL, stock is threads that take turns.

The object that --json writes: meta, all about the run and the machine; rows, each
with workload, variant, threads, ns_per_pair, scaling, atomics_per_1000_pairs.

Exit status: 0, 2 for bad usage or a missing package, 130 if interrupted."""

DEFAULT_ROUNDS, QUICK_ROUNDS = 5, 3
# Seconds for all runs, from which follows how long each may take.
DEFAULT_BUDGET, QUICK_BUDGET = 170.0, 19.0
LONGEST_RUN, LONGEST_QUICK_RUN = 1.0, 0.25
# No quick round starts that would end after so many seconds: what is slower
# than planned gets fewer rounds.
QUICK_LIMIT = 25.0
# Objects whose way from last reference to finalizer is timed, at 25 ms each.
DEFAULT_SAMPLES, QUICK_SAMPLES = 200, 40
MOST_WORK_NS = 1e6


def main(arguments: Sequence[str]) -> int:
    """Measures and reports; returns the exit status."""
    if "--python" in arguments and "--extensions" in arguments:
        raise CommandError("bench: --python and --extensions are two benchmarks: run one after the other")
    if "--python" in arguments:
        from . import bench_python

        return bench_python.main(arguments)
    if "--extensions" in arguments:
        from . import bench_extensions

        return bench_extensions.main(arguments)
    options = _parser().parse_args(arguments)
    chosen_workloads = names(COMMAND, "workload", options.workloads, workloads.WORKLOADS)
    chosen_variants = names(COMMAND, "variant", options.variants or _usual(), workloads.VARIANTS)
    chosen_threads = thread_counts(options.threads)
    # All that can fail does so before minutes of measuring.
    suffix = picture_kind(COMMAND, options.plot)
    for path in (options.json, options.plot):
        check_writable(COMMAND, path)
    check_installed(COMMAND, options.plot)

    added = []
    if STOCK not in chosen_variants:
        added.append(STOCK)
    if 1 not in chosen_threads:
        added.append("1 thread")
    quick = options.quick
    matrix = Matrix(
        workloads=chosen_workloads,
        threads=tuple(sorted({1, *chosen_threads})),
        variants=tuple(name for name in workloads.VARIANTS if name in {STOCK, *chosen_variants}),
        rounds=options.rounds or (QUICK_ROUNDS if quick else DEFAULT_ROUNDS),
        work_ns=options.work_ns,
    )
    seconds = options.seconds or (
        matrix.run_seconds(QUICK_BUDGET, LONGEST_QUICK_RUN)
        if quick
        else matrix.run_seconds(DEFAULT_BUDGET, LONGEST_RUN)
    )
    meta = machine.describe() | {
        "python_name": machine.python_name(),
        "command": shlex.join(["python", "-m", "refbuf", "bench", *arguments]),
        "quick": quick,
        "seconds": seconds,
        "work_ns": options.work_ns,
        "work_iteration_ns": work_iteration_ns() if options.work_ns else None,
        "detached": any(name in DETACHED for name in matrix.variants),
        "garbage_collector": "enabled; run before the objects of each workload are made",
    }
    results = _measure(matrix, seconds, QUICK_LIMIT if quick else None)
    meta |= {"rounds": results.rounds, "cpu_share": round(results.cpu_share, 3)}
    meta["reclaim"] = _reclaim(QUICK_SAMPLES if quick else DEFAULT_SAMPLES) if meta["buffered"] else None
    _report(results, matrix, meta, added)

    from .._bench.report import as_json

    def drawing() -> Callable[[], bytes]:
        from .._bench.plot import draw

        return partial(draw, results.rows, meta, suffix)

    write_files(options.json, partial(as_json, results, meta), options.plot, drawing)
    return 0


def _measure(matrix: Matrix, seconds: float, time_limit: float | None) -> Results:
    from .._bench.report import progress

    try:
        with progress(matrix) as on_run:
            return measure(matrix, seconds, machine.cpus(), on_run, time_limit)
    except (NothingDone, RuntimeError, MemoryError) as error:
        # RuntimeError: the system gives fewer threads than asked for.
        raise CommandError(f"bench: {error or 'out of memory'}") from None


def _reclaim(samples: int) -> dict[str, float]:
    from .._bench.reclaim import measure_reclaim

    try:
        return measure_reclaim(samples, machine.cpus())._asdict()
    except TimeoutError as error:
        raise CommandError(f"bench: {error}: please report this") from None


def _report(results: Results, matrix: Matrix, meta: dict[str, Any], added: list[str]) -> None:
    from rich.console import Console

    from .._bench import report

    console = Console(highlight=False)
    meta["notes"] = report.notes(meta, matrix, results, added)
    report.introduce(console, meta)
    console.print(report.table(results.rows))
    if meta["reclaim"]:
        console.print(report.reclaim(meta["reclaim"]))


def _parser() -> Parser:
    parser = Parser("bench", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add(
        "--python",
        action="store_true",
        help="measure programs of Python instead, each as it is and in live mode: "
        "python -m refbuf bench --python --help",
    )
    add(
        "--extensions",
        action="store_true",
        help="measure packages of others instead, each as it is and compiled with the shim: "
        "python -m refbuf bench --extensions --help",
    )
    add_options(
        parser,
        workloads=workloads.WORKLOADS,
        rounds=(DEFAULT_ROUNDS, QUICK_ROUNDS),
        quick_seconds=30,
        minutes="three minutes",
        picture=" over threads",
    )
    add(
        "--variants",
        metavar="A,B",
        help=f"which of {', '.join(workloads.VARIANTS)} (default: all; with a GIL without refbuf and "
        "refbuf-call, which are stock there)",
    )
    add(
        "--work-ns",
        metavar="N",
        type=number(float, 0, MOST_WORK_NS),
        default=0.0,
        help="nanoseconds of other work beside each pair (default: 0)",
    )
    return parser


def _usual() -> str | None:
    """All; but with a GIL, attached threads count as CPython does, whatever the variant."""
    if build_info()["buffered"]:
        return None
    return ",".join(name for name in workloads.VARIANTS if name not in ("refbuf", "refbuf-call"))
