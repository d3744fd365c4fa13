"""Multithreaded loops that count references to real Python objects.

A workload says which objects the threads count and in what order, a variant
how they count. The loops are native, compiled once for each variant.

========== ====================================================== =========
workload   what each thread does                                  objects
========== ====================================================== =========
shared     counts one object                                              1
literals   nested calls: constants first referenced at a call,
           last at its return                                            32
zipf       counts a few of many objects often (skew 1.0)              4,096
wide       counts any of very many, each as likely             1,000,000
private    counts objects of its own                              16 each
handoff    makes references that the next thread drops                   64
container  walks a shared list, then a shared dict                      256
random     takes and drops, and holds up to 4,096 meanwhile          10,000
========== ====================================================== =========

Variants of attached threads: `stock` is CPython's own Py_INCREF and Py_DECREF,
`refbuf` the inline path of refbuf.h, and `refbuf-call` refbuf's exported functions.
On builds with a GIL these threads take turns.

Variants of threads that have let go of the interpreter, and clone and drop
references as Rust code with PyO3 does: `detached` is `refbuf::Ref`,
`attach-per-clone` attaches for each clone and for each drop, `arc` is
`Arc<Py<T>>`, and `pool` attaches for each clone and leaves what it drops to PyO3's
pool. Their threads have a thread state, which attaching finds: the best case for
those that attach. They walk a vector and a hash map in place of a list and a dict.
"""

import operator
from collections.abc import Callable, Iterable

from ._refbuf import VARIANTS as _VARIANTS
from ._refbuf import WORKLOADS as _WORKLOADS
from ._refbuf import Run, run_workload
from ._refbuf import touch as _touch

__all__ = ["VARIANTS", "WORKLOADS", "Run", "make_objects", "run", "touch"]

WORKLOADS: tuple[str, ...] = tuple(_WORKLOADS)
VARIANTS: tuple[str, ...] = tuple(_VARIANTS)

_COUNTS: dict[str, int] = {
    "shared": 1,
    "literals": 32,
    "zipf": 4_096,
    "wide": 1_000_000,
    "private": 16,
    "handoff": 64,
    "container": 256,
    "random": 10_000,
}

_MOST_THREADS = 4096
_LARGEST_UINT64 = 2**64 - 1


class _Thing:
    """An object like any other, as small as one can be."""

    __slots__ = ()


def _literal(index: int) -> object:
    """A constant made at run time: neither interned nor immortal, as those in code are."""
    makers: tuple[Callable[[int], object], ...] = (
        lambda i: i + 0.5,
        lambda i: f"literal {i}",
        lambda i: ("literal", i),
        lambda i: f"literal {i}".encode(),
    )
    return makers[index % len(makers)](index)


def make_objects(workload: str) -> list[object]:
    """New objects for a workload, as many as the table above says.

    They are owned by the calling thread, so they are foreign to the threads of
    a run, and none is immortal. Of those for `private` only the number counts.
    Raises ValueError for an unknown workload.
    """
    if workload not in WORKLOADS:
        raise ValueError(f"unknown workload {workload!r}: there are {', '.join(WORKLOADS)}")
    count = _COUNTS[workload]
    if workload == "literals":
        return [_literal(index) for index in range(count)]
    return [_Thing() for _ in range(count)]


def run(
    workload: str,
    variant: str = "refbuf",
    objects: Iterable[object] | None = None,
    *,
    threads: int = 1,
    pairs: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    keep: bool = False,
    factory: Callable[[], object] = object,
    work_ns: float = 0.0,
) -> Run:
    """Runs one workload in one variant and waits for its threads.

    workload, variant: names out of `WORKLOADS` and `VARIANTS`.
    objects: what is counted, any number from 1; `make_objects(workload)` if
        None. `container` walks the list of them and a dict with them as values.
    threads: threads that start together, 1 to 4,096.
    pairs, seconds: how long, exactly one of them: increments with their
        decrements in each thread, or the time for all threads.
    seed: of the pseudo-random orders, 0 to 2**64 - 1; each thread derives its own.
    keep: `random` only: hand the references still held at the end to the
        caller, in `Run.kept`, instead of dropping them.
    factory: `private` only: makes an object; called in each thread, as many
        times as there are `objects`.
    work_ns: other work beside each pair, in nanoseconds: a chain of
        multiplications, measured once in a process; up to 1e6.

    Returns a `Run`: `pairs` of all threads, `ns_per_pair` (nanoseconds of a
    thread), `pairs_per_second` of all threads, `atomics_per_1000_pairs`
    (atomic operations on counts: counted for refbuf's variants, known for the
    others), and `kept`.

    Raises ValueError or TypeError for bad arguments, before anything has
    started; RuntimeError where the system gives fewer threads than asked for;
    and whatever `factory` raises. No thread is left behind.
    """
    threads = _whole("threads", threads, 1, _MOST_THREADS)
    seed = _whole("seed", seed, 0, _LARGEST_UINT64)
    if pairs is not None:
        pairs = _whole("pairs", pairs, 0, _LARGEST_UINT64)
    objects = make_objects(workload) if objects is None else list(objects)
    return run_workload(
        workload,
        variant,
        objects,
        mapping=dict(enumerate(objects)) if workload == "container" else None,
        threads=threads,
        pairs=pairs,
        seconds=seconds,
        seed=seed,
        keep=keep,
        factory=factory,
        work_ns=_nanoseconds(work_ns),
    )


def touch(object: object, pairs: int = 1, variant: str = "refbuf") -> None:
    """Counts one object in the calling thread: so many increments, each with its decrement.

    Afterwards the thread's buffer may hold credits on the object, if another
    thread owns it. Raises ValueError for a variant that is unknown, or of threads
    that are not attached.
    """
    _touch(object, variant, _whole("pairs", pairs, 0, _LARGEST_UINT64))


def _nanoseconds(value: float) -> float:
    """A float; the conversion's own errors name no argument."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"work_ns must be a number, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("work_ns is out of all range") from None


def _whole(name: str, value: int, least: int, most: int) -> int:
    """A number that fits its native type; the conversion's own error names no argument."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {number}")
    return number
