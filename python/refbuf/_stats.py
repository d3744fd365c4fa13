"""The named structure that `refbuf.stats` returns."""

from typing import NamedTuple


class Stats(NamedTuple):
    """Sums over the buffers of all threads, past and present.

    They are exact while no thread is counting, and up to date to within a few
    operations otherwise.

    An operation is one increment or one decrement of a foreign object, that is
    of one that is neither immortal nor owned by the current thread; or one of an
    account, through which threads count that are not attached. Each ends up in
    exactly one of `hits`, `misses`, `acquires` and `take_ins`. Attached threads
    of an interpreter with a GIL have no buffers, and what they do is not counted.

    Sums since the start:

    hits
        Operations that a slot served, without an atomic operation.
    misses
        Operations left to CPython's own path, or to the account's.
    acquires
        Increments that counted a batch of credits on an object, or drew it
        from an account.
    take_ins
        Decrements whose reference a slot took in.
    evictions
        Residents of a slot that made room for another object.
    settles
        Slots whose credits went back to their object or account, evictions included.
    parked
        Releases that an increment put off to the thread's next safe point.
    atomics
        Atomic operations on the counts of objects and accounts.
    beats
        Beats of the heartbeats: objects and accounts have one each.

    At the moment:

    credits
        References that the buffers hold on objects and accounts.
    threads
        Buffers in use: a thread may have one of objects and one of accounts.
    orphans
        Buffers of ended threads that are not yet settled.
    slots
        Slots of a buffer of objects.
    buffer_bytes
        Memory of one, in bytes.
    accounts
        Accounts that are open: objects that threads may count which are not
        attached.
    account_slots
        Slots of a buffer of accounts.
    account_buffer_bytes
        Memory of one, in bytes.
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
    accounts: int
    account_slots: int
    account_buffer_bytes: int

    @property
    def operations(self) -> int:
        """Increments and decrements of foreign objects and of accounts."""
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
            f"  slots {self.slots:,}  buffer_bytes {self.buffer_bytes:,}\n"
            f"  accounts: open {self.accounts:,}  slots {self.account_slots:,}"
            f"  buffer_bytes {self.account_buffer_bytes:,}>"
        )
