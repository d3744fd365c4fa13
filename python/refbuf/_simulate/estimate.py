"""Replays a trace with every scheme and every number of threads, and compares the
estimate with what real threads measure."""

import gc
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from .. import flush_all, workloads
from .._refbuf import TABLES, Trace, build_info

# Pairs of each simulated thread, half of them for warming up: so many for all
# threads together, but never fewer than that for one.
_PAIRS_OF_ALL = 400_000
_FEWEST_PAIRS = 4_000

# A table's own slots, for schemes that have none: not looked at.
_NO_TABLE = 1

# The schemes that real objects can be counted with, by variant of the workloads.
_REAL_BUFFERED = {"biased": "stock", "credits": "refbuf"}
_REAL_WITH_GIL = {"plain": "stock"}
# Until so many rounds are undisturbed, but no more rounds than these.
_ROUNDS, _MOST_ROUNDS = 5, 15
_SECONDS = 0.06
# A run whose threads got less of their CPUs was disturbed by other work.
_ENOUGH_CPU = 0.9


class Setting(NamedTuple):
    """What all simulations of a report have in common."""

    costs: dict[str, float]
    work_ns: float
    """Other work beside each pair."""
    cache_bytes: int
    pairs: int | None
    """Of each thread; by the number of threads if None."""

    def pairs_of(self, threads: int) -> int:
        """Pairs of each of so many threads."""
        return self.pairs or max(_FEWEST_PAIRS, _PAIRS_OF_ALL // threads)


class Row(NamedTuple):
    """One scheme with so many threads."""

    scheme: str
    threads: int
    slots: int | None
    hash: str | None
    ns_per_pair: float
    pairs_per_second: float
    scaling: float
    """Throughput over that of one thread in the same scheme."""
    misses_per_1000_pairs: float
    atomics_per_1000_pairs: float
    fills_per_1000_pairs: float
    hit_rate: float | None


class Check(NamedTuple):
    """An estimate, and what real threads measured."""

    scheme: str
    variant: str
    threads: int
    estimated_ns_per_pair: float
    measured_ns_per_pair: float
    error: float
    """The estimate over the measurement, less 1."""
    undisturbed: int
    """Runs that had their CPUs; the measurement is their median, or of all if 0."""


class Unbalanced(Exception):
    """A scheme has lost or invented references: a bug."""


def curves(
    trace: Trace,
    schemes: Sequence[str],
    threads: Sequence[int],
    slots: int,
    hash_name: str,
    setting: Setting,
    on_row: Callable[[str], None],
) -> list[Row]:
    """Each scheme over the numbers of threads, which begin with 1."""
    rows: list[Row] = []
    for scheme in schemes:
        # Olsen's tables have a size of their own; refbuf's is the one asked for.
        size = slots if scheme == "credits" else TABLES.get(scheme, (None, 0))[0]
        alone = 0.0
        for count in threads:
            on_row(f"{scheme}, {count} thread{'s' * (count > 1)}")
            row = _row(trace, scheme, count, size, hash_name, setting)
            alone = alone or row.pairs_per_second
            rows.append(row._replace(scaling=row.pairs_per_second / alone))
    return rows


def tables(
    trace: Trace,
    slots: Sequence[int],
    hashes: Sequence[str],
    threads: int,
    setting: Setting,
    on_row: Callable[[str], None],
) -> list[Row]:
    """The schemes with tables, over sizes and hashes."""
    rows = []
    for scheme, (_, most) in TABLES.items():
        for hash_name in hashes:
            for size in slots:
                if size <= most:
                    on_row(f"{scheme}, {size} slots, {hash_name}")
                    rows.append(_row(trace, scheme, threads, size, hash_name, setting))
    return rows


def _row(trace: Trace, scheme: str, threads: int, slots: int | None, hash_name: str, setting: Setting) -> Row:
    outcome = trace.simulate(
        scheme,
        threads=threads,
        slots=slots or _NO_TABLE,
        hash=hash_name,
        pairs=setting.pairs_of(threads),
        costs=setting.costs,
        work_ns=setting.work_ns,
        cache_bytes=setting.cache_bytes,
        turn_ns=sys.getswitchinterval() * 1e9,
    )
    if outcome["residue"]:
        raise Unbalanced(f"{scheme} with {threads} threads lost or invented {outcome['residue']} references")
    return Row(
        scheme=scheme,
        threads=threads,
        slots=slots,
        hash=hash_name if slots else None,
        ns_per_pair=outcome["ns_per_pair"],
        pairs_per_second=outcome["pairs_per_second"],
        scaling=1.0,
        misses_per_1000_pairs=outcome["misses_per_1000_pairs"],
        atomics_per_1000_pairs=outcome["atomics_per_1000_pairs"],
        fills_per_1000_pairs=outcome["fills_per_1000_pairs"],
        hit_rate=outcome["hit_rate"],
    )


def check(
    trace: Trace,
    workload: str,
    threads: Sequence[int],
    slots: int,
    hash_name: str,
    setting: Setting,
    added_work_ns: float,
    on_row: Callable[[str], None],
) -> list[Check]:
    """Runs the trace's workload for real, for the schemes that can be, and compares.

    The variants take turns, as in the benchmark; a measurement is a median.
    `added_work_ns` is what the request adds to the workload's own instructions.
    """
    real = _REAL_BUFFERED if build_info()["buffered"] else _REAL_WITH_GIL
    # For each cell, its undisturbed runs, and all.
    good: dict[tuple[str, int], list[float]] = {(scheme, count): [] for scheme in real for count in threads}
    every: dict[tuple[str, int], list[float]] = {cell: [] for cell in good}
    for number in range(_MOST_ROUNDS):
        if min(map(len, good.values())) >= _ROUNDS:
            break
        on_row(f"real threads, round {number + 1}")
        gc.collect()
        objects = workloads.make_objects(workload)
        for scheme, count in good:
            time_of, share = _measure(workload, real[scheme], objects, count, number, added_work_ns)
            every[scheme, count].append(time_of)
            if share >= _ENOUGH_CPU or not build_info()["buffered"]:
                good[scheme, count].append(time_of)
    checks = []
    for (scheme, count), times in good.items():
        row = _row(trace, scheme, count, slots if scheme in TABLES else None, hash_name, setting)
        found = median(times or every[scheme, count])
        error = row.ns_per_pair / found - 1 if found else 0.0
        checks.append(Check(scheme, real[scheme], count, row.ns_per_pair, found, error, len(times)))
    return checks


def _measure(
    workload: str, variant: str, objects: list[object], threads: int, seed: int, work_ns: float
) -> tuple[float, float]:
    """Nanoseconds of a pair, and the share of their CPUs that the threads got."""
    cpu, wall = time.process_time(), time.perf_counter()
    run = workloads.run(
        workload, variant, objects, threads=threads, seconds=_SECONDS, seed=seed, work_ns=work_ns
    )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    flush_all()
    return run.ns_per_pair, cpu / (wall * threads)
