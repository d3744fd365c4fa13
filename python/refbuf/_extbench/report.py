"""What a reader of `bench --extensions` sees: what is measured, who counts, the summary."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .._bench.measure import Matrix
from .._bench.report import count, shortcomings
from .._bench.report import table as table_of
from .._pybench.measure import Row
from .._pybench.report import short
from .measure import Counts, Results, Summary


def introduce(console: Console, meta: dict[str, Any]) -> None:
    """What is measured, what confounds it, and what is special here."""
    load = meta["load_average"]
    cpus = (f"load average {load[0]:.1f} on " if load else "") + count(meta["cpus"], "CPU")
    packages = ", ".join(f"{name} {version}" for name, version in meta["packages"].items())
    lines = [
        f"[bold]refbuf {meta['version']} on {meta['python_name']}[/bold], {meta['cpu']}",
        f"Threads call into packages of others ({packages}) with objects of the main thread, which waits "
        "meanwhile. stock is the package as it is, shim is the same source compiled with refbuf's shim"
        + ("; stock-live and shim-live are these under python -m refbuf run" if meta["live"] else "")
        + ". ns per op are a thread's, for an operation of the workload; atomics are refbuf's on counts, for "
        "1,000 operations.",
        f"Medians of {count(meta['rounds'], 'round')}, {meta['seconds']:g} s a run, each in a process of "
        f"its own, variants in turn. Confounders: other work ({cpus}), changing clock speed, cores that "
        "share hardware, where objects lie in memory.",
        *(f"[yellow]Note:[/yellow] {note}." for note in meta["notes"]),
    ]
    for line in lines:
        console.print(line)


def notes(meta: dict[str, Any], matrix: Matrix, results: Results, added: list[str]) -> list[str]:
    """What makes this machine, interpreter or request special."""
    found = []
    if not meta["free_threaded"]:
        found.append("this interpreter has a GIL: threads take turns, and shim too counts as CPython does")
    elif results.gil_enabled:
        found.append("the GIL was enabled, so threads took turns, and little contends")
    share = None if results.gil_enabled else results.cpu_share
    return found + shortcomings(meta, matrix, results.rounds, share, added)


def table(rows: list[Row]) -> Table:
    """All rows, a section for each workload."""
    made = table_of(rows, "op")
    # So that it fits into 80 columns.
    made.columns[-1].header = "atomics\nper 1,000"
    return made


def shares(counts: dict[str, Counts]) -> Table:
    """Who counts: a line for each workload."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.add_column("workload", style="bold", no_wrap=True)
    headings = ("counts\nper op", "the\nextension's", "the inter-\npreter's", "the inter-\npreter's share")
    for heading in (*headings, "left atomic\nwith the shim"):
        made.add_column(heading, justify="right", no_wrap=True)
    for workload, found in counts.items():
        made.add_row(
            workload,
            _number(found.all),
            _number(found.extension),
            _number(found.interpreter),
            "" if found.share is None else f"{found.share:.0%}",
            _number(found.left),
        )
    return made


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def shares_line(counts: dict[str, Counts], obstacle: str | None) -> str:
    """What the table above says, and how it is known."""
    line = (
        "Counts are increments and decrements of foreign objects, each an atomic operation in the stock "
        "build. The extension's come to refbuf with the shim; "
    )
    if obstacle is not None:
        return line + f"the interpreter's are not known, as it takes live mode to see them: {obstacle}."
    return line + "the interpreter's are what comes to refbuf under live mode beyond these."


def summary(figures: list[Summary]) -> list[str]:
    """Lines below the tables."""
    lines = []
    for each in figures:
        line = (
            f"With {count(each.threads, 'thread')} {each.variant} has {each.mean:.2f} of stock's throughput"
        )
        if each.lowest_workload != each.highest_workload:
            line += (
                f" in the geometric mean, from {each.lowest:.2f} ({each.lowest_workload}) to "
                f"{each.highest:.2f} ({each.highest_workload})"
            )
        lines.append(f"{line}.")
    return lines


def counts_as_json(counts: dict[str, Counts]) -> dict[str, dict[str, float | None]]:
    """For the file: by workload."""
    return {
        workload: {
            "counts_per_op": short(found.all),
            "extension_counts_per_op": short(found.extension),
            "interpreter_counts_per_op": short(found.interpreter),
            "interpreter_share": short(found.share),
            "shim_atomics_per_op": short(found.left),
        }
        for workload, found in counts.items()
    }
