"""Every object created is finalized, and once."""

import collections
import gc
import itertools
import weakref

import pytest
import refbuf
from refbuf import workloads

import countext
from support import Tracked, Worker, addresses, in_threads, wait_until


class Census:
    """Makes objects, and counts how often each is finalized: by __del__, and by
    a weak reference's callback."""

    def __init__(self):
        self.deleted = []
        self.called_back = []
        self._watchers = []
        self._numbers = itertools.count()

    def make(self):
        name = next(self._numbers)
        thing = Tracked(self.deleted, name)
        self._watchers.append(weakref.ref(thing, lambda _, name=name: self.called_back.append(name)))
        return thing

    def assert_each_is_finalized_once(self):
        created = next(self._numbers)
        assert created > 0

        def all_gone():
            return min(len(self.deleted), len(self.called_back)) >= created

        assert wait_until(all_gone), f"{created - len(self.deleted)} of {created} objects are left"
        refbuf.flush_all()
        gc.collect()
        once = dict.fromkeys(range(created), 1)
        assert collections.Counter(self.deleted) == once
        assert collections.Counter(self.called_back) == once


@pytest.mark.parametrize("variant", workloads.VARIANTS)
@pytest.mark.parametrize("workload", workloads.WORKLOADS)
def test_shared_objects_are_finalized_once_after_every_workload_and_variant(workload, variant):
    census = Census()
    objects = [census.make() for _ in range(1_000)]
    workloads.run(workload, variant, objects, threads=8, pairs=10_000, factory=census.make)
    del objects
    census.assert_each_is_finalized_once()


@pytest.mark.parametrize("variant", workloads.VARIANTS)
def test_objects_that_only_kept_references_hold_are_finalized_once(variant):
    census = Census()
    objects = [census.make() for _ in range(2_000)]
    run = workloads.run("random", variant, objects, threads=8, pairs=10_000, keep=True)
    del objects
    assert len(census.deleted) < 2_000
    del run
    census.assert_each_is_finalized_once()


def test_objects_whose_last_reference_is_dropped_through_refbuf_are_finalized_once():
    census = Census()

    def pass_on(_):
        """Each thread drops what it has made, and what others have made."""
        for _ in range(100):
            thing = census.make()
            address = id(thing)
            countext.incref(address, 2)
            del thing
            countext.touch(address, 5)
            countext.decref(address)
            for other in exchange[-3:]:
                countext.touch(id(other), 3)
            exchange.append(countext.new_ref(address))
            countext.decref_call(address)
            if len(exchange) > 10:
                exchange.pop(0)

    exchange = [census.make() for _ in range(10)]
    in_threads(8, pass_on)
    exchange.clear()
    census.assert_each_is_finalized_once()


def test_objects_made_in_threads_that_have_ended_are_finalized_once():
    census = Census()
    with Worker() as counting:
        made = []
        for _ in range(50):
            with Worker() as making:
                batch = making.do(lambda: [census.make() for _ in range(10)])
                counting.do(countext.churn, addresses(batch), 200, 5)
                making.do(countext.churn, addresses(batch), 200, 6)
            made += batch
            del batch
        assert census.deleted == []
        counting.do(countext.churn, addresses(made), 5_000, 7)
        del made
        census.assert_each_is_finalized_once()


def test_objects_dropped_by_many_threads_at_once_are_finalized_once():
    census = Census()
    for _ in range(20):
        objects = [census.make() for _ in range(200)]
        there = addresses(objects)
        for address in there:
            countext.stock_incref(address, 8)
        del objects

        def drop(number, there=there):
            rotated = there[25 * number :] + there[: 25 * number]
            for address in rotated:
                countext.touch(address, number % 4)
                countext.decref(address)

        in_threads(8, drop)
    census.assert_each_is_finalized_once()
