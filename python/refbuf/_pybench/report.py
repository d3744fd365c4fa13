"""What a reader of `bench --python` sees: what is measured, the table, the summary, the JSON."""

import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .._bench.measure import Matrix
from .._bench.report import count, shortcomings
from .measure import CONTENDED_BELOW, LIVE, STOCK, Results, Row, Summary

# Live's throughput over stock's from which on it is coloured as better or worse.
_BETTER = 1.1
_WORSE = 0.9


def introduce(console: Console, meta: dict[str, Any]) -> None:
    """What is measured, what confounds it, and what is special here."""
    load = meta["load_average"]
    cpus = (f"load average {load[0]:.1f} on " if load else "") + count(meta["cpus"], "CPU")
    lines = [
        f"[bold]refbuf {meta['version']} on {meta['python_name']}[/bold], {meta['cpu']}",
        "Threads run loops of pure Python over objects of the main thread, which waits meanwhile. stock is "
        "python itself, live is the same program under python -m refbuf run. ns per op are a thread's, for "
        "an operation of the workload with its share of the loop.",
        f"Medians of {count(meta['rounds'], 'round')}, {meta['seconds']:g} s a run, each in a process of "
        f"its own, stock and live in turn. Confounders: other work ({cpus}), changing clock speed, cores "
        "that share hardware, where objects lie in memory.",
        *(f"[yellow]Note:[/yellow] {note}." for note in meta["notes"]),
    ]
    for line in lines:
        console.print(line)


def notes(meta: dict[str, Any], matrix: Matrix, results: Results, added: list[str]) -> list[str]:
    """What makes this machine, interpreter or request special."""
    found = []
    if results.gil_enabled:
        found.append("the GIL was enabled, so threads took turns, and little contends")
    if results.lulls:
        found.append(
            "there are lulls on this processor: with one thread live runs the interpreter's own "
            "instructions, and its scaling is over their speed; REFBUF_LULLS=0 in the environment measures "
            "the buffers with one thread, too"
        )
    share = None if results.gil_enabled else results.cpu_share
    return found + shortcomings(meta, matrix, results.rounds, share, added)


def table(rows: list[Row]) -> Table:
    """A line for each workload and number of threads."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.add_column("workload", style="bold", no_wrap=True)
    headings = ("threads", "stock\nns per op", "live\nns per op", "live\nto stock", "stock\nscaling")
    for heading in (*headings, "live\nscaling"):
        made.add_column(heading, justify="right", no_wrap=True)
    found = {(row.workload, row.threads, row.variant): row for row in rows}
    before = ""
    for workload, threads in dict.fromkeys((row.workload, row.threads) for row in rows):
        stock, live = (found[workload, threads, variant] for variant in (STOCK, LIVE))
        if before and workload != before:
            made.add_section()
        made.add_row(
            "" if workload == before else workload,
            str(threads),
            f"{stock.ns_per_pair:,.1f}",
            f"{live.ns_per_pair:,.1f}",
            _coloured(live.to_stock),
            f"{stock.scaling:.2f}",
            f"{live.scaling:.2f}",
        )
        before = workload
    return made


def summary(figures: Summary, sites: int) -> list[str]:
    """Lines below the table."""
    lines = [
        f"One thread: live has {figures.alone:.2f} of stock's throughput in the geometric mean, "
        f"{figures.lowest_alone:.2f} at the lowest ({figures.lowest_alone_workload})."
    ]
    if figures.threads is not None:
        where = f"With {figures.threads} threads, where stock scales below {CONTENDED_BELOW:g}"
        lines.append(
            f"{where} ({count(len(figures.contended), 'workload')}): live scales to "
            f"{figures.contended_scaling:.2f}, stock to {figures.contended_scaling_stock:.2f}, in the "
            "geometric mean."
            if figures.contended
            else f"{where}: no workload."
        )
    lines.append(
        f"Lowest of all: live has {figures.lowest:.2f} of stock's throughput ({figures.lowest_workload}, "
        f"{count(figures.lowest_threads, 'thread')})."
    )
    lines.append(f"Live mode took {figures.install_ms:.0f} ms to plan and prepare, for {sites:,} sites.")
    return lines


def as_json(results: Results, meta: dict[str, Any]) -> str:
    """The file for other programs: the keys of `bench` without --python, for operations in place of pairs."""
    keys = ("workload", "variant", "threads", "ns_per_pair", "scaling", "atomics_per_1000_pairs")
    rows = [{key: short(getattr(row, key)) for key in keys} for row in results.rows]
    return json.dumps({"meta": meta, "rows": rows}, indent=2, allow_nan=False) + "\n"


def short(value: Any) -> Any:
    """Without digits that say nothing."""
    return round(value, 4) if isinstance(value, float) else value


def _coloured(ratio: float) -> str:
    text = f"{ratio:.2f}"
    if ratio >= _BETTER:
        return f"[green]{text}[/green]"
    return f"[red]{text}[/red]" if ratio <= _WORSE else text
