"""What a reader of `lab run` sees: what is measured, the tables, the JSON."""

import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .measure import MAKERS, Reclaim, Results, Row

NEVER = "never, until collected"
LATE = "over five beats"


def introduce(console: Console, meta: dict[str, Any]) -> None:
    """What is measured, and what confounds it."""
    load = meta["load_average"]
    load_here = f"load average {load[0]:.1f} on " if load else ""
    for line in (
        f"[bold]refbuf {meta['version']}: the schemes of the 2007 discussion[/bold], {meta['cpu']}",
        "Cells of the laboratory's own, no Python. A pair is one increment and one decrement, with the "
        f"work beside it. What threads share was made by {MAKERS[meta['made_by']]}. Speed: of one "
        "thread, against plain's. Scaling: of all threads, against one of the same scheme. plain's "
        "threads take turns.",
        f"Medians of {meta['rounds']} rounds, {meta['seconds']:g} s a run, schemes in turn; ratios are "
        "those of rounds. Confounders: "
        f"other work ({load_here}{meta['cpus']} CPUs), changing clock speed, cores that share hardware.",
        *calibration_lines(meta),
    ):
        console.print(line)


def calibration_lines(meta: dict[str, Any]) -> list[str]:
    """How large the part is that is not counting."""
    return [
        f"{name}: {found['pair_ns']:.1f} ns a pair in plain's one thread, of which counting alone takes "
        f"{found['counting_ns']:.2f} ({found['share']:.1%}) and the added work "
        f"{found['work'] * found['unit_ns']:.1f}; {found['beside_work_ns']:.2f} of counting do not vanish "
        "beside it."
        for name, found in meta["calibrations"].items()
    ]


def table(rows: list[Row]) -> Table:
    """All rows, a section for each program."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.add_column("workload", style="bold", no_wrap=True)
    made.add_column("threads", justify="right", no_wrap=True)
    made.add_column("scheme", no_wrap=True)
    for heading in (
        "ns per\npair",
        "speed\nto plain",
        "scaling",
        "atomics per\n1,000 pairs",
        "most\ncells",
    ):
        made.add_column(heading, justify="right", no_wrap=True)
    before: Row | None = None
    for row in rows:
        same_workload = before is not None and before.workload == row.workload
        if before is not None and not same_workload:
            made.add_section()
        same_threads = same_workload and before is not None and before.threads == row.threads
        made.add_row(
            "" if same_workload else row.workload,
            "" if same_threads else str(row.threads),
            row.scheme,
            f"{row.ns_per_pair:,.2f}",
            f"{row.speed:.2f}",
            f"{row.scaling:.2f}",
            f"{row.atomics_per_1000_pairs:,.1f}",
            f"{row.most_cells:,}",
        )
        before = row
    return made


def scheme_table(results: Results) -> Table:
    """Memory, and how promptly cells are freed."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.add_column("scheme", no_wrap=True)
    for heading in (
        "bytes in\na cell",
        "bytes in a\nthread, most",
        "last reference to end:\nmedian",
        "99th\npercentile",
    ):
        made.add_column(heading, justify="right", no_wrap=True)
    for scheme, reclaim in results.reclaim.items():
        rows = [row for row in results.rows if row.scheme == scheme]
        made.add_row(
            scheme,
            str(rows[0].header_bytes),
            f"{max(row.thread_bytes for row in rows):,}",
            *delays(reclaim),
        )
    return made


def delays(reclaim: Reclaim) -> tuple[str, str]:
    """Median and 99th percentile, in words."""
    if not reclaim.reclaimed:
        return NEVER, ""
    return _delay(reclaim.median_ms), _delay(reclaim.p99_ms)


def _delay(milliseconds: float | None) -> str:
    return LATE if milliseconds is None else f"{milliseconds:.3g} ms"


def as_json(results: Results, meta: dict[str, Any]) -> str:
    """The file for other programs. The keys of a row are part of refbuf's interface."""
    rows = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row._asdict().items()}
        for row in results.rows
    ]
    reclaim = {scheme: found._asdict() for scheme, found in results.reclaim.items()}
    return json.dumps({"meta": meta, "rows": rows, "reclaim": reclaim}, indent=2, allow_nan=False) + "\n"
