"""References that threads count without the interpreter: exact, whoever takes and
drops them, and each object finalized once. On every build."""

import collections
import gc
import sys
import threading
import time
import weakref

import pytest
import refbuf
from refbuf import workloads

import accountext
import countext
from support import (
    BUFFERED,
    Plain,
    Tracked,
    Worker,
    addresses,
    counts,
    in_threads,
    settled_counts,
    wait_until,
)

USUAL = 1 << 16


@pytest.fixture(params=[USUAL, 4, 1], ids=["usual reserve", "reserve of 4", "reserve of 1"])
def reserve(request):
    """References that accounts have in advance; with few they are dry all the time."""
    refbuf.configure(reserve=request.param)
    yield request.param
    refbuf.configure(reserve=USUAL)


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    assert wait_until(lambda: refbuf.stats().accounts == 0), refbuf.stats()


def enrolled(objects):
    """A reference through its account for each object."""
    return tuple(accountext.enroll(thing) for thing in objects)


def give_up(accounts):
    for account in accounts:
        accountext.decref(account)


def test_a_reference_through_an_account_is_one_reference(reserve):
    thing = Plain()
    before = sys.getrefcount(thing)
    account = accountext.enroll(thing)
    assert refbuf.refcount(thing) == before + 1
    assert refbuf.stats().accounts == 1
    accountext.incref(account, 5)
    assert refbuf.refcount(thing) == before + 6
    assert accountext.object(account) is thing
    accountext.decref(account, 6)
    refbuf.flush_all()
    assert refbuf.refcount(thing) == sys.getrefcount(thing) == before


def test_counts_are_exact_after_threads_that_never_were_attached(reserve):
    objects = [Plain() for _ in range(500)]
    before = counts(objects)
    accounts = enrolled(objects)
    for turn in range(3):
        accountext.churn(accounts, 20_000, turn, 8)
        assert counts(objects, refbuf.refcount) == [count + 1 for count in before]
    give_up(accounts)
    assert settled_counts(objects) == before
    assert refbuf.stats().credits == 0


def test_counts_are_exact_after_threads_that_have_let_go_of_the_interpreter(reserve):
    objects = [Plain() for _ in range(200)]
    before = counts(objects)
    accounts = enrolled(objects)

    def churn(number):
        for turn in range(10):
            accountext.churn(accounts, 2_000, 10 * number + turn)

    in_threads(8, churn)
    assert counts(objects, refbuf.refcount) == [count + 1 for count in before]
    give_up(accounts)
    assert settled_counts(objects) == before


def test_counts_are_exact_where_threads_are_attached_and_detached_by_turns(reserve):
    objects = [Plain() for _ in range(50)]
    before = counts(objects)
    accounts = enrolled(objects)

    def by_turns(number):
        for account, address in zip(accounts, addresses(objects), strict=True):
            accountext.touch_by_turns(account, 100)
            countext.touch(address, 20)
            accountext.touch(account, 100)

    in_threads(8, by_turns)
    assert counts(objects, refbuf.refcount) == [count + 1 for count in before]
    give_up(accounts)
    assert settled_counts(objects) == before


def test_counts_are_exact_where_others_settle_all_the_time(reserve):
    objects = [Plain() for _ in range(100)]
    before = counts(objects)
    accounts = enrolled(objects)

    def churn(number):
        for turn in range(60):
            if number == 0:
                refbuf.flush_all()
            elif number == 1:
                refbuf.flush()
            accountext.churn(accounts, 500, 1_000 * number + turn)

    refbuf.configure(heartbeat_ms=0.5)
    in_threads(8, churn)
    give_up(accounts)
    assert settled_counts(objects) == before


def test_references_taken_in_one_thread_may_be_dropped_in_another(reserve):
    thing = Plain()
    before = sys.getrefcount(thing)
    account = accountext.enroll(thing)
    with Worker() as maker, Worker() as dropper:
        maker.do(accountext.incref, account, 300)
        maker.do(accountext.incref_call, account, 200)
        dropper.do(accountext.decref_call, account, 250)
        dropper.do(accountext.decref, account, 150)
        assert refbuf.refcount(thing) == before + 101
    accountext.decref(account, 101)
    refbuf.flush_all()
    assert sys.getrefcount(thing) == before


def test_far_more_references_than_the_reserve_may_be_held(reserve):
    thing = Plain()
    before = sys.getrefcount(thing)
    account = accountext.enroll(thing)
    accountext.incref(account, 300_000)
    assert refbuf.refcount(thing) == before + 300_001
    accountext.decref(account, 300_000)
    # The surplus goes back while the account stays open.
    most = before + 1 + 2 * reserve + 4096
    assert wait_until(lambda: sys.getrefcount(thing) <= most), sys.getrefcount(thing)
    accountext.decref(account)
    refbuf.flush_all()
    assert sys.getrefcount(thing) == before


def test_an_object_enrolled_again_has_one_account_and_two_references(reserve):
    thing = Plain()
    before = sys.getrefcount(thing)
    first, second = enrolled([thing, thing])
    assert first == second and refbuf.stats().accounts == 1
    assert refbuf.refcount(thing) == before + 2
    accountext.decref(first)
    accountext.touch(second, 100)
    assert refbuf.refcount(thing) == before + 1
    accountext.decref(second)
    refbuf.flush_all()
    assert sys.getrefcount(thing) == before


def test_an_object_enrolled_from_many_threads_at_once(reserve):
    log = []
    thing = Tracked(log)
    before = sys.getrefcount(thing)

    address = id(thing)

    def enrol(number):
        for _ in range(200):
            account = accountext.enroll(countext.new_ref(address))
            accountext.touch(account, number)
            accountext.decref(account)

    refbuf.configure(heartbeat_ms=0.5)  # closes meanwhile
    in_threads(8, enrol)
    refbuf.flush_all()
    assert sys.getrefcount(thing) == before
    del thing
    assert wait_until(lambda: log == ["tracked"])


def test_a_withdrawn_reference_is_an_ordinary_one(reserve):
    log = []
    account = accountext.enroll(thing := Tracked(log))
    accountext.incref(account)
    before = refbuf.refcount(thing)
    same = accountext.withdraw(account)
    assert id(same) == id(thing)
    assert refbuf.refcount(thing) == before
    accountext.decref(account)
    del thing
    refbuf.flush_all()
    assert log == []
    del same
    assert wait_until(lambda: log == ["tracked"])


def test_release_finalizes_at_once(reserve):
    """As a drop by the owner does: nobody waits for a heartbeat."""
    refbuf.configure(heartbeat_ms=60_000)
    log, late = [], []
    for name in range(20):
        account = accountext.enroll(thing := Tracked(log, name))
        accountext.touch(account, 100)  # this thread has credits
        del thing
        assert len(log) == name
        accountext.release(account)
        if len(log) == name:
            # The settler may be about to do it: called for a refill, or in its last beat from
            # before the heartbeat was changed.
            late.append(name)
            wait_until(lambda name=name: len(log) > name)
        assert log[-1:] == [name]
    assert reserve < USUAL or len(late) <= 1, late


def test_release_leaves_references_of_others(reserve):
    log = []
    account = accountext.enroll(thing := Tracked(log))
    del thing
    with Worker() as worker:
        worker.do(accountext.incref, account)
        accountext.release(account)
        refbuf.flush_all()
        assert log == [] and accountext.object(account).name == "tracked"
        worker.do(accountext.release, account)
    assert wait_until(lambda: log == ["tracked"])


def test_every_object_is_finalized_once_whoever_drops_it(reserve):
    deleted, called_back, watchers = [], [], []
    for turn in range(10):
        things = [Tracked(deleted, (turn, name)) for name in range(100)]
        for thing in things:
            watchers.append(weakref.ref(thing, lambda _, name=thing.name: called_back.append(name)))
        accounts = enrolled(things)
        del thing, things

        def drop(number, accounts=accounts):
            accountext.churn(accounts, 2_000, number)
            give_up(accounts[25 * number : 25 * (number + 1)])

        for account in accounts:
            accountext.incref(account)  # keeps all while others churn
        in_threads(4, drop)
        assert not any(name[0] == turn for name in deleted)
        give_up(accounts)
    names = collections.Counter((turn, name) for turn in range(10) for name in range(100))
    assert wait_until(lambda: len(deleted) >= 1_000 and len(called_back) >= 1_000)
    refbuf.flush_all()
    assert collections.Counter(deleted) == names
    assert collections.Counter(called_back) == names


def test_immortal_objects_are_not_counted(reserve):
    before = sys.getrefcount(None)
    accounts = enrolled([None] * 10)
    accountext.churn(accounts, 10_000, 1, 4)
    if sys.version_info >= (3, 12):
        assert refbuf.refcount(None) == before
    assert accountext.object(accounts[0]) is None
    give_up(accounts)
    refbuf.flush_all()
    if sys.version_info >= (3, 12):
        assert sys.getrefcount(None) == before


def test_refcount_never_misses_a_reference_while_others_count(reserve):
    objects = [Plain() for _ in range(10)]
    accounts = enrolled(objects)
    least = min(counts(objects, refbuf.refcount))
    done = []

    def churn(number):
        if number > 0:
            while not done:
                accountext.churn(accounts, 500, number)
            return
        try:
            for _ in range(300):
                assert min(counts(objects, refbuf.refcount)) >= least
        finally:
            done.append(True)

    in_threads(4, churn)
    give_up(accounts)


@pytest.mark.parametrize("threads", [0, 4], ids=["this thread", "native threads"])
def test_every_operation_is_accounted_for(threads):
    objects = [Plain() for _ in range(3_000)]
    accounts = enrolled(objects)
    accountext.churn(accounts, 1, 1, threads)  # this thread has a buffer now
    before = refbuf.stats()
    accountext.churn(accounts, 50_000, 1, threads)
    after = refbuf.stats()
    done, shares = after.operations - before.operations, max(1, threads)
    # What was still held at the end is dropped besides.
    assert 50_000 * shares <= done <= (50_000 + 512) * shares
    give_up(accounts)
    refbuf.flush_all()
    assert refbuf.stats().credits == 0


def test_a_finalizer_may_do_whatever_it_likes(reserve):
    """The settler runs it, without a lock of ours."""
    log, lock, others = [], threading.RLock(), [Plain() for _ in range(20)]
    before = counts(others)

    class Busy(Tracked):
        __slots__ = ()

        def __del__(self):
            with lock:
                accounts = enrolled(others)
                accountext.churn(accounts, 500, self.name)
                give_up(accounts)
                refbuf.flush_all()
                refbuf.refcount(others[0])
                thread = threading.Thread(target=countext.churn, args=(addresses(others), 500, self.name))
                thread.start()
                thread.join()
            super().__del__()
            raise ValueError("which is ignored")

    ignored = []
    hook, sys.unraisablehook = sys.unraisablehook, ignored.append
    try:
        for name in range(20):
            account = accountext.enroll(thing := Busy(log, name))
            accountext.touch(account, 10)
            del thing
            accountext.decref(account)
        assert wait_until(lambda: sorted(log) == list(range(20))), log
        assert wait_until(lambda: len(ignored) == 20)
    finally:
        sys.unraisablehook = hook
        ignored.clear()
    assert wait_until(lambda: settled_counts(others) == before)


def test_an_object_may_be_enrolled_by_its_own_finalizer(reserve):
    """It is alive again, until that reference is gone."""
    kept, log = [], []

    class Phoenix(Tracked):
        __slots__ = ()

        def __del__(self):
            kept.append(accountext.enroll(self))
            super().__del__()

    account = accountext.enroll(thing := Phoenix(log))
    watcher = weakref.ref(thing)
    del thing
    accountext.decref(account)
    assert wait_until(lambda: log == ["tracked"])
    assert accountext.object(kept[0]).name == "tracked"
    gone = weakref.ref(accountext.object(kept[0]))
    accountext.churn(tuple(kept), 1_000, 1, 4)
    accountext.decref(kept.pop())
    assert wait_until(lambda: gone() is None)
    assert log == ["tracked"] and watcher() is None


def test_a_full_collection_closes_accounts_first():
    """So what nobody refers to is garbage at once, also with credits around."""
    refbuf.configure(heartbeat_ms=60_000)
    log = []
    for name in range(10):
        cycle = [Tracked(log, name)]
        cycle.append(cycle)
        account = accountext.enroll(cycle)
        accountext.churn((account,), 100, name, 2)
        accountext.touch(account, 50)
        del cycle
        gc.collect()
        assert name not in log
        accountext.decref(account)
        gc.collect()
        gc.collect()
        assert name in log


def test_what_is_enrolled_is_not_garbage(reserve):
    log = []
    cycle = [Tracked(log)]
    cycle.append(cycle)
    account = accountext.enroll(cycle)
    del cycle
    for _ in range(5):
        gc.collect()
    assert log == [] and accountext.object(account)[0].name == "tracked"
    accountext.decref(account)
    assert wait_until(lambda: gc.collect() or log == ["tracked"])


def test_the_last_reference_dropped_while_the_collector_runs(reserve):
    log, stop = [], threading.Event()

    def collect():
        while not stop.is_set():
            gc.collect()
            time.sleep(0.001)  # on free-threaded builds nobody else gets to run without

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for name in range(200):
            account = accountext.enroll(thing := Tracked(log, name))
            accountext.churn((account,), 200, name, 2)
            del thing
            accountext.decref(account)
    finally:
        stop.set()
        collector.join()
    assert wait_until(lambda: sorted(log) == list(range(200)))


@pytest.mark.skipif(BUFFERED, reason="there is no GIL to be held")
def test_a_dry_reserve_is_filled_with_the_gil_held_also_where_pyo3_takes_it_for_held():
    """A worker that PyO3 has attached calls C code which lets go of the GIL, and finds
    the reserve dry. Meanwhile a thread that never gives up the GIL watches the count."""
    refbuf.configure(reserve=1)
    thing = Plain()
    account = accountext.enroll(thing)
    refbuf.configure(reserve=USUAL)
    begun, changes = threading.Event(), []

    def churn():
        begun.set()
        accountext.churn((account,), 300_000, 1)
        return Plain()

    def watch():
        begun.wait(60)
        for _ in range(20):
            time.sleep(0.001)  # lets the other one on
            first = sys.getrefcount(thing)
            changes.extend(1 for _ in range(50_000) if sys.getrefcount(thing) != first)

    watcher = threading.Thread(target=watch)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    try:
        watcher.start()
        workloads.run("private", "stock", [None], threads=1, pairs=1, factory=churn)
        watcher.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(changes) == 0  # not compared: there may be many
    accountext.decref(account)


def test_enrolling_may_come_back_to_itself(run_python):
    """The first enrolment runs Python code, which may do anything."""
    run_python(
        """
        import sys
        import refbuf, accountext

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "gc":
                    again.append(accountext.enroll([]))

        again = []
        sys.modules.pop("gc", None)
        sys.meta_path.insert(0, Finder())
        account = accountext.enroll([])
        assert len(again) == 1, again
        for each in account, *again:
            accountext.release(each)
        refbuf.flush_all()
        assert refbuf.stats().accounts == 0
        """
    )


def test_configure_after_first_use_is_a_runtime_error_but_the_reserve_may_change(run_python):
    run_python(
        """
        import refbuf, accountext
        from support import Plain

        refbuf.configure(account_slots=16, reserve=8)
        refbuf.configure(account_slots=32)
        assert refbuf.stats().account_slots == 32
        thing = Plain()
        account = accountext.enroll(thing)
        accountext.touch(account, 10)
        try:
            refbuf.configure(account_slots=64, reserve=100)
        except RuntimeError as error:
            assert "configure" in str(error), error
        else:
            raise AssertionError("it was accepted")
        assert refbuf.stats().account_slots == 32
        refbuf.configure(reserve=100)
        other = Plain()
        before = sys.getrefcount(other)
        assert accountext.enroll(other)
        assert sys.getrefcount(other) == before + 101
        """,
        first="import sys\n",
    )
