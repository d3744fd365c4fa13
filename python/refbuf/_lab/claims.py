"""What was said in 2007, beside what is measured here.

The messages are those of the thread "Removing the GIL (Me, not you!)" on python-dev,
September 2007; the README is that of python-safethread.
"""

from typing import NamedTuple

from .measure import Matrix, Reclaim, Results, Row
from .report import delays

OLSEN = "https://mail.python.org/pipermail/python-dev/2007-September/074653.html"
# What he measured, and by how much a measurement may differ and still be "about" it.
OLSEN_ATOMIC, ABOUT = 0.12, 2.0
OLSEN_SPEEDS, A_TENTH = (0.50, 0.65), 0.1
OLSEN_SCALING = 0.9
# What refbuf promises.
CREDITS_SPEED, CREDITS_SCALING = 0.97, 1.9


class Claim(NamedTuple):
    """One line of the report."""

    said: str
    by: str
    measured: str
    holds: bool
    why: str
    """Where it does not hold as it was said, or needs a word."""


class Figures(NamedTuple):
    """What the claims are judged by."""

    usual: Results
    """All programs, with the default part of shared literals, made by the main thread."""
    literals: Results
    """`calls` alone, where all literals are shared and another thread has made them."""


def claims(figures: Figures) -> list[Claim]:
    """All of them, in the order of the discussion."""
    return [
        _atomic_in_one_thread(figures),
        _atomic_contends(figures),
        _thread_count_touches(figures),
        _deltas_speed(figures),
        _deltas_scale(figures),
        _only_the_collector_frees(figures),
        _credits_cost_nothing(figures),
        _credits_scale(figures),
        _credits_free_promptly(figures),
    ]


def _row(results: Results, workload: str, scheme: str, threads: int) -> Row:
    for row in results.rows:
        if (row.workload, row.scheme, row.threads) == (workload, scheme, threads):
            return row
    raise LookupError(f"{workload}, {scheme}, {threads} threads was not measured")


def _atomic_in_one_thread(figures: Figures) -> Claim:
    row = _row(figures.usual, "calls", "atomic", 1)
    cost = 1 - row.speed
    plain = figures.usual.calibrations["calls"]
    atomic_ns = row.ns_per_pair - _row(figures.usual, "calls", "plain", 1).ns_per_pair
    return Claim(
        "Atomic counts cost about 12 % in one thread.",
        f"[Olsen]({OLSEN})",
        f"{cost:.0%} slower than plain (calls); between half of that and twice as much counts as about",
        OLSEN_ATOMIC / ABOUT <= cost <= OLSEN_ATOMIC * ABOUT,
        f"A pair of atomic instructions adds {atomic_ns:.1f} ns here to the {plain['counting_ns']:.2f} ns of "
        f"plain counting, and a pair with the work beside it takes {plain['pair_ns']:.1f} ns. For a cost of "
        f"{OLSEN_ATOMIC:.0%}, {atomic_ns / OLSEN_ATOMIC * (1 - OLSEN_ATOMIC):.0f} ns would have to pass from "
        "pair to pair: a smaller share of counting.",
    )


def _atomic_contends(figures: Figures) -> Claim:
    shared = _row(figures.literals, "calls", "atomic", 2)
    private = _row(figures.usual, "private", "atomic", 2)
    return Claim(
        "With two threads they cost far more: literals are shared, and contend.",
        f"[Olsen]({OLSEN})",
        f"two threads do {shared.scaling:.2f} × the work of one where all literals are shared; "
        f"{private.scaling:.2f} × on cells of their own",
        shared.scaling < 0.75 * private.scaling,
        "",
    )


def _thread_count_touches(figures: Figures) -> Claim:
    tulloss = _row(figures.literals, "calls", "thread-count", 2)
    credits = _row(figures.literals, "calls", "credits", 2)
    alone = _row(figures.literals, "calls", "thread-count", 1)
    credits_alone = _row(figures.literals, "calls", "credits", 1)
    return Claim(
        "Thread counts touch the global count at each call and each return, as a literal is referenced first "
        "when a function is called and last when it returns.",
        f"[Olsen, to Tulloss]({OLSEN})",
        f"{tulloss.atomics_per_1000_pairs:,.0f} atomic operations in 1,000 pairs, credits "
        f"{credits.atomics_per_1000_pairs:,.1f}; two threads do {tulloss.throughput:.2f} × plain's one "
        f"thread, with credits {credits.throughput:.2f} ×",
        tulloss.throughput < credits.throughput and tulloss.atomics_per_1000_pairs > 1_000,
        f"In one thread, where nothing contends, thread counts do {alone.speed:.2f} × plain's work there, "
        f"and credits {credits_alone.speed:.2f} ×.",
    )


def _deltas_speed(figures: Figures) -> Claim:
    row = _row(figures.literals, "calls", "deltas", 1)
    return Claim(
        "Buffered deltas give about 50 % of the normal speed (60 to 65 % in the end).",
        f"[Olsen]({OLSEN}); python-safethread's README",
        f"{row.speed:.0%} of plain's speed in one thread, all cells asynchronous (calls); within a tenth of "
        "these figures counts as they",
        OLSEN_SPEEDS[0] * (1 - A_TENTH) <= row.speed <= OLSEN_SPEEDS[1] * (1 + A_TENTH),
        "This is the counting alone: whatever else his interpreter had changed is not in it.",
    )


def _deltas_scale(figures: Figures) -> Claim:
    row = _row(figures.literals, "calls", "deltas", 2)
    return Claim(
        "Their scalability is 90 % or more.",
        f"[Olsen]({OLSEN})",
        f"two threads do {row.scaling:.2f} × the work of one ({row.scaling / 2:.0%} of perfect)",
        row.scaling / 2 >= OLSEN_SCALING,
        "",
    )


def _only_the_collector_frees(figures: Figures) -> Claim:
    churn = _row(figures.usual, "pipeline", "deltas", 2)
    atomic = _row(figures.usual, "pipeline", "atomic", 2)
    return Claim(
        "An asynchronous object is freed by the collector alone.",
        "python-safethread",
        f"{_delay(figures.usual.reclaim['deltas'])}; up to {churn.most_cells:,} cells in memory where atomic "
        f"has {atomic.most_cells:,} (pipeline)",
        not figures.usual.reclaim["deltas"].reclaimed,
        "",
    )


def _credits_cost_nothing(figures: Figures) -> Claim:
    row = _row(figures.usual, "calls", "credits", 1)
    foreign = _row(figures.literals, "calls", "credits", 1)
    return Claim(
        f"Credits keep at least {CREDITS_SPEED:.0%} of plain's speed in one thread.",
        "refbuf",
        f"{row.speed:.1%} (calls); where another thread has made all literals, {foreign.speed:.0%}, "
        f"atomic {_row(figures.literals, 'calls', 'atomic', 1).speed:.0%}",
        row.speed >= CREDITS_SPEED,
        "One thread that has made all it counts spends no credit: its counts are plain, as those of biased, "
        "and the claim is that nothing is added to them. What credits cost says the second figure, where "
        "each count is one; what they save is contention, in the next claim.",
    )


def _credits_scale(figures: Figures) -> Claim:
    alone = _row(figures.usual, "calls", "credits", 1)
    row = _row(figures.usual, "calls", "credits", 2)
    foreign = _row(figures.literals, "calls", "credits", 2)
    share = Matrix._field_defaults["shared"]
    taken = (row.ns_per_pair - alone.ns_per_pair) / share
    allowed = alone.ns_per_pair * (2 / CREDITS_SCALING - 1) / share
    return Claim(
        f"Two threads do at least {CREDITS_SCALING} × the work of one.",
        "refbuf",
        f"{row.scaling:.2f} × (calls); {foreign.scaling:.2f} × where another thread has made all literals",
        row.scaling >= CREDITS_SCALING,
        "With one thread the shared literals are its own, and counted plainly; with two they are another's, "
        f"and a pair through a table takes longer: {taken:.1f} ns longer, where {CREDITS_SCALING} × would "
        f"allow {allowed:.1f}. Where another thread has made them all, what is left are literals "
        f"that find both their places in the table taken: {foreign.atomics_per_1000_pairs:,.1f} "
        "atomic operations in 1,000 pairs, each on a line that the other thread wants, too.",
    )


def _credits_free_promptly(figures: Figures) -> Claim:
    reclaim = figures.usual.reclaim["credits"]
    return Claim(
        "An object is freed within two heartbeats of 10 ms, whichever threads with credits on it sleep.",
        "refbuf",
        _delay(reclaim),
        reclaim.p99_ms is not None and reclaim.p99_ms <= 20,
        "",
    )


def _delay(reclaim: Reclaim) -> str:
    median, p99 = delays(reclaim)
    return f"median {median}, 99th percentile {p99}" if p99 else median
