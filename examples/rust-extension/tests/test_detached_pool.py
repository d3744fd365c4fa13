"""Counts are exact, and everything is finalized once, whoever cloned and dropped.

Each extension has buffers of its own, so only this one's are asked here.
"""

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time

import detached_pool as pool
import pytest

SOON = 15.0


class Thing:
    """Finalized into a log."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def __del__(self):
        self.log.append(self.name)


def wait_until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


@pytest.fixture(params=[1 << 16, 4], ids=["usual reserve", "reserve of 4"])
def reserve(request):
    pool.set_reserve(request.param)
    yield request.param
    pool.set_reserve(1 << 16)


def test_a_search_returns_the_objects_themselves(reserve):
    objects = [Thing([], number) for number in range(200)]
    index = pool.Index(objects)
    found = index.search(list(range(50)), 5)
    assert len(found) == 50 and any(found)
    for matches in found:
        assert len(matches) <= 5
        assert all(objects[match.name] is match for match in matches)


def test_counts_are_exact_when_all_is_over(reserve):
    log = []
    objects = [Thing(log, number) for number in range(100)]
    before = [sys.getrefcount(thing) for thing in objects]
    index = pool.Index(objects)
    for _ in range(5):
        assert index.churn(16, 20) > 0
        results = index.search(list(range(100)), 10)
    other = index.copied()
    del results, index, other
    pool.flush_all()
    assert [sys.getrefcount(thing) for thing in objects] == before
    assert pool.credits() == 0 and log == []
    del objects
    gc.collect()
    assert sorted(log) == list(range(100))


def test_accounting_is_exact_with_far_more_objects_than_slots():
    """Each clone and each drop is counted once, also while the table stands aside."""
    index = pool.Index([Thing([], number) for number in range(2_000)])
    index.churn(64, 20)  # all threads have buffers now
    before = pool.operations()
    made = index.churn(4, 100)
    assert pool.operations() - before == 2 * made


def test_the_last_reference_dropped_by_threads_without_the_interpreter(reserve):
    log = []
    for name in range(30):
        holder = pool.Holder(Thing(log, name))
        assert holder.hand_around(4, 50) == 200
        del holder
    # Without a flush: the settler's work.
    assert wait_until(lambda: sorted(log) == list(range(30))), log


def test_one_object_enrolled_from_many_threads_at_once(reserve):
    log = []
    thing = Thing(log, "shared")
    before = sys.getrefcount(thing)
    barrier = threading.Barrier(8)

    def enrol():
        barrier.wait()
        for _ in range(20):
            first, second = pool.Holder(thing), pool.Holder(thing)
            first.hand_around(2, 10)
            second.hand_around(2, 10)

    threads = [threading.Thread(target=enrol) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.flush_all()
    assert wait_until(lambda: sys.getrefcount(thing) == before)
    assert log == []


@pytest.fixture(scope="module")
def other():
    """refbuf's own module, by its functions for C: it knows nothing of this extension's accounts."""
    native = pytest.importorskip("refbuf._refbuf")
    attached, detached = ctypes.PyDLL(native.__file__), ctypes.CDLL(native.__file__)
    attached.RefBuf_Enroll.argtypes = [ctypes.py_object]
    attached.RefBuf_Enroll.restype = ctypes.c_void_p
    for function in (detached.RefBuf_AccountIncRef, detached.RefBuf_AccountDecRef):
        function.argtypes, function.restype = [ctypes.c_void_p], None
    return attached.RefBuf_Enroll, detached.RefBuf_AccountIncRef, detached.RefBuf_AccountDecRef


@pytest.mark.parametrize("last", ["ours", "the other's", "Python's"])
def test_an_object_may_have_accounts_of_two_modules(last, other, reserve):
    enroll, take, drop = other
    log = []
    thing = Thing(log, "shared")
    before = sys.getrefcount(thing)
    account, holder = enroll(thing), pool.Holder(thing)

    def count():
        for _ in range(500):
            take(account)
            drop(account)

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert holder.hand_around(2, 500) == 1_000
    for thread in threads:
        thread.join()

    if last == "Python's":
        drop(account)
        del holder
        # Both have given back what they had, and no more.
        assert wait_until(lambda: sys.getrefcount(thing) == before)
        assert log == []
        del thing
    elif last == "ours":
        del thing
        drop(account)
        time.sleep(0.1)
        assert log == [] and holder.item.name == "shared"
        del holder
    else:
        del thing, holder
        time.sleep(0.1)
        assert log == []
        drop(account)
    assert wait_until(lambda: log)
    time.sleep(0.05)
    assert log == ["shared"]


def test_a_field_may_be_read_and_set(reserve):
    log = []
    holder = pool.Holder(Thing(log, "first"))
    assert holder.item.name == "first"
    assert repr(holder) == f"Holder(Ref({id(holder.item):#x}))"
    holder.item = Thing(log, "second")
    assert wait_until(lambda: log == ["first"])
    assert holder.item is holder.item and holder.item.name == "second"
    del holder
    assert wait_until(lambda: log == ["first", "second"])


def test_immortal_objects_may_be_enrolled(reserve):
    before = sys.getrefcount(None)
    holders = [pool.Holder(None) for _ in range(10)]
    assert all(holder.hand_around(2, 100) == 200 for holder in holders)
    del holders
    pool.flush_all()
    if sys.version_info >= (3, 12):
        assert sys.getrefcount(None) == before
    assert pool.Holder(None).item is None


def test_the_collector_may_run_meanwhile(reserve):
    log, stop = [], threading.Event()

    def collect():
        while not stop.is_set():
            gc.collect()
            # On free-threaded builds nobody else gets to run without.
            time.sleep(0.002)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for name in range(50):
            # In a cycle, that only the collector ends.
            cycle = [pool.Holder(Thing(log, name))]
            cycle.append(cycle)
            cycle[0].hand_around(2, 20)
            del cycle
    finally:
        stop.set()
        collector.join()
    gc.collect()
    assert wait_until(lambda: sorted(log) == list(range(50)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_sides_of_a_fork_go_on(reserve):
    log = []
    holder = pool.Holder(Thing(log, "forked"))
    holder.hand_around(4, 50)
    child = os.fork()
    works = holder.hand_around(1, 50) == 50
    del holder
    works = wait_until(lambda: log == ["forked"]) and works
    if child == 0:
        os._exit(0 if works else 1)
    assert works
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("busy", ["", "holder.churn_for_ever(0.2)\n" * 3], ids=["idle", "busy"])
def test_references_may_outlive_the_interpreter(reserve, busy):
    """Cloned and dropped by threads that never were attached, until the process ends."""
    code = f"""
import atexit, sys, time
import detached_pool as pool
pool.set_reserve({reserve})
holder = pool.Holder(object())
kept = pool.Index([object() for _ in range(10)])
holder.hand_around(4, 100)
{busy}
time.sleep(0.05)
sys.modules["kept for ever"] = kept
atexit.register(lambda: holder.hand_around(2, 10))
atexit.register(time.sleep, 0.3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
