"""How long after its last reference an object is finalized, at the worst.

The worst case: several threads have just counted the object, so their buffers
hold credits on it, and then sleep. Only the heartbeat can give these back. The
delay runs from just before the main thread drops the last reference to the
object's weak reference callback.

All references are dropped by the threads that took them. Where a thread drops
one that the object's owner took, CPython lets the owner do the last step, when
it next runs: with refbuf as without.
"""

import threading
import time
import weakref
from statistics import median, quantiles
from typing import NamedTuple

from .. import workloads
from .._refbuf import build_info

# What is waited for one object. Far longer than any heartbeat worth measuring.
_LOST_SECONDS = 30.0


class Reclaim(NamedTuple):
    """Delays in milliseconds, over the samples."""

    samples: int
    threads: int
    heartbeat_ms: float
    median_ms: float
    p99_ms: float
    longest_ms: float


class _Thing:
    __slots__ = ("__weakref__",)


class _Toucher:
    """A thread that counts what it is given, then sleeps until the next."""

    def __init__(self) -> None:
        self._given: list[object] = []
        self._go = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._life, daemon=True)
        self._thread.start()

    def _life(self) -> None:
        while self._go.wait():
            self._go.clear()
            if not self._given:
                return
            workloads.touch(self._given[0])
            self._done.set()

    def touch(self, thing: object) -> None:
        self._given.append(thing)
        self._go.set()
        self._done.wait()
        self._done.clear()
        self._given.clear()

    def end(self) -> None:
        self._go.set()
        self._thread.join()


def measure_reclaim(samples: int, threads: int) -> Reclaim:
    """Makes and drops so many objects, each with credits in so many sleeping threads.

    Raises TimeoutError where an object is not finalized at all.
    """
    touchers = [_Toucher() for _ in range(threads)]
    try:
        delays = [_delay(touchers, number / samples) for number in range(samples)]
    finally:
        for toucher in touchers:
            toucher.end()
    return Reclaim(
        samples=samples,
        threads=threads,
        heartbeat_ms=build_info()["heartbeat_ms"],
        median_ms=median(delays),
        p99_ms=quantiles(delays, n=100, method="inclusive")[98],
        longest_ms=max(delays),
    )


def _delay(touchers: list[_Toucher], phase: float) -> float:
    """The delay for one object, dropped at some phase of the heartbeat."""
    gone = threading.Event()
    finalized: list[int] = []

    def on_gone(_: object) -> None:
        finalized.append(time.perf_counter_ns())
        gone.set()

    thing = _Thing()
    reference = weakref.ref(thing, on_gone)
    for toucher in touchers:
        toucher.touch(thing)
    time.sleep(phase * build_info()["heartbeat_ms"] / 1000)
    dropped = time.perf_counter_ns()
    del thing
    if not gone.wait(_LOST_SECONDS):
        raise TimeoutError(f"an object was not finalized within {_LOST_SECONDS:g} s of its last reference")
    del reference
    return (finalized[0] - dropped) / 1e6
