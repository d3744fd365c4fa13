"""R3 for references without the interpreter: an object whose last reference is gone
is finalized soon, while the threads that hold its credits sleep or have ended.
Nobody flushes here."""

import contextlib
import os
import sys
import threading
import time

import pytest
import refbuf

import accountext
from support import SOON, Plain, Tracked, Worker, assert_outlives_its_references, wait_until


@pytest.fixture
def log():
    return []


@pytest.fixture
def worker():
    with Worker() as worker:
        yield worker


def left_to_credits(worker, log, name="tracked"):
    """Makes an object that only the worker's credits on its account keep alive."""
    thing = Tracked(log, name)
    account = accountext.enroll(thing)
    worker.do(accountext.incref, account)
    accountext.decref(account)
    del thing
    worker.do(accountext.decref, account)


def test_finalized_while_the_thread_with_its_credits_waits_for_a_lock(worker, log):
    assert_outlives_its_references(lambda: left_to_credits(worker, log), log)
    assert wait_until(lambda: log == ["tracked"])


def test_finalized_while_the_thread_with_its_credits_sleeps(log):
    worker = Worker()  # nobody waits for its end
    assert_outlives_its_references(lambda: left_to_credits(worker, log), log)
    worker.begin(time.sleep, 4 * SOON)
    assert wait_until(lambda: log == ["tracked"])


def test_finalized_while_the_thread_with_its_credits_is_blocked_in_read(worker, log):
    reading, writing = os.pipe()
    try:
        assert_outlives_its_references(lambda: left_to_credits(worker, log), log)
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
            left_to_credits(worker, log)

    assert_outlives_its_references(leave, log)
    assert wait_until(lambda: log == ["tracked"])
    assert wait_until(lambda: refbuf.stats().orphans == 0)


def test_finalized_after_native_threads_that_never_were_attached(log):
    for name in range(50):
        account = accountext.enroll(thing := Tracked(log, name))
        accountext.churn((account,), 100, name, 4)
        accountext.decref(account)
        del thing
    assert wait_until(lambda: sorted(log) == list(range(50)))


def test_finalized_while_another_thread_keeps_its_buffer_hot(worker, log):
    hot, stop = accountext.enroll(Plain()), threading.Event()

    def keep_hot():
        while not stop.is_set():
            accountext.touch(hot, 1_000)

    assert_outlives_its_references(lambda: left_to_credits(worker, log), log)
    worker.begin(keep_hot)
    assert wait_until(lambda: log == ["tracked"])
    stop.set()
    worker.result()
    accountext.decref(hot)


def test_finalized_where_many_threads_hold_credits(log):
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker()) for _ in range(8)]

        def leave():
            account = accountext.enroll(Tracked(log))
            for worker in workers:
                worker.do(accountext.touch, account, 50)
            accountext.decref(account)

        assert_outlives_its_references(leave, log)
        assert wait_until(lambda: log == ["tracked"])


def test_finalized_while_no_thread_is_attached_otherwise(log, worker):
    """The settler's own attached moment: everyone else is in a system call."""
    assert_outlives_its_references(lambda: left_to_credits(worker, log), log)
    worker.begin(time.sleep, 1)
    time.sleep(0.5)
    assert log == ["tracked"]
    worker.result()


def test_finalized_while_the_owner_of_the_object_sleeps(worker, log):
    """On free-threaded builds the reference that an account takes over may be one that
    the owner counted, and CPython leaves the last step of those to the owner."""
    account = worker.do(lambda: accountext.enroll(Tracked(log)))
    worker.begin(time.sleep, 4)
    accountext.decref(account)
    assert wait_until(lambda: log == ["tracked"], 3)
    worker.result()


def test_a_low_reserve_is_filled_up_before_anyone_waits_for_it(worker):
    """By the settler: the thread that drew so much never attaches for it."""
    thing = Plain()
    account = accountext.enroll(thing)
    for taken in range(60_000, 600_000, 60_000):
        worker.do(accountext.incref, account, 60_000)

        def in_reserve(taken=taken):
            return sys.getrefcount(thing) - taken - 3  # this name, the argument, the account's first

        # A quarter of it, at which it is filled up again, less what lies in tables.
        assert wait_until(lambda: in_reserve() >= 16_384 - 4_096), in_reserve()
    worker.do(accountext.decref, account, 540_001)
    assert wait_until(lambda: refbuf.stats().accounts == 0)


def test_references_go_on_to_be_lent_after_a_heartbeat(worker, log):
    """A cold account is settled, and drawn from again."""
    thing = Tracked(log)
    account = accountext.enroll(thing)
    for _ in range(5):
        worker.do(accountext.touch, account, 100)
        assert wait_until(lambda: refbuf.stats().credits == 0)
    accountext.decref(account)
    del thing
    assert wait_until(lambda: log == ["tracked"])


def test_thousands_of_enrolments_and_threads_leave_no_memory_behind():
    def turn(times):
        for number in range(times):
            accounts = tuple(accountext.enroll(thing) for thing in [Plain() for _ in range(20)])
            accountext.churn(accounts, 100, number, 4)
            for account in accounts:
                accountext.decref(account)
        assert wait_until(lambda: refbuf.stats().accounts == 0 and refbuf.stats().orphans == 0)

    turn(100)
    before = resident_bytes()
    turn(500)
    assert resident_bytes() - before < 4 << 20


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
