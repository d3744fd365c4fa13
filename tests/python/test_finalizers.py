"""A released reference may run any code: whatever a finalizer does, wherever it
runs, nothing hangs, and no count is lost."""

import contextlib
import gc
import threading

import pytest
import refbuf
from refbuf import workloads

import countext
from support import (
    Plain,
    Tracked,
    Worker,
    addresses,
    assert_child_succeeds,
    at_once,
    counts,
    handed_over,
    in_child,
    in_threads,
    left_to_credits,
    settled_counts,
    wait_until,
)

LOCK = threading.Lock()


def take_a_lock(_objects):
    with LOCK:
        pass


def flush(_objects):
    refbuf.flush()


def flush_all(_objects):
    refbuf.flush_all()
    countext.flush_all()


def collect_garbage(_objects):
    gc.collect()


def count(objects):
    countext.churn(addresses(objects), 500, 1)


def make_and_drop_shared_objects(objects):
    made = [Plain() for _ in range(50)]
    workloads.run("random", "refbuf", made + objects, threads=2, pairs=200)


def start_threads(objects):
    in_threads(2, lambda number: countext.churn(addresses(objects), 500, number))


def leave_an_object_to_credits(objects):
    """Garbage that comes into being while garbage is released."""
    with Worker() as worker:
        left_to_credits(worker, Plain)


def read_the_stats(objects):
    assert refbuf.refcount(objects[0]) > 0
    assert refbuf.stats().threads >= 0


def fork(objects):
    def child():
        countext.churn(addresses(objects), 500, 1)
        refbuf.flush_all()

    assert_child_succeeds(in_child(child))


DOINGS = (
    take_a_lock,
    flush,
    flush_all,
    collect_garbage,
    count,
    make_and_drop_shared_objects,
    start_threads,
    leave_an_object_to_credits,
    read_the_stats,
    fork,
)


class Doing(Tracked):
    """An object whose finalizer does something."""

    __slots__ = ("doing", "errors", "itself", "objects")

    def __init__(self, log, doing, objects, errors):
        super().__init__(log, doing.__name__)
        self.doing = doing
        self.objects = objects
        self.errors = errors

    def __del__(self):
        try:
            self.doing(self.objects)
        except BaseException as error:
            self.errors.append(error)
        super().__del__()


def in_a_decrement(make):
    with Worker() as worker:
        worker.do(countext.decref, handed_over(worker, make))


def in_a_flush(make):
    with Worker() as worker:
        left_to_credits(worker, make)
        worker.do(refbuf.flush)


def in_a_flush_of_all(make):
    with Worker() as worker:
        left_to_credits(worker, make)
        refbuf.flush_all()


def in_the_settler(make):
    with Worker() as worker:
        left_to_credits(worker, make)


def at_the_end_of_a_thread(make):
    with Worker() as worker:
        left_to_credits(worker, make)


def when_the_collector_starts(make):
    with Worker() as worker:
        left_to_credits(worker, make)
        gc.collect()


def in_the_collector(make):
    with Worker() as worker:
        thing = make()
        thing.itself = thing
        worker.do(countext.touch, id(thing), 3)
        del thing
        gc.collect()


MOMENTS = (
    in_a_decrement,
    in_a_flush,
    in_a_flush_of_all,
    in_the_settler,
    at_the_end_of_a_thread,
    when_the_collector_starts,
    in_the_collector,
)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("doing", DOINGS, ids=lambda doing: doing.__name__)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_finalizer_may(moment, doing):
    log, errors = [], []
    objects = [Plain() for _ in range(20)]
    before = counts(objects)
    for _ in range(3):
        moment(lambda: Doing(log, doing, objects, errors))
    assert wait_until(lambda: len(log) == 3, 20)
    assert errors == []
    assert settled_counts(objects) == before
    assert log == [doing.__name__] * 3


@contextlib.contextmanager
def catching_unraisable(monkeypatch):
    caught = []
    with monkeypatch.context() as patch:
        patch.setattr("sys.unraisablehook", lambda what: caught.append(str(what.exc_value)))
        yield caught


class Raising(Tracked):
    __slots__ = ("itself",)

    def __del__(self):
        super().__del__()
        raise RuntimeError("raised in a finalizer")


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_finalizer_may_raise(moment, monkeypatch):
    """The interpreter reports it, and what was going on goes on."""
    log = []
    with catching_unraisable(monkeypatch) as caught:
        for _ in range(3):
            moment(lambda: Raising(log))
        assert wait_until(lambda: len(log) == 3)
        assert wait_until(lambda: len(caught) == 3)
    assert caught == ["raised in a finalizer"] * 3
    thing = Plain()
    with Worker() as worker:
        worker.do(countext.touch, id(thing))
    assert wait_until(lambda: refbuf.stats().credits == 0)


def test_a_pending_exception_survives_a_decrement_that_runs_a_finalizer():
    log = []

    def drop_while_handling(address):
        try:
            raise KeyError("handled")
        except KeyError as error:
            countext.decref(address)
            return error.args

    with Worker() as worker:
        address = handed_over(worker, lambda: Tracked(log))
        assert worker.do(drop_while_handling, address) == ("handled",)
    assert at_once(lambda: log == ["tracked"])


@pytest.mark.needs_buffering
def test_a_finalizer_that_waits_holds_up_nobody_else():
    """One finalizer in the settler waits for a lock; other threads count, flush
    and collect meanwhile, and the rest is released."""
    log, waiting, objects = [], threading.Event(), [Plain() for _ in range(20)]
    before = counts(objects)

    class Waiting(Tracked):
        def __del__(self):
            waiting.set()
            with LOCK:
                super().__del__()

    with LOCK, Worker() as worker:
        left_to_credits(worker, lambda: Waiting(log, "waited"))
        assert waiting.wait(20)
        in_threads(4, lambda number: countext.churn(addresses(objects), 2_000, number))
        refbuf.flush_all()
        gc.collect()
        left_to_credits(worker, lambda: Tracked(log, "another"))
        refbuf.flush_all()
        assert log == ["another"]
        assert counts(objects) == before
    assert wait_until(lambda: log == ["another", "waited"])


def test_many_threads_drop_objects_whose_finalizers_flush_and_count():
    log, errors = [], []
    objects = [Plain() for _ in range(50)]
    before = counts(objects)
    doings = (flush, flush_all, count, take_a_lock, read_the_stats)

    def work(number):
        for turn in range(40):
            thing = Doing(log, doings[(number + turn) % len(doings)], objects, errors)
            exchange.append(thing)
            del thing
            countext.churn(addresses(objects), 100, turn)
            if len(exchange) > 5:
                other = exchange.pop(0)
                countext.touch(id(other), 3)
                del other

    exchange = []
    in_threads(8, work)
    exchange.clear()
    assert wait_until(lambda: len(log) == 8 * 40, 30)
    assert errors == []
    assert settled_counts(objects) == before


def test_a_chain_of_ten_thousand_finalizers_does_not_overflow_the_stack(run_python):
    run_python(
        """
        from support import Tracked, Worker, left_to_credits, wait_until

        class Link(Tracked):
            __slots__ = ("next",)

        def chain():
            first = None
            for _ in range(10_000):
                link = Link(log)
                link.next = first
                first = link
            return first

        log = []
        with Worker() as worker:
            left_to_credits(worker, chain)
            assert wait_until(lambda: len(log) == 10_000)
        """
    )


@pytest.mark.parametrize("where", ["refbuf.flush_all()", "worker.do(refbuf.flush)", "time.sleep(60)"])
def test_a_finalizer_may_end_the_process(run_python, where):
    run_python(
        f"""
        import os, time
        import refbuf, countext
        from support import Plain, Worker, left_to_credits

        class Ending(Plain):
            def __del__(self):
                os._exit(7)

        worker = Worker()
        left_to_credits(worker, Ending)
        {where}
        """,
        returncode=7,
    )
