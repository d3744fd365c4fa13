"""The tracing collector: it starts by settling, so credits hide no garbage."""

import gc
import sys
import threading
import weakref

import pytest
import refbuf

import countext
from support import (
    INSTALLED,
    Plain,
    Tracked,
    Worker,
    addresses,
    collect,
    counts,
    give_credits,
    in_threads,
    settled_counts,
    wait_until,
)


class Node(Tracked):
    """An object that can be part of a cycle."""

    __slots__ = ("links",)

    def __init__(self, log, name="node"):
        super().__init__(log, name)
        self.links = []


def ring(log, size):
    """A cycle of nodes."""
    nodes = [Node(log, number) for number in range(size)]
    for number, node in enumerate(nodes):
        node.links.append(nodes[number - 1])
    return nodes


@pytest.fixture
def no_heartbeat_soon():
    """Whatever is settled here, the collector has settled."""
    refbuf.configure(heartbeat_ms=2_000)
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def log():
    return []


def test_a_cycle_whose_members_have_credits_is_collected(no_heartbeat_soon, log):
    with Worker() as worker:
        nodes = ring(log, 10)
        for address in addresses(nodes):
            give_credits(worker, address)
        nodes.clear()
        assert log == []
        gc.collect()
        assert sorted(log) == list(range(10))


def test_a_cycle_whose_members_have_credits_of_many_threads_is_collected(no_heartbeat_soon, log):
    workers = [Worker() for _ in range(6)]
    nodes = ring(log, 50)
    for number, worker in enumerate(workers):
        worker.do(countext.churn, addresses(nodes), 500, number)
    nodes.clear()
    workers[0].end()
    workers[1].end()
    gc.collect()
    assert sorted(log) == list(range(50))
    for worker in workers[2:]:
        worker.end()


def test_a_cycle_is_collected_by_a_thread_that_has_credits_on_it(no_heartbeat_soon, log):
    with Worker() as worker:
        nodes = ring(log, 5)
        worker.do(countext.churn, addresses(nodes), 200, 1)
        nodes.clear()
        worker.do(gc.collect)
        assert sorted(log) == list(range(5))


def test_a_cycle_that_the_program_still_references_through_refbuf_is_kept(no_heartbeat_soon, log):
    with Worker() as worker:
        nodes = ring(log, 5)
        address = id(nodes[2])
        worker.do(countext.incref, address, 2)
        nodes.clear()
        gc.collect()
        assert log == []
        worker.do(countext.decref, address, 2)
        gc.collect()
        assert sorted(log) == list(range(5))


@pytest.mark.needs_buffering
def test_the_heartbeat_makes_cycles_collectable_too(log):
    """By the time of the collection there may be no credits left; same result."""
    with Worker() as worker:
        nodes = ring(log, 5)
        worker.do(countext.churn, addresses(nodes), 200, 1)
        nodes.clear()
        assert wait_until(lambda: refbuf.stats().credits == 0)
        collect()
        assert sorted(log) == list(range(5))


@pytest.mark.needs_buffering
def test_a_collection_settles_every_buffer(no_heartbeat_soon):
    objects = [Plain() for _ in range(50)]
    before = counts(objects)
    with Worker() as one, Worker() as other:
        give_credits(one, id(objects[0]))
        one.do(countext.churn, addresses(objects), 500, 1)
        other.do(countext.churn, addresses(objects), 500, 2)
        assert refbuf.stats().credits > 0
        gc.collect()
        assert refbuf.stats().credits == 0
        assert counts(objects) == before


def test_weak_references_to_a_cycle_with_credits_are_cleared_and_called_back(no_heartbeat_soon, log):
    called = []
    with Worker() as worker:
        nodes = ring([], 5)
        watchers = [weakref.ref(node, lambda _: called.append(1)) for node in nodes]
        for address in addresses(nodes):
            worker.do(countext.touch, address, 3)
        assert all(watcher() is not None for watcher in watchers)
        nodes.clear()
        gc.collect()
        assert [watcher() for watcher in watchers] == [None] * 5
        assert called == [1] * 5


def test_a_weak_reference_revives_an_object_that_only_credits_hold(no_heartbeat_soon, log):
    """To the interpreter a credit is a reference like any other."""
    with Worker() as worker:
        thing = Tracked(log)
        watcher = weakref.ref(thing)
        worker.do(countext.touch, id(thing), 3)
        del thing
        revived = watcher()
        refbuf.flush_all()
        assert (revived is None) == bool(log)
        if revived is not None:
            assert watcher() is revived
            assert INSTALLED or sys.getrefcount(revived) == refbuf.refcount(revived)
            del revived
            refbuf.flush_all()
        assert watcher() is None
        assert log == ["tracked"]


class Phoenix:
    """An object that its finalizer, which runs once, hands to somebody else."""

    def __init__(self, saved, log, worker=None):
        self.saved = saved
        self.log = log
        self.worker = worker
        self.itself = None

    def __del__(self):
        self.log.append("finalized")
        self.saved.append(self)
        countext.incref(id(self), 3)
        countext.decref(id(self), 3)
        if self.worker is not None:
            self.worker.do(countext.touch, id(self), 5)


@pytest.mark.parametrize("in_cycle", [False, True])
@pytest.mark.parametrize("counted_elsewhere", [False, True])
def test_an_object_may_be_resurrected_by_its_finalizer(log, in_cycle, counted_elsewhere):
    saved = []
    with Worker() as worker, Worker() as other:
        thing = Phoenix(saved, log, other if counted_elsewhere else None)
        if in_cycle:
            thing.itself = thing
        watcher = weakref.ref(thing)
        worker.do(countext.touch, id(thing), 5)
        del thing
        refbuf.flush_all()
        gc.collect()
        assert log == ["finalized"]
        assert len(saved) == 1
        thing = saved.pop()
        assert thing.log is log
        thing.itself = None
        worker.do(countext.touch, id(thing), 5)
        identity = weakref.ref(thing)
        del thing
        refbuf.flush_all()
        gc.collect()
        assert identity() is None
        assert watcher() is None
        assert log == ["finalized"], "finalizers run once"


def test_a_finalizer_in_the_collector_leaves_no_credits_on_garbage(no_heartbeat_soon, log):
    """A credit from then would look like a resurrection: the collector would
    keep the cycle."""

    class Counting(Node):
        __slots__ = ()

        def __del__(self):
            for other in self.links:
                countext.incref(id(other), 4)
                countext.decref(id(other), 4)
            super().__del__()

    with Worker() as making:
        # Foreign to the thread that collects.
        nodes = making.do(lambda: [Counting(log, number) for number in range(20)])
        for number, node in enumerate(nodes):
            node.links.append(nodes[number - 1])
        watchers = [weakref.ref(node) for node in nodes]
        del node
        nodes.clear()
        del nodes
        gc.collect()
        assert sorted(log) == list(range(20))
        assert [watcher() for watcher in watchers] == [None] * 20


def test_counts_are_exact_while_many_threads_collect():
    objects = [Plain() for _ in range(200)]
    before = counts(objects)
    there = addresses(objects)

    def work(number):
        for turn in range(30):
            if number < 2:
                gc.collect()
            countext.churn(there, 2_000, 100 * number + turn)

    in_threads(8, work)
    assert counts(objects, refbuf.refcount) == before
    assert settled_counts(objects) == before


def test_cycles_are_collected_once_while_others_count(log):
    stop = threading.Event()
    objects = [Plain() for _ in range(50)]
    before = counts(objects)

    def work(number):
        if number < 3:
            while not stop.is_set():
                countext.churn(addresses(objects), 500, number)
            return
        try:
            for _ in range(20):
                nodes = ring(log, 20)
                countext.churn(addresses(nodes), 200, number)
                nodes.clear()
                gc.collect()
        finally:
            if number == 3:
                stop.set()

    in_threads(6, work)
    collect()
    assert wait_until(lambda: len(log) == 3 * 20 * 20)
    assert {log.count(number) for number in range(20)} == {3 * 20}
    assert settled_counts(objects) == before
