"""`python -m refbuf lab report`: the discussion's claims beside what is measured here."""

import os
import shlex
import time
from collections.abc import Sequence
from typing import Any

from ..._bench import machine
from ..._lab.claims import Claim, Figures, claims
from ..._lab.measure import Matrix
from ..._refbuf import HASHES, MOST_SIMULATED_THREADS, PROGRAMS, SCHEMES, TABLES, Trace, calibrate_costs
from .. import CommandError
from ..arguments import number
from ..files import check_installed, check_writable, write
from ..parser import Parser
from . import run, simulate, trace_workload

COMMAND = "lab report"

DESCRIPTION = """Measures all programs with all schemes and one and two threads, replays two traces
of real objects for up to 256 threads, prints what was claimed in 2007 beside what was
measured here, and writes LAB.md with its figures."""

EPILOG = """Takes about three minutes. Exit status: 0, 2 for bad usage or a missing package,
130 if interrupted."""

THREADS = (1, 2)
# Many and short: what disturbs a run for a second disturbs all schemes of a round.
ROUNDS = 25
SECONDS = 0.05
# What is behind this line of the page, the next report leaves as it is.
KEPT = b"<!-- From here on: not by `lab report`. -->\n"
# Traces that are carried on by simulation, and for how many threads.
TRACED = ("literals", "zipf")
SIMULATED = tuple(1 << power for power in range(0, MOST_SIMULATED_THREADS.bit_length(), 2))


def main(arguments: Sequence[str]) -> int:
    """Measures, prints, writes; returns the exit status."""
    options = _parser().parse_args(arguments)
    names = ["LAB.md", "lab.png", *(f"lab-{workload}.png" for workload in TRACED)]
    paths = {name: os.path.join(options.out, name) for name in names}
    if not os.path.isdir(options.out):
        raise CommandError(f"{COMMAND}: {options.out!r} is no folder: name one with --out")
    for path in paths.values():
        check_writable(COMMAND, path)
    check_installed(COMMAND, paths["lab.png"])

    started = time.monotonic()
    matrix = Matrix(tuple(SCHEMES), tuple(PROGRAMS), THREADS, options.rounds, options.seconds)
    foreign = matrix._replace(workloads=("calls",), shared=1.0, made_by="waiter")
    meta = run.describe(matrix, shlex.join(["python", "-m", "refbuf", *COMMAND.split(), *arguments]))
    figures = Figures(run.run(COMMAND, matrix), run.run(COMMAND, foreign))
    meta["calibrations"] = figures.usual.calibrations
    simulations = [_simulate(workload) for workload in TRACED]
    meta["elapsed"] = time.monotonic() - started
    found = claims(figures)
    _tell(found)

    from ..._lab.document import document

    kept = _kept(paths["LAB.md"])
    write(COMMAND, paths["LAB.md"], document(figures, found, meta, simulations).encode() + kept)
    write(COMMAND, paths["lab.png"], run.picture(COMMAND, figures.usual, meta, "png"))
    for simulation in simulations:
        write(COMMAND, paths[f"lab-{simulation['workload']}.png"], _picture(simulation))
    return 0


def _kept(path: str) -> bytes:
    """What somebody has written to the page's end, behind a line that says so."""
    try:
        with open(path, "rb") as page:
            content = page.read()
    except FileNotFoundError:
        return b""
    place = content.find(KEPT)
    return b"\n" + content[place:] if place >= 0 else b""


def _simulate(workload: str) -> dict[str, Any]:
    """Records a workload, and carries it on."""
    content, _ = trace_workload.record(workload, f"python -m refbuf {COMMAND}")
    recording = Trace(content)
    costs, undisturbed = calibrate_costs(machine.cpus())
    setting = simulate.setting(recording, costs)
    from ..._simulate.estimate import check, curves
    from ..._simulate.report import progress

    slots = TABLES["credits"][0]
    real = [count for count in THREADS if count <= machine.cpus()]
    with progress(len(SCHEMES) * len(SIMULATED) + 5) as on_row:
        rows = curves(recording, SCHEMES, SIMULATED, slots, HASHES[0], setting, on_row)
        checks = check(recording, workload, real, slots, HASHES[0], setting, 0.0, on_row)
    return {
        "workload": workload,
        "threads": SIMULATED,
        "rows": rows,
        "checks": checks,
        "undisturbed": undisturbed,
    }


def _picture(simulation: dict[str, Any]) -> bytes:
    from ..._simulate.plot import draw

    return draw(simulation["rows"], machine.describe() | {"workload": simulation["workload"]}, "png")


def _tell(found: Sequence[Claim]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("claim", "measured here", "holds"):
        made.add_column(heading)
    for claim in found:
        made.add_row(claim.said, claim.measured, "yes" if claim.holds else "[red]no[/red]")
        made.add_section()
    console = Console(highlight=False)
    console.print(made)
    for claim in found:
        if claim.why and not claim.holds:
            console.print(f"{claim.said} {claim.why}")


def _parser() -> Parser:
    parser = Parser(COMMAND, DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("--out", metavar="FOLDER", default="docs", help="where to write (default: docs)")
    add(
        "--rounds",
        metavar="N",
        type=number(int, 1, run.MOST_ROUNDS),
        default=ROUNDS,
        help="rounds to take medians of (default: %(default)s)",
    )
    add(
        "--seconds",
        metavar="S",
        type=number(float, 0.001, run.MOST_SECONDS),
        default=SECONDS,
        help="seconds of each single run (default: %(default)s)",
    )
    return parser
