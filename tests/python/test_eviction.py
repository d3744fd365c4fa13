"""R2 and evictions: in tables so small that every path runs. The heartbeat is a
minute, so that nobody but the threads themselves settles anything."""

import pytest

pytestmark = pytest.mark.needs_buffering

TABLE_OF = """
SLOTS = {slots}
import refbuf
refbuf.configure(slots=SLOTS, heartbeat_ms=60_000)
import support
support.hold_the_heartbeat()
"""


@pytest.fixture(params=[1, 2, 16])
def run_in_small_table(run_python, request):
    def run(code, **options):
        return run_python(code, first=TABLE_OF.format(slots=request.param), **options)

    return run


def test_counts_are_exact_and_every_eviction_path_runs(run_in_small_table):
    run_in_small_table(
        """
        import collections
        import countext
        from refbuf import workloads
        from support import Plain, Worker, addresses, counts, in_threads, rivals, settled_counts

        assert refbuf.stats().slots == SLOTS
        objects = [Plain() for _ in range(10_000)]
        before = counts(objects)
        for variant in workloads.VARIANTS:
            run = workloads.run("random", variant, objects, threads=8, pairs=50_000, keep=True)
            kept = collections.Counter(map(id, run.kept))
            expected = [count + kept[id(thing)] for count, thing in zip(before, objects)]
            assert counts(objects, refbuf.refcount) == expected
            assert settled_counts(objects) == expected
            del run
        few = addresses(objects[:3 * SLOTS])
        for turn in range(20):
            in_threads(8, lambda number: countext.churn(few, 2_000, 8 * turn + number))
        others = rivals(id(objects[0]), SLOTS)
        one_too_many = [id(objects[0]), *addresses(others)]
        with Worker() as worker:
            for turn in range(150):
                worker.do(countext.touch, one_too_many[turn % len(one_too_many)], 100)
        with Worker() as worker:
            for address in addresses(objects[:200]):
                countext.stock_incref(address)
                worker.do(countext.decref, address)
                worker.do(refbuf.flush)
        assert counts(objects, refbuf.refcount) == before
        assert settled_counts(objects) == before
        sums = refbuf.stats()
        # How many depends on when the table stands aside.
        assert sums.evictions > 0, sums
        assert sums.take_ins > 0, sums
        assert sums.acquires > 100, sums
        assert sums.misses > 100, sums
        assert sums.credits == 0, sums
        """
    )


# One object too many for two places; `first` only the worker's credits hold.
LAST_REFERENCE_IN_CREDITS = """
import gc, threading, time
gc.disable()  # a collection that starts by itself settles all
import countext
from support import Tracked, Worker, handed_over, left_to_credits, rivals

log = []
worker = Worker()
first = left_to_credits(worker, lambda: Tracked(log, threading.get_ident()))
assert log == []
*used, second = rivals(first, SLOTS)
for thing in used:
    worker.do(countext.touch, id(thing), 50)

def evict():
    '''Increments until the second object has the slot; how much of the log they wrote.'''
    before = refbuf.stats().parked
    wrote = 0
    for turn in range(100):
        wrote += countext.incref_watching(id(second), 1, log)
        if refbuf.stats().parked > before:
            break
    else:
        raise AssertionError(f"the last reference was never parked: {log} {refbuf.stats()}")
    return turn + 1, wrote

references, wrote = worker.do(evict)
assert wrote == 0 and log == [], "an increment ran a finalizer"
"""


SAFE_POINTS = {
    "decrement": "worker.do(countext.decref, id(second))",
    "decrement by call": "worker.do(countext.decref_call, id(second))",
    "decrement of another object": "countext.stock_incref(id(log)); worker.do(countext.decref, id(log))",
    "flush": "worker.do(refbuf.flush)",
    "flush of all": "refbuf.flush_all()",
    "collection": "import gc; gc.collect()",
}


@pytest.mark.parametrize("safe_point", SAFE_POINTS)
def test_an_increment_parks_the_last_reference_until_a_safe_point(run_in_small_table, safe_point):
    run_in_small_table(LAST_REFERENCE_IN_CREDITS + f"{SAFE_POINTS[safe_point]}\nassert len(log) == 1\n")


def test_the_heartbeat_releases_what_is_parked(run_in_small_table):
    run_in_small_table(
        LAST_REFERENCE_IN_CREDITS
        + """
from support import wait_until
# A settler with a short period: the next one, after this one has ended.
refbuf.configure(heartbeat_ms=10)
import os
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
assert wait_until(lambda: len(log) == 1)
"""
    )


def test_what_is_parked_when_its_thread_ends_is_released(run_in_small_table):
    run_in_small_table(LAST_REFERENCE_IN_CREDITS + "worker.end()\nrefbuf.flush_all()\nassert len(log) == 1\n")


def test_the_parked_list_is_bounded_and_nothing_in_it_is_lost(run_in_small_table):
    """Increments alone: where 64 releases wait, no resident is evicted, and an
    object that finds no slot dies with its last reference."""
    run_in_small_table(
        """
        import countext
        from support import Tracked, Worker

        log, created = [], 500
        with Worker() as worker:
            for _ in range(created):
                thing = Tracked(log)
                address = id(thing)
                assert worker.do(countext.incref_watching, address, 100, log) == 0
                del thing
                countext.stock_decref(address, 100)
            assert 64 <= created - len(log) <= 64 + SLOTS
            assert refbuf.stats().parked == 64
            worker.do(refbuf.flush)
            assert len(log) == created
        """
    )


def test_objects_are_finalized_once_while_residents_are_evicted(run_in_small_table):
    run_in_small_table(
        """
        import collections
        import itertools
        import countext
        from support import Tracked, addresses, in_threads

        log, numbers = [], itertools.count()

        def drop_and_count(number):
            for _ in range(300):
                things = [Tracked(log, next(numbers)) for _ in range(8)]
                shared.extend(things)
                del things
                keep = shared[-40:]
                countext.churn(addresses(keep), 300, number)
                del keep, shared[:-60]

        shared = []
        in_threads(6, drop_and_count)
        shared.clear()
        refbuf.flush_all()
        created = next(numbers)
        assert collections.Counter(log) == dict.fromkeys(range(created), 1)
        """
    )


def test_a_finalizer_of_a_parked_object_may_count_and_evict(run_in_small_table):
    run_in_small_table(
        """
        import countext
        from support import Plain, Tracked, Worker, addresses, left_to_credits, rivals

        class Counting(Tracked):
            def __del__(self):
                countext.churn(there, 500, len(self.log))
                thing = Tracked(nested)
                countext.incref(id(thing), 5)
                countext.decref(id(thing), 5)
                super().__del__()

        others = [Plain() for _ in range(6 * SLOTS)]
        there, log, nested = addresses(others), [], []
        with Worker() as worker:
            for _ in range(50):
                address = left_to_credits(worker, lambda: Counting(log))
                for rival in rivals(address, SLOTS):
                    worker.do(countext.incref, id(rival), 100)
                    worker.do(countext.decref, id(rival), 100)
            worker.do(refbuf.flush)
        refbuf.flush_all()
        assert len(log) == len(nested) == 50
        assert refbuf.stats().parked > 0
        assert refbuf.stats().credits == 0
        """
    )
