"""What a reader sees: what is measured, the progress, the table, the JSON."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .measure import Cell, Matrix, Results, Row

# Throughput to stock from which on a number is coloured as better or worse.
_BETTER = 1.1
_WORSE = 0.9
# Less than this of the CPUs is not the scheduler's usual noise.
_ENOUGH_CPU = 0.9

_DETACHED_LINE = (
    " detached, attach-per-clone, arc and pool are threads that have let go of the interpreter, and clone "
    "and drop as Rust code with PyO3 does: refbuf's Ref; attached for each clone and each drop; Arc<Py<T>>; "
    "attached for each clone, dropped into PyO3's pool."
)


@contextmanager
def progress(matrix: Matrix) -> Iterator[Callable[[int, Cell], None]]:
    """Shows on stderr how far it is; gives what to call before each run.

    Drawn between the runs only: a thread that redraws would be measured too.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _plain_progress(console, matrix)
        return
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=matrix.runs)
        begun = 0

        def on_run(_: int, cell: Cell) -> None:
            nonlocal begun
            what = f"{cell.workload}, {count(cell.threads, 'thread')}, {cell.variant}"
            bar.update(task, description=what, completed=begun, refresh=True)
            begun += 1

        yield on_run


def _plain_progress(console: Console, matrix: Matrix) -> Callable[[int, Cell], None]:
    """A line for each round."""
    shown = -1

    def on_run(number: int, _: Cell) -> None:
        nonlocal shown
        if number != shown:
            console.print(f"round {number + 1} of {matrix.rounds}")
            shown = number

    return on_run


def introduce(console: Console, meta: dict[str, Any]) -> None:
    """What is measured, what confounds it, and what is special here."""
    load = meta["load_average"]
    load_here = f"load average {load[0]:.1f} on " if load else ""
    lines = [
        f"[bold]refbuf {meta['version']} on {meta['python_name']}[/bold], {meta['cpu']}",
        "Threads take and drop references to Python objects of the main thread (private: to their own). "
        "A pair is one increment and one decrement; ns per pair is a thread's. stock is CPython's own "
        "counting; its atomics are known, not counted." + (_DETACHED_LINE if meta["detached"] else ""),
        f"Medians of {count(meta['rounds'], 'round')}, {meta['seconds']:g} s a run, variants in turn on the "
        "same objects. Counting alone: a program does more. Confounders: other work "
        f"({load_here}{count(meta['cpus'], 'CPU')}), changing clock speed, cores that share hardware, "
        "where objects lie in memory.",
        *([_work_line(meta)] if meta["work_ns"] else []),
        *(f"[yellow]Note:[/yellow] {note}." for note in meta["notes"]),
    ]
    for line in lines:
        console.print(line)


def _work_line(meta: dict[str, Any]) -> str:
    return (
        f"Beside each pair, {meta['work_ns']:g} ns of other work, which the figures include: "
        f"multiplications of {meta['work_iteration_ns']:.2f} ns each, as measured."
    )


def notes(meta: dict[str, Any], matrix: Matrix, results: Results, added: list[str]) -> list[str]:
    """What makes this machine, interpreter or request special."""
    found = []
    if not meta["buffered"]:
        found.append(
            "this interpreter has a GIL: threads that are attached take turns, and stock, refbuf and "
            "refbuf-call are all CPython's own path (refbuf-call adds a function call)"
        )
    elif meta["gil_enabled"]:
        found.append("the GIL is enabled, so threads take turns, and little contends")
    # Threads that take turns get less by themselves; so does one that is set up
    # for longer than it runs, as for wide alone.
    takes_less = meta["gil_enabled"] or matrix.workloads == ("wide",)
    share = None if takes_less else results.cpu_share
    return found + shortcomings(meta, matrix, results.rounds, share, added)


def shortcomings(
    meta: dict[str, Any], matrix: Matrix, rounds: int, cpu_share: float | None, added: list[str]
) -> list[str]:
    """What any benchmark's run may fall short of, and what was measured unasked.

    cpu_share: of the CPUs that the threads could have used; None where it says nothing.
    """
    found = []
    if max(matrix.threads) > meta["cpus"]:
        found.append(f"{max(matrix.threads)} threads take turns on {count(meta['cpus'], 'CPU')}")
    if cpu_share is not None and cpu_share < _ENOUGH_CPU:
        found.append(
            f"the threads got only {cpu_share:.0%} of the CPUs that they could have used: other work "
            "competes, and neither scaling nor ratios can be trusted"
        )
    if rounds < matrix.rounds:
        found.append(f"there was time for {rounds} of {matrix.rounds} rounds")
    if added:
        found.append(f"measured too, for comparison: {' and '.join(added)}")
    return found


def table(rows: list[Row], unit: str = "pair") -> Table:
    """All rows, a section for each workload; what they count is a pair, or another unit."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.add_column("workload", style="bold", no_wrap=True)
    made.add_column("threads", justify="right", no_wrap=True)
    made.add_column("variant", no_wrap=True)
    headings = (f"ns per\n{unit}", "scaling", "throughput\nto stock", f"atomics per\n1,000 {unit}s")
    for heading in headings:
        made.add_column(heading, justify="right", no_wrap=True)
    before: Row | None = None
    for row in rows:
        if before is not None and before.workload != row.workload:
            made.add_section()
        same_workload = before is not None and before.workload == row.workload
        same_threads = same_workload and before is not None and before.threads == row.threads
        made.add_row(
            "" if same_workload else row.workload,
            "" if same_threads else str(row.threads),
            row.variant,
            f"{row.ns_per_pair:,.2f}",
            f"{row.scaling:.2f}",
            _coloured(row),
            "" if row.atomics_per_1000_pairs is None else f"{row.atomics_per_1000_pairs:,.2f}",
        )
        before = row
    return made


def reclaim(delays: dict[str, float]) -> str:
    """A line on how promptly objects are finalized."""
    heartbeat = delays["heartbeat_ms"]
    asleep = count(int(delays["threads"]), "thread")
    p99 = delays["p99_ms"]
    return (
        f"From an object's last reference to its finalizer, while {asleep} with credits on it sleep: "
        f"median {delays['median_ms']:.1f} ms, 99th percentile {p99:.1f} ms "
        f"({p99 / heartbeat:.2f} heartbeats of {heartbeat:g} ms), {delays['samples']:.0f} objects."
    )


def _coloured(row: Row) -> str:
    text = f"{row.to_stock:.2f}"
    if row.to_stock >= _BETTER:
        return f"[green]{text}[/green]"
    return f"[red]{text}[/red]" if row.to_stock <= _WORSE else text


def as_json(results: Results, meta: dict[str, Any]) -> str:
    """The file for other programs. The keys of a row are part of refbuf's interface."""
    keys = ("workload", "variant", "threads", "ns_per_pair", "scaling", "atomics_per_1000_pairs")
    rows = [{key: _short(getattr(row, key)) for key in keys} for row in results.rows]
    return json.dumps({"meta": meta, "rows": rows}, indent=2, allow_nan=False) + "\n"


def _short(value: str | int | float) -> str | int | float:
    return round(value, 4) if isinstance(value, float) else value


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
