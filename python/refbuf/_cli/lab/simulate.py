"""`python -m refbuf lab simulate`: replays a trace through each scheme."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from ... import workloads
from ..._bench import machine
from ..._refbuf import HASHES, MOST_SIMULATED_THREADS, SCHEMES, TABLES, Trace, calibrate_costs
from ..._simulate.estimate import Check, Row, Setting, Unbalanced, check, curves, tables
from .. import CommandError
from ..arguments import names, number
from ..files import check_installed, check_writable, picture_kind, read, write
from ..parser import Parser

COMMAND = "lab simulate"

DESCRIPTION = f"""Replays a trace through each scheme ({", ".join(SCHEMES)})
on a model of private caches, each core with one. Prints the costs it stands on, measured
here, and everything else that it assumes; then, over numbers of threads: the
estimated time of a pair, scaling, coherence misses (a line that another cache
has), atomic operations; hit rates over sizes and hashes of the tables; and what
real threads measure on this machine, with the error of the estimate."""

EPILOG = """docs/SIMULATION.md says what the model leaves out.

The object that --json writes: meta, all about the run and the machine; rows, each
with scheme, threads, slots and hash (null for a scheme without tables),
ns_per_pair, pairs_per_second, scaling, misses_per_1000_pairs,
atomics_per_1000_pairs, fills_per_1000_pairs, hit_rate; tables, the same for other
sizes of table; validation, each with scheme, variant, threads,
estimated_ns_per_pair, measured_ns_per_pair, error, undisturbed (runs that had their
CPUs).

Exit status: 0, 2 for bad usage, a file that is no trace or a missing package,
130 if interrupted."""

DEFAULT_SLOTS = (1024, 256, 64, 16)
DEFAULT_CACHE_KIB = 2048
MOST_CACHE_KIB = 1 << 20
MOST_PAIRS = 10_000_000
MOST_WORK_NS = 1e6
MOST_COST = 1e9
# No trace may be larger when it is decompressed, so none is larger before.
MOST_BYTES = 1 << 28


def main(arguments: Sequence[str]) -> int:
    """Simulates and reports; returns the exit status."""
    options = _parser().parse_args(arguments)
    # All that can fail does so before anything is measured.
    schemes = names(COMMAND, "scheme", options.schemes, SCHEMES, as_given=True)
    hashes = names(COMMAND, "hash", options.hash, HASHES, as_given=True) if options.hash else (HASHES[0],)
    threads = sorted({1, *_threads(options.threads)})
    slots = _slots(options.slots)
    given = _costs(options.cost)
    suffix = picture_kind(COMMAND, options.plot)
    for path in (options.json, options.plot):
        check_writable(COMMAND, path)
    check_installed(COMMAND, options.plot)
    trace = _trace(options.trace)

    workload = trace.about.get("workload")
    cpus = machine.cpus()
    real = (
        [count for count in (1, 2) if count <= cpus]
        if options.validate and workload in workloads.WORKLOADS
        else []
    )
    bare_ns = _bare_ns(trace)
    measured, undisturbed = calibrate_costs(cpus)
    costs = measured | given
    cache_kib = options.cache_kib or _cache_kib()
    setting = Setting(costs, bare_ns + options.work_ns, cache_kib * 1024, options.pairs)
    meta = machine.describe() | {
        "command": shlex.join(["python", "-m", "refbuf", *COMMAND.split(), *arguments]),
        "python_name": machine.python_name(),
        "trace": options.trace,
        "about": trace.about,
        "workload": workload,
        "events": sum(thread[1] + thread[2] for thread in trace.threads),
        "objects": trace.objects,
        "lost": sum(thread[3] for thread in trace.threads),
        "recorded_threads": len(trace.replayed),
        "left_out_threads": sum(1 for thread in trace.threads if thread[1] + thread[2]) - len(trace.replayed),
        "threads": threads,
        "slots": slots,
        "hashes": hashes,
        "costs": {name: round(cost, 3) for name, cost in costs.items()},
        "given_costs": sorted(given),
        "undisturbed": undisturbed,
        "work_ns": setting.work_ns,
        "bare_ns_per_pair": bare_ns,
        "cache_kib": cache_kib,
        "turn_ms": sys.getswitchinterval() * 1000,
    }
    rows, table_rows, checks = _simulate(
        trace, schemes, threads, slots, hashes, setting, workload, real, options.work_ns
    )
    _report(rows, table_rows, checks, meta)
    _write_files(rows, table_rows, checks, meta, options, suffix)
    return 0


def _simulate(
    trace: Trace,
    schemes: Sequence[str],
    threads: Sequence[int],
    slots: Sequence[int],
    hashes: Sequence[str],
    setting: Setting,
    workload: str | None,
    real: Sequence[int],
    work_ns: float,
) -> tuple[list[Row], list[Row], list[Check]]:
    from ..._simulate.report import progress

    usable = [size for size in slots if size <= TABLES["credits"][1]]
    try:
        with progress(len(schemes) * len(threads) + len(TABLES) * len(hashes) * len(slots) + 5) as on_row:
            rows = curves(trace, schemes, threads, usable[0], hashes[0], setting, on_row)
            table_rows = tables(trace, slots, hashes, min(2, threads[-1]), setting, on_row)
            checks: list[Check] = []
            if workload is not None and real:
                checks = check(trace, workload, real, usable[0], HASHES[0], setting, work_ns, on_row)
        return rows, table_rows, checks
    except (ValueError, RuntimeError, MemoryError) as error:
        # No events in the trace; fewer threads than asked for.
        raise CommandError(f"{COMMAND}: {error or 'out of memory'}") from None
    except Unbalanced as error:
        raise CommandError(f"{COMMAND}: {error}: please report this") from None


def _report(rows: list[Row], table_rows: list[Row], checks: list[Check], meta: dict[str, Any]) -> None:
    from rich.console import Console

    from ..._simulate import report

    console = Console(highlight=False)
    meta["assumptions"] = report.assumptions(meta)
    report.introduce(console, meta)
    console.print(report.curve_table(rows))
    console.print(f"Hit rates of the threads' tables, with {min(2, meta['threads'][-1])} threads:")
    console.print(report.slot_table(table_rows))
    if checks:
        console.print(f"The same workload in real threads, on new objects ({meta['cpus']} CPUs):")
        console.print(report.check_table(checks))
    else:
        console.print(
            "Not compared with real threads: the trace is of no workload of refbuf's, or --no-validate."
        )


def _write_files(
    rows: list[Row],
    table_rows: list[Row],
    checks: list[Check],
    meta: dict[str, Any],
    options: argparse.Namespace,
    suffix: str,
) -> None:
    from ..._simulate.report import as_json

    if options.json:
        write(COMMAND, options.json, as_json(rows, table_rows, checks, meta).encode())
    if options.plot:
        # Imported now: an extension module that enables the GIL would spoil the runs.
        try:
            from ..._simulate.plot import draw
        except ImportError as error:
            raise CommandError(f"{COMMAND}: matplotlib cannot be imported ({error})") from None
        write(COMMAND, options.plot, draw(rows, meta, suffix))


def _trace(path: str) -> Trace:
    try:
        return Trace(read(COMMAND, path, MOST_BYTES))
    except ValueError as error:
        raise CommandError(f"{COMMAND}: {path!r} cannot be used: {error}") from None


def setting(trace: Trace, costs: dict[str, float]) -> Setting:
    """For a trace, with nothing chosen otherwise."""
    return Setting(costs, _bare_ns(trace), _cache_kib() * 1024, None)


def _bare_ns(trace: Trace) -> float:
    """What the recorder says that the program does beside its counts; 0 if it says nothing."""
    try:
        value = float(trace.about.get("bare_ns_per_pair", "0"))
    except ValueError:
        return 0.0
    return value if 0 <= value <= MOST_WORK_NS else 0.0


def _cache_kib() -> int:
    """Of one core's second-level cache, as far as the system tells it."""
    folder = "/sys/devices/system/cpu/cpu0/cache/index2"
    try:
        with open(os.path.join(folder, "size"), encoding="ascii") as file:
            text = file.read().strip()
        size = int(text.removesuffix("K").removesuffix("M")) * (1024 if text.endswith("M") else 1)
        return size if 0 < size <= MOST_CACHE_KIB else DEFAULT_CACHE_KIB
    except (OSError, ValueError):
        return DEFAULT_CACHE_KIB


def _parser() -> Parser:
    parser = Parser(COMMAND, DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("--trace", metavar="FILE", required=True, help="what `lab trace` has written")
    add(
        "--threads",
        metavar="N,N|N..N",
        default=f"1..{MOST_SIMULATED_THREADS}",
        help="numbers of threads; 1..256 is both and the powers of two between "
        f"(default: 1..{MOST_SIMULATED_THREADS})",
    )
    add("--schemes", metavar="A,B", help=f"which of {', '.join(SCHEMES)} (default: all)")
    add(
        "--slots",
        metavar="N,N",
        help="sizes of the tables, powers of two; the curves have the first "
        f"(default: {','.join(map(str, DEFAULT_SLOTS))})",
    )
    add(
        "--hash",
        metavar="A,B",
        help=f"which of {', '.join(HASHES)}; the curves have the first (default: {HASHES[0]})",
    )
    add(
        "--pairs",
        metavar="N",
        type=number(int, 1, MOST_PAIRS),
        help="pairs of each simulated thread, half of them for warming up (default: 400,000 shared by the "
        "threads, at least 4,000 each)",
    )
    add(
        "--work-ns",
        metavar="N",
        type=number(float, 0, MOST_WORK_NS),
        default=0.0,
        help="nanoseconds of other work beside each pair, on top of the workload's own (default: 0)",
    )
    add(
        "--cache-kib",
        metavar="N",
        type=number(int, 1, MOST_CACHE_KIB),
        help="KiB of each private cache (default: this machine's second level)",
    )
    add(
        "--cost",
        metavar="NAME=NS",
        action="append",
        default=[],
        help="a cost in nanoseconds in place of the measured one; may be repeated",
    )
    add(
        "--validate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the workload in real threads, too, and compare (default: yes, if the trace is of one)",
    )
    add("--json", metavar="FILE", help="write the results and all about the machine")
    add("--plot", metavar="FILE.png", help="write a picture of the curves (png, svg or pdf)")
    return parser


def _threads(text: str) -> list[int]:
    counts: list[int] = []
    for part in text.split(","):
        ends = [end.strip() for end in part.split("..")]
        if len(ends) > 2 or not all(
            end.isascii() and end.isdigit() and 1 <= int(end) <= MOST_SIMULATED_THREADS for end in ends
        ):
            raise CommandError(
                f"{COMMAND}: --threads takes whole numbers from 1 to {MOST_SIMULATED_THREADS} with commas "
                f"between, or a range as 1..16, not {text!r}"
            )
        first, last = int(ends[0]), int(ends[-1])
        if first > last:
            raise CommandError(
                f"{COMMAND}: --threads has a range that ends before it begins: {part.strip()!r}"
            )
        between = (1 << power for power in range(MOST_SIMULATED_THREADS.bit_length()))
        counts += [first, *(count for count in between if first < count < last), last]
    return counts


def _slots(text: str | None) -> list[int]:
    if text is None:
        return list(DEFAULT_SLOTS)
    most = max(most for _, most in TABLES.values())
    parts = [part.strip() for part in text.split(",")]
    sizes = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if len(sizes) < len(parts) or not all(1 <= size <= most and size & (size - 1) == 0 for size in sizes):
        raise CommandError(
            f"{COMMAND}: --slots takes powers of two up to {most} with commas between, not {text!r}"
        )
    if min(sizes) > TABLES["credits"][1]:
        raise CommandError(
            f"{COMMAND}: --slots has none that credits can use, up to {TABLES['credits'][1]}: {text!r}"
        )
    return list(dict.fromkeys(sizes))


def _costs(given: Sequence[str]) -> dict[str, float]:
    from ..._simulate.costs import NAMES

    costs = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in NAMES:
            raise CommandError(f"{COMMAND}: unknown cost {name!r}: there are {', '.join(NAMES)}")
        try:
            costs[name] = number(float, 0, MOST_COST)(value)
        except argparse.ArgumentTypeError as error:
            raise CommandError(f"{COMMAND}: --cost {name}: {error}") from None
    return costs
