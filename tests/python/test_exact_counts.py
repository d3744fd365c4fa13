"""The counting equation: counts are exact, whoever counted and however."""

import collections
import random

import pytest
import refbuf
from refbuf import workloads

import countext
import countext_too
from support import (
    BUFFERED,
    Plain,
    Worker,
    addresses,
    at_once,
    counts,
    give_credits,
    in_threads,
    settled_counts,
)

THREADS = 8


def expected_after(before, objects, kept):
    """The counts before, and one more for each reference kept."""
    more = collections.Counter(map(id, kept))
    return [count + more[id(thing)] for count, thing in zip(before, objects, strict=True)]


@pytest.mark.parametrize("variant", workloads.VARIANTS)
def test_counts_are_exact_after_8_threads_of_random_operations_over_10000_objects(variant):
    objects = [Plain() for _ in range(10_000)]
    before = counts(objects)
    run = workloads.run("random", variant, objects, threads=THREADS, pairs=100_000, seed=7, keep=True)
    assert run.pairs == THREADS * 100_000
    kept = run.kept
    assert len(kept) > THREADS
    expected = expected_after(before, objects, kept)
    assert at_once(lambda: counts(objects, refbuf.refcount) == expected)
    assert settled_counts(objects) == expected
    del run, kept
    assert at_once(lambda: counts(objects) == before)


@pytest.mark.parametrize("variant", workloads.VARIANTS)
@pytest.mark.parametrize("workload", workloads.WORKLOADS)
def test_counts_are_exact_after_every_workload_and_variant(workload, variant):
    objects = [Plain() for _ in range(2_000)]
    before = counts(objects)
    run = workloads.run(workload, variant, objects, threads=THREADS, pairs=50_000, seed=3)
    assert run.pairs >= THREADS * 50_000
    assert at_once(lambda: counts(objects, refbuf.refcount) == before)
    assert settled_counts(objects) == before


@pytest.mark.counts_alone
@pytest.mark.needs_buffering
def test_counts_are_exact_while_buffers_hold_credits():
    objects = [Plain() for _ in range(50)]
    before = counts(objects)
    refbuf.configure(heartbeat_ms=1000)
    with Worker() as worker:
        give_credits(worker, id(objects[0]))
        worker.do(countext.churn, addresses(objects), 1_000, 1)
        assert refbuf.stats().credits > 0
        assert sum(counts(objects)) == sum(before) + refbuf.stats().credits
        assert counts(objects, refbuf.refcount) == before
        assert settled_counts(objects) == before


def test_counts_are_exact_after_python_threads_of_two_extensions():
    objects = [Plain() for _ in range(500)]
    before = counts(objects)
    there = addresses(objects)

    def churn(number):
        for turn in range(40):
            extension = (countext, countext_too)[turn % 2]
            extension.churn(there, 2_000, 100 * number + turn)
            # References that one extension makes, the other or nobody's drops.
            mine = [countext.new_ref(address) for address in random.choices(there, k=20)]
            for address in map(id, mine):
                countext.incref_call(address)
                countext_too.decref(address)

    in_threads(THREADS, churn)
    assert counts(objects, refbuf.refcount) == before
    assert settled_counts(objects) == before


def test_counts_are_exact_where_others_settle_all_the_time():
    objects = [Plain() for _ in range(300)]
    before = counts(objects)
    there = addresses(objects)

    def churn(number):
        for turn in range(150):
            if number == 0:
                refbuf.flush_all()
            elif number == 1:
                refbuf.flush()
            countext.churn(there, 1_000, 1_000 * number + turn)

    refbuf.configure(heartbeat_ms=0.5)
    in_threads(THREADS, churn)
    assert counts(objects, refbuf.refcount) == before
    assert settled_counts(objects) == before


def test_references_made_by_refbuf_may_be_dropped_by_anyone():
    thing = Plain()
    address = id(thing)
    before = counts([thing])
    with Worker() as maker, Worker() as dropper:
        maker.do(countext.incref, address, 5_000)
        dropper.do(countext.stock_decref, address, 2_500)
        dropper.do(countext.decref_call, address, 2_000)
        countext.decref(address, 500)
        assert counts([thing], refbuf.refcount) == before
    assert settled_counts([thing]) == before


def test_references_made_by_anyone_may_be_dropped_through_refbuf():
    thing = Plain()
    address = id(thing)
    before = counts([thing])
    with Worker() as maker, Worker() as dropper:
        countext.stock_incref(address, 1_000)
        maker.do(countext.stock_incref, address, 1_000)
        dropper.do(countext.decref, address, 700)
        dropper.do(countext.decref_call, address, 1_300)
    assert settled_counts([thing]) == before
    assert counts([thing], refbuf.refcount) == before


@pytest.mark.needs_buffering
def test_a_slot_that_is_full_gives_credits_back():
    thing = Plain()
    before = counts([thing])
    references = 9_000_000  # a slot holds 2 ** 23
    countext.stock_incref(id(thing), references)
    with Worker() as worker:
        worker.do(countext.decref, id(thing), references)
    assert settled_counts([thing]) == before


def test_refcount_is_exact_while_the_heartbeat_settles():
    objects = [Plain() for _ in range(2_000)]
    before = counts(objects)
    refbuf.configure(heartbeat_ms=1)
    with Worker() as worker:
        for turn in range(40):
            worker.do(countext.churn, addresses(objects), 4_000, turn)
            assert counts(objects, refbuf.refcount) == before


def test_refcount_never_misses_a_reference_while_others_count():
    objects = [Plain() for _ in range(20)]
    least = min(counts(objects))
    done = []

    def churn(number):
        if number > 0:
            while not done:
                countext.churn(addresses(objects), 500, number)
            return
        try:
            for _ in range(500):
                assert min(counts(objects, refbuf.refcount)) >= least
        finally:
            done.append(True)

    in_threads(4, churn)


@pytest.mark.counts_alone
def test_every_operation_is_accounted_for():
    objects = [Plain() for _ in range(3_000)]
    before = refbuf.stats()
    run = workloads.run("random", "refbuf", objects, threads=4, pairs=20_000)
    after = refbuf.stats()
    expected = 2 * run.pairs if BUFFERED else 0
    # What was still held at the end is dropped besides, as part of the run.
    done = after.operations - before.operations
    assert expected <= done <= expected + 4 * 4096 * BUFFERED
    refbuf.flush_all()
    assert refbuf.stats().credits == 0
