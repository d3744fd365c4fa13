"""What a reader sees: assumptions, tables, progress, the JSON."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from .costs import MEANINGS
from .estimate import Check, Row


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Shows on stderr how far it is; gives what to call before each step."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=total)
        begun = 0

        def on_step(what: str) -> None:
            nonlocal begun
            bar.update(task, description=what, completed=begun, refresh=True)
            begun += 1

        yield on_step


def assumptions(meta: dict[str, Any]) -> list[str]:
    """What the estimates stand on: part of every report."""
    recorded = meta["recorded_threads"]
    work = meta["work_ns"]
    lines = [
        "each simulated thread has a core of its own with a private cache of "
        f"{meta['cache_kib']} KiB, all as far from each other",
        f"simulated thread i replays recorded thread i modulo {recorded}, the busiest first; an object that "
        "only one recorded thread touches is private, and each replica has its own, elsewhere in memory; "
        "replicas start at different points of the recording, and go round it",
        "every operation looks at its object's header; an atomic count waits for its line, other uses "
        "overlap; a read and a count by one operation are one use of the line",
        "a line goes from cache to cache to one thread after the other, first come, first served",
        f"beside each pair {work:.2f} ns of other work"
        + (
            f", of which {meta['bare_ns_per_pair']:.2f} are the workload's own instructions, as measured "
            "without counts"
            if meta["bare_ns_per_pair"]
            else ""
        ),
        f"plain: turns of {meta['turn_ms']:g} ms under one lock, as with CPython's GIL",
        "deltas: tables of 2,048 entries where not said otherwise; collections are not simulated",
        f"credits: {meta['slots'][0]} slots, the core's own code; no heartbeat within the replayed span",
        "left out: memory bandwidth, other processors' sockets, collections and destructors",
    ]
    if recorded == 1 and max(meta["threads"]) > 1:
        lines.append("the trace has one thread, so that every object is private: record with two or more")
    if meta["left_out_threads"]:
        lines.append(
            "not replayed, as they counted less than a twentieth of what the busiest has, or are too many: "
            f"{meta['left_out_threads']:,} of the recorded threads"
        )
    if "program" in meta["about"]:
        lines.append(
            "of a program only counts on other threads' objects are recorded; somebody who is not replayed "
            "holds each object throughout; all threads start at once, and what the program does beside its "
            "counts is what --work-ns says"
        )
    if meta["lost"]:
        lines.append(f"the recorder had no room for {meta['lost']:,} events")
    return lines


def introduce(console: Console, meta: dict[str, Any]) -> None:
    """The trace, the costs, the assumptions."""
    console.print(
        f"[bold]refbuf {meta['version']}: simulation of {meta['trace']}[/bold] "
        f"({meta['workload'] or 'a program'}, {meta['events']:,} events, {meta['objects']:,} objects)"
    )
    console.print(f"Costs, {'measured' if meta['cpus'] > 1 else 'partly assumed'} on {meta['cpu']}, in ns:")
    for name, cost in meta["costs"].items():
        given = " (given)" if name in meta["given_costs"] else ""
        console.print(f"  {name} {cost:,.2f}{given}: {MEANINGS[name]}")
    if not meta["undisturbed"]:
        console.print(
            "[yellow]Note:[/yellow] other work had the CPUs while costs were measured that take two threads: "
            "transfer and hold, and what follows from them, cannot be trusted."
        )
    console.print("Assumed:")
    for line in meta["assumptions"]:
        console.print(f"  {line}.")


def curve_table(rows: Sequence[Row]) -> Table:
    """Schemes over threads."""
    made = _table(
        "scheme", "threads", "ns per\npair", "scaling", "misses per\n1,000 pairs", "atomics per\n1,000 pairs"
    )
    before = None
    for row in rows:
        if before not in (None, row.scheme):
            made.add_section()
        made.add_row(
            "" if before == row.scheme else row.scheme,
            str(row.threads),
            f"{row.ns_per_pair:,.2f}",
            f"{row.scaling:,.2f}",
            f"{row.misses_per_1000_pairs:,.2f}",
            f"{row.atomics_per_1000_pairs:,.2f}",
        )
        before = row.scheme
    return made


def slot_table(rows: Sequence[Row]) -> Table:
    """Tables over sizes and hashes."""
    made = _table("scheme", "hash", "slots", "hit rate", "atomics per\n1,000 pairs", texts=2)
    before = None
    for row in rows:
        if before not in (None, row.scheme):
            made.add_section()
        rate = "-" if row.hit_rate is None else f"{row.hit_rate:.2%}"
        atomics = f"{row.atomics_per_1000_pairs:,.2f}"
        made.add_row(
            "" if before == row.scheme else row.scheme, row.hash or "", str(row.slots), rate, atomics
        )
        before = row.scheme
    return made


def check_table(checks: Sequence[Check]) -> Table:
    """Estimates beside measurements."""
    made = _table(
        "scheme",
        "measured as",
        "threads",
        "estimated\nns",
        "measured\nns",
        "error",
        "undisturbed\nruns",
        texts=2,
    )
    for check in checks:
        made.add_row(
            check.scheme,
            check.variant,
            str(check.threads),
            f"{check.estimated_ns_per_pair:,.2f}",
            f"{check.measured_ns_per_pair:,.2f}",
            f"{check.error:+.0%}",
            str(check.undisturbed),
        )
    return made


def _table(*headings: str, texts: int = 1) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="left" if index < texts else "right", no_wrap=True)
    return made


def as_json(rows: Sequence[Row], tables: Sequence[Row], checks: Sequence[Check], meta: dict[str, Any]) -> str:
    """The file for other programs. The keys are part of refbuf's interface."""
    content = {
        "meta": meta,
        "rows": [_short(row._asdict()) for row in rows],
        "tables": [_short(row._asdict()) for row in tables],
        "validation": [_short(check._asdict()) for check in checks],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _short(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
