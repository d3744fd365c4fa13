"""R6 and R7: what the interpreter does well by itself is left to it."""

import sys

import pytest
import refbuf
from refbuf import workloads

import countext
from support import Plain, Tracked, Worker, give_credits, handed_over, rivals, wait_until

# Nobody settles meanwhile.
HEARTBEAT_OFF = """
import refbuf
refbuf.configure(heartbeat_ms=60_000)
import support
support.hold_the_heartbeat()
"""


def changes(before, after):
    """What buffers did between two calls of stats()."""
    names = ("hits", "misses", "acquires", "take_ins", "evictions", "settles", "atomics")
    return {name: getattr(after, name) - getattr(before, name) for name in names}


NOTHING = dict.fromkeys(("hits", "misses", "acquires", "take_ins", "evictions", "settles", "atomics"), 0)


def idle_stats():
    """Sums at a moment at which the settler has nothing to do."""
    refbuf.flush_all()
    return refbuf.stats()


def test_an_object_dies_at_the_decrement_of_the_thread_that_owns_it():
    log = []
    thing = Tracked(log)
    address = id(thing)
    countext.incref(address)
    del thing
    assert log == []
    countext.decref(address)
    assert log == ["tracked"]


def test_an_object_that_its_owner_drops_after_others_gave_up_their_credits_dies_at_once():
    log = []
    thing = Tracked(log)
    with Worker() as worker:
        worker.do(countext.touch, id(thing), 10)
        worker.do(refbuf.flush)
        del thing
        assert log == ["tracked"]


def test_a_foreign_object_that_is_not_in_the_table_dies_at_its_last_decrement():
    log = []

    def drop(address):
        countext.decref(address)
        return list(log)

    with Worker() as worker:
        address = handed_over(worker, lambda: Tracked(log))
        assert log == []
        assert worker.do(drop, address) == ["tracked"]


def test_a_foreign_object_dies_at_its_last_decrement_by_call():
    log = []

    def drop(address):
        countext.decref_call(address)
        return list(log)

    with Worker() as worker:
        address = handed_over(worker, lambda: Tracked(log))
        assert worker.do(drop, address) == ["tracked"]


@pytest.mark.needs_buffering
def test_prompt_deaths_do_not_come_from_the_heartbeat(run_python):
    """The same as above, in a process whose heartbeat is a minute."""
    run_python(
        """
        import countext
        from support import Tracked, Worker, handed_over

        def drop(function, address):
            function(address)
            return len(log)

        log = []
        with Worker() as worker, Worker() as other:
            for turn in range(1, 200):
                address = handed_over(worker, lambda: Tracked(log))
                by = other if turn % 2 else worker
                function = countext.decref if turn % 3 else countext.decref_call
                assert by.do(drop, function, address) == turn
            for turn in range(200, 300):
                thing = Tracked(log)
                countext.incref(id(thing))
                address = id(thing)
                del thing
                count = len(log)
                countext.decref(address)
                assert len(log) == count + 1
        """,
        first=HEARTBEAT_OFF,
    )


def test_objects_that_the_thread_owns_never_reach_its_buffer():
    thing = Plain()
    address = id(thing)
    before, count = idle_stats(), sys.getrefcount(thing)
    countext.touch(address, 1_000)
    countext.incref_call(address, 500)
    assert sys.getrefcount(thing) == count + 500
    countext.decref_call(address, 500)
    assert sys.getrefcount(thing) == count
    assert changes(before, idle_stats()) == NOTHING


def test_private_objects_take_no_atomic_operations():
    before = idle_stats()
    run = workloads.run("private", "refbuf", threads=4, pairs=20_000)
    assert run.atomics_per_1000_pairs == 0
    assert changes(before, idle_stats()) == NOTHING


@pytest.mark.needs_buffering
def test_a_shared_object_takes_hardly_any_atomic_operations():
    refbuf.configure(heartbeat_ms=1000)
    run = workloads.run("shared", "refbuf", threads=2, pairs=500_000)
    assert run.atomics_per_1000_pairs <= 1


@pytest.mark.needs_buffering
def test_a_working_set_far_larger_than_the_table_costs_what_it_costs_without_buffers():
    """Two atomic operations a pair, as stock; residents stay where they are."""
    objects = [Plain() for _ in range(100_000)]
    refbuf.configure(heartbeat_ms=1000)
    before = idle_stats()
    run = workloads.run("wide", "refbuf", objects, threads=1, pairs=200_000)
    after = refbuf.stats()
    assert run.atomics_per_1000_pairs <= 2_050
    assert after.evictions - before.evictions < run.pairs / 50
    refbuf.flush_all()


@pytest.mark.needs_buffering
def test_objects_that_share_too_few_places_do_not_evict_each_other_for_ever():
    first = Plain()
    objects = [first, *rivals(id(first))]

    def alternate():
        for _ in range(2_000):
            for thing in objects:
                countext.touch(id(thing))

    refbuf.configure(heartbeat_ms=1000)
    before = idle_stats()
    with Worker() as worker:
        worker.do(alternate)
        assert refbuf.stats().evictions - before.evictions < 100


@pytest.mark.needs_buffering
def test_an_object_that_is_wanted_gets_the_slot_of_one_that_is_not():
    first = Plain()
    second, third = rivals(id(first))
    with Worker() as worker:
        give_credits(worker, id(first))
        give_credits(worker, id(second))
        worker.do(countext.touch, id(third), 100)
        before = refbuf.stats()
        worker.do(countext.touch, id(third), 100)
        assert refbuf.stats().hits - before.hits >= 190


@pytest.mark.needs_buffering
def test_only_foreign_objects_make_a_buffer():
    def own():
        thing = Plain()
        countext.touch(id(thing), 100)
        countext.touch(id(None), 100)
        return refbuf.stats().threads

    assert wait_until(lambda: refbuf.stats().orphans == 0)
    with Worker() as worker:
        threads = refbuf.stats().threads
        assert worker.do(own) == threads
        shared = Plain()
        give_credits(worker, id(shared))
        assert refbuf.stats().threads == threads + 1
