"""The named structure that `refbuf.stats` returns."""

from typing import NamedTuple


class Stats(NamedTuple):
    """Sums over the buffers of all threads, past and present.

    They are exact while no thread is counting, and up to date to within a few
    operations otherwise. On an interpreter that does not buffer (a build with
    a GIL) nothing is counted, and the sums are zero.

    An operation is one increment or one decrement of a foreign object, that is
    of one that is neither immortal nor owned by the current thread. Each ends
    up in exactly one of `hits`, `misses`, `acquires` and `take_ins`.

    Sums since the start:

    hits
        Operations that a slot served, without an atomic operation.
    misses
        Operations left to CPython's own path.
    acquires
        Increments that counted a batch of credits on an object.
    take_ins
        Decrements whose reference a slot took in.
    evictions
        Residents of a slot that made room for another object.
    settles
        Slots whose credits went back to their object, evictions included.
    parked
        Releases that an increment put off to the thread's next safe point.
    atomics
        Atomic operations on objects' counts.
    beats
        Beats of the heartbeat.

    At the moment:

    credits
        References that the buffers hold on objects.
    threads
        Threads that have a buffer.
    orphans
        Buffers of ended threads that are not yet settled.
    slots
        Slots of a buffer.
    buffer_bytes
        Memory of a buffer, in bytes.
    """

    hits: int
    misses: int
    acquires: int
    take_ins: int
    evictions: int
    settles: int
    parked: int
    atomics: int
    credits: int
    threads: int
    orphans: int
    beats: int
    slots: int
    buffer_bytes: int

    @property
    def operations(self) -> int:
        """Increments and decrements of foreign objects."""
        return self.hits + self.misses + self.acquires + self.take_ins

    @property
    def hit_rate(self) -> float:
        """The share of operations that a slot served, from 0 to 1; 0 if there were none."""
        return self.hits / self.operations if self.operations else 0.0

    def as_dict(self) -> dict[str, int]:
        """The fields by name, without the derived ones."""
        return self._asdict()

    def __repr__(self) -> str:
        return (
            f"<refbuf.Stats: {self.operations:,} operations, {self.hit_rate:.1%} hits\n"
            f"  hits {self.hits:,}  misses {self.misses:,}"
            f"  acquires {self.acquires:,}  take_ins {self.take_ins:,}\n"
            f"  evictions {self.evictions:,}  settles {self.settles:,}"
            f"  parked {self.parked:,}  atomics {self.atomics:,}  beats {self.beats:,}\n"
            f"  now: credits {self.credits:,}  threads {self.threads:,}  orphans {self.orphans:,}"
            f"  slots {self.slots:,}  buffer_bytes {self.buffer_bytes:,}>"
        )
