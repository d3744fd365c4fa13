"""docs/LAB.md: what the laboratory has found, as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from .claims import Claim, Figures
from .measure import Results
from .report import calibration_lines, delays

HEAD = """# The laboratory

Written by `{command}`, on {date}, in {elapsed:.0f} s: {cpu}, {cpus} CPUs, refbuf {version}.
Run it again to have your own machine's.

In September 2007 python-dev discussed how to count references without a GIL, from a handful of
measurements. Here each of the schemes is complete, on cells of the laboratory's own, and everybody can
measure the argument. All figures are ratios in one run: medians of {rounds} rounds of {seconds:g} s, the
schemes in turn; a ratio is the median of the rounds' own. What threads share was made by the main thread,
which works if it is the only one, and waits for the others if not. What confounds them: two CPUs that
other work shares, a changing clock, and a processor that does some of the counting while
it waits for something else.

| scheme | what it is |
|---|---|
| `plain` | plain counts; a thread runs while it has the one lock, and hands it over as CPython does |
| `atomic` | atomic counts |
| `thread-count` | Tulloss: a count in each thread for each object, and in the object a count of threads |
| `deltas` | Olsen: changes wait in each thread's table until a collision or a collection, which alone frees |
| `biased` | CPython 3.13, free-threaded: the owner counts plainly, others atomically |
| `credits` | refbuf: as biased, but others spend and refund references that are already counted |

| program | what its threads do |
|---|---|
| `calls` | nested calls, each of which references four literals, some of them shared, and drops them |
| `private` | reference cells of their own |
| `graph` | walk one graph of 1,024 nodes and rewire it |
| `pipeline` | make cells that the next thread drops |
| `churn` | make cells that live for a moment |
| `zipf` | reference 4,096 shared cells, few of them often |

"""

CLAIMS = """## What was said, and what is so here

"All literals shared" means that another thread, which waits, has made all of them, so that nobody counts
plainly.

"""

WORK = """
## How much of a program counting is

"12 % slower" means something only if one knows how much of the time was counting before. So beside each
pair stands other work, so much that counting, measured without it, would be {share:.0%} of the time of
one thread under `plain`. Where a program's own work is more than that already, nothing is added. A processor
does some of both at once; what is left of counting then is the last number of each line.

"""


def document(
    figures: Figures, found: Sequence[Claim], meta: dict[str, Any], simulations: Sequence[dict[str, Any]]
) -> str:
    """All of it."""
    parts = [HEAD.format(**meta), CLAIMS, _claims(found)]
    parts += [f"\n*{claim.said}* {claim.why}\n" for claim in found if claim.why]
    parts += [WORK.format(share=meta["counting_share"])]
    parts += [f"- {line}\n" for line in calibration_lines(meta)]
    parts += ["\n## Everything\n\n![throughput over threads](lab.png)\n\n", _rows(figures.usual)]
    parts += [
        "\nWith all literals shared:\n\n",
        _rows(figures.literals),
        "\n## Memory, and the way to the end\n\n",
    ]
    parts += [_schemes(figures.usual), *map(_simulation, simulations)]
    return "".join(parts)


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]], numbers: int = 0) -> str:
    texts = len(headings) - numbers
    rule = ["---"] * texts + ["---:"] * numbers
    rows = [headings, rule, *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _claims(found: Sequence[Claim]) -> str:
    return _table(
        ("claim", "by", "measured", "holds"),
        [(claim.said, claim.by, claim.measured, "yes" if claim.holds else "**no**") for claim in found],
    )


def _rows(results: Results) -> str:
    return _table(
        (
            "program",
            "threads",
            "scheme",
            "ns a pair",
            "one thread's speed to plain's",
            "scaling",
            "atomics in 1,000 pairs",
        ),
        [
            (
                row.workload,
                str(row.threads),
                row.scheme,
                f"{row.ns_per_pair:,.2f}",
                f"{row.speed:.3f}",
                f"{row.scaling:.2f}",
                f"{row.atomics_per_1000_pairs:,.1f}",
            )
            for row in results.rows
        ],
        4,
    )


def _schemes(results: Results) -> str:
    text = (
        "From a cell's last reference to its end, while two other threads that have just counted it sleep; "
        "the most memory that any of the programs took.\n\n"
    )
    lines = []
    for scheme, reclaim in results.reclaim.items():
        rows = [row for row in results.rows if row.scheme == scheme]
        lines.append(
            (
                scheme,
                *delays(reclaim),
                str(rows[0].header_bytes),
                f"{max(row.thread_bytes for row in rows):,}",
                f"{max(row.most_cells for row in rows):,}",
            )
        )
    headings = ("scheme", "median", "99th percentile", "bytes in a cell", "bytes in a thread", "most cells")
    return text + _table(headings, lines, 3)


def _simulation(simulation: dict[str, Any]) -> str:
    """Curves from a trace of real objects, and how wrong the model is where that can be seen."""
    workload = simulation["workload"]
    rows, threads = simulation["rows"], simulation["threads"]
    lines = [
        (scheme, *(f"{row.scaling:,.1f}" for row in rows if row.scheme == scheme))
        for scheme in dict.fromkeys(row.scheme for row in rows)
    ]
    text = (
        f"\n## `{workload}`, carried to {threads[-1]} threads by simulation\n\n"
        "A trace of real Python objects, replayed on a model of caches ([SIMULATION.md](SIMULATION.md)): "
        "scaling, the throughput of all threads over that of one. An estimate, and an extrapolation from "
        "two CPUs.\n\n"
        f"![simulated curves](lab-{workload}.png)\n\n"
    )
    text += _table(("scheme", *map(str, threads)), lines, len(threads))
    if not simulation["undisturbed"]:
        text += (
            "\nOther work had the CPUs while costs were measured that take two threads: these curves cannot "
            "be trusted.\n"
        )
    if simulation["checks"]:
        text += (
            "\nWhere real threads can be measured here; a measurement is the median of the runs that had "
            "their CPUs, of all if none had:\n\n"
        )
        text += _table(
            ("scheme", "threads", "estimated ns a pair", "measured", "error", "such runs"),
            [
                (
                    check.scheme,
                    str(check.threads),
                    f"{check.estimated_ns_per_pair:.1f}",
                    f"{check.measured_ns_per_pair:.1f}",
                    f"{check.error:+.0%}",
                    str(check.undisturbed),
                )
                for check in simulation["checks"]
            ],
            5,
        )
    return text
