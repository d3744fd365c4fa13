"""R3: an object whose last program reference is gone is finalized soon, while
the threads that hold its credits sleep or have ended. Nobody flushes here."""

import contextlib
import os
import threading
import time
import weakref

import pytest
import refbuf

import countext
from support import (
    SOON,
    Tracked,
    Worker,
    assert_outlives_its_references,
    give_credits,
    left_to_credits,
    wait_until,
)

pytestmark = pytest.mark.needs_buffering


@pytest.fixture
def log():
    return []


@pytest.fixture
def worker():
    with Worker() as worker:
        yield worker


def test_finalized_while_the_thread_with_its_credits_waits_for_a_lock(worker, log):
    assert_outlives_its_references(lambda: left_to_credits(worker, lambda: Tracked(log)), log)
    assert wait_until(lambda: log == ["tracked"])


def test_finalized_while_the_thread_with_its_credits_sleeps(log):
    worker = Worker()  # nobody waits for its end
    assert_outlives_its_references(lambda: left_to_credits(worker, lambda: Tracked(log)), log)
    worker.begin(time.sleep, 4 * SOON)
    assert wait_until(lambda: log == ["tracked"])


def test_finalized_while_the_thread_with_its_credits_is_blocked_in_read(worker, log):
    reading, writing = os.pipe()
    try:
        assert_outlives_its_references(lambda: left_to_credits(worker, lambda: Tracked(log)), log)
        worker.begin(os.read, reading, 1)
        assert wait_until(lambda: log == ["tracked"])
    finally:
        os.write(writing, b"x")
        assert worker.result() == b"x"
        os.close(reading)
        os.close(writing)


def test_finalized_after_the_thread_with_its_credits_has_ended(log):
    def leave():
        with Worker() as worker:
            left_to_credits(worker, lambda: Tracked(log))

    assert_outlives_its_references(leave, log)
    assert wait_until(lambda: log == ["tracked"])
    assert wait_until(lambda: refbuf.stats().orphans == 0)


def test_finalized_while_another_thread_keeps_its_buffer_hot(worker, log):
    hot = Tracked([])
    stop = threading.Event()

    def keep_hot():
        while not stop.is_set():
            countext.touch(id(hot), 1_000)

    assert_outlives_its_references(lambda: left_to_credits(worker, lambda: Tracked(log)), log)
    worker.begin(keep_hot)
    assert wait_until(lambda: log == ["tracked"])
    stop.set()
    worker.result()


def test_finalized_where_many_threads_hold_credits(log):
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker()) for _ in range(8)]

        def leave():
            thing = Tracked(log)
            for worker in workers:
                give_credits(worker, id(thing))

        assert_outlives_its_references(leave, log)
        assert wait_until(lambda: log == ["tracked"])


def test_a_reference_taken_in_by_a_decrement_is_given_back(worker, log):
    def leave():
        thing = Tracked(log)
        countext.incref(id(thing))
        worker.do(countext.decref, id(thing))

    assert_outlives_its_references(leave, log)
    assert wait_until(lambda: log == ["tracked"])


def test_weak_references_are_cleared_soon(worker):
    watchers = []

    def leave():
        thing = Tracked([])
        watchers.append(weakref.ref(thing))
        worker.do(countext.touch, id(thing))

    leave()
    assert wait_until(lambda: watchers[0]() is None)


def test_the_settler_sleeps_while_no_buffer_holds_credits_and_wakes_again(worker, log):
    def beats_in_a_while():
        before = refbuf.stats().beats
        time.sleep(0.1)
        return refbuf.stats().beats - before

    # It looks once more before it sleeps.
    assert wait_until(lambda: beats_in_a_while() == 0)
    for _ in range(3):
        log.clear()
        left_to_credits(worker, lambda: Tracked(log))
        assert wait_until(lambda: log == ["tracked"])
        assert wait_until(lambda: beats_in_a_while() == 0)


def test_hot_credits_stay_while_the_heartbeat_beats(worker):
    """Only cold slots are settled: a thread that keeps counting an object keeps
    its credits."""
    thing = Tracked([])
    stop = threading.Event()
    turns = []

    def keep_hot():
        while not stop.is_set():
            countext.touch(id(thing), 100)
            turns.append(None)

    before = refbuf.stats()
    worker.begin(keep_hot)
    assert wait_until(lambda: refbuf.stats().beats >= before.beats + 20 and len(turns) > 1_000)
    stop.set()
    worker.result()
    after = refbuf.stats()
    assert after.settles - before.settles < (after.beats - before.beats) / 2


def test_a_shorter_heartbeat_holds_at_once(run_python):
    run_python(
        """
        import refbuf, countext
        from support import Tracked, Worker, hold_the_heartbeat, left_to_credits, wait_until

        log = []
        refbuf.configure(heartbeat_ms=40_000)
        hold_the_heartbeat()
        with Worker() as worker:
            left_to_credits(worker, lambda: Tracked(log))
            assert log == []
            refbuf.configure(heartbeat_ms=10)
            assert wait_until(lambda: log == ["tracked"])
        """
    )
