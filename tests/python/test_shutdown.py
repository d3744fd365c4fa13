"""The end of the process: whatever still counts then, it ends well, in silence,
and without losing a finalizer that would run without refbuf."""

import pytest
import refbuf

REPEATS = 20

SETTING = """
import atexit, gc, os, sys, threading, time
import refbuf, countext
from refbuf import workloads
from support import BUFFERED, Plain, Tracked, Worker, addresses, counts, left_to_credits

class Saying(Plain):
    '''An object that prints when it is finalized.'''
    __slots__ = ("what", "itself")
    def __init__(self, what):
        self.what = what
    def __del__(self, write=os.write):  # os may be gone by then
        write(1, f"{self.what}\\n".encode())

objects = [Plain() for _ in range(50)]
there = addresses(objects)

def count(number):
    while True:
        countext.churn(there, 500, number)

def start_daemons(function, threads=4):
    for number in range(threads):
        threading.Thread(target=function, args=(number,), daemon=True).start()
    time.sleep(0.02)
"""


@pytest.fixture
def run_ending(run_python):
    def run(code, repeats=1, **options):
        return [run_python(code, first=SETTING, **options) for _ in range(repeats)]

    return run


def test_daemon_threads_may_count_to_the_end(run_ending):
    run_ending("start_daemons(count)\n", REPEATS)


def test_daemon_threads_may_count_while_the_program_exits_with_a_status(run_ending):
    run_ending("start_daemons(count)\nsys.exit(3)\n", 3, returncode=3)


@pytest.mark.parametrize("variant", ["refbuf", "detached", "attach-per-clone", "arc", "pool"])
def test_daemon_threads_may_run_workloads_to_the_end(run_ending, variant):
    run_ending(
        f"variant = {variant!r}\n"
        """
def work(number):
    while True:
        workloads.run("random", variant, objects, threads=2, pairs=2_000, seed=number)

start_daemons(work, 2)
""",
        REPEATS // 2 if variant == "refbuf" else REPEATS // 5,
    )


def test_daemon_threads_may_make_and_drop_objects_to_the_end(run_ending):
    run_ending(
        """
        def work(number):
            while True:
                made = [Tracked([]) for _ in range(20)]
                shared[number % 4] = made
                other = shared[(number + 1) % 4]
                countext.churn(addresses(other), 200, number)
                del made, other

        shared = [[], [], [], []]
        start_daemons(work)
        """,
        REPEATS // 2,
    )


def test_daemon_threads_may_flush_to_the_end(run_ending):
    run_ending(
        """
        def work(number):
            while True:
                countext.churn(there, 200, number)
                refbuf.flush()
                refbuf.flush_all()
                refbuf.refcount(objects[number])

        start_daemons(work)
        """,
        REPEATS // 2,
    )


def test_daemon_threads_may_wait_with_credits(run_ending):
    run_ending(
        """
        def work(number):
            countext.churn(there, 500, number)
            time.sleep(60)

        start_daemons(work)
        """,
        3,
    )


def test_an_object_that_only_credits_hold_is_finalized_at_exit(run_ending):
    said = run_ending(
        """
        refbuf.configure(heartbeat_ms=60_000)
        worker = Worker()
        left_to_credits(worker, lambda: Saying("finalized"))
        """,
        3,
    )
    assert said == ["finalized\n"] * 3


def test_objects_with_credits_are_finalized_as_the_interpreter_ends(run_ending):
    """Those that modules hold, and those in cycles."""
    said = run_ending(
        """
        refbuf.configure(heartbeat_ms=60_000)
        worker = Worker()
        held, cyclic = Saying("held"), Saying("cyclic")
        cyclic.itself = cyclic
        for address in map(id, (held, cyclic)):
            worker.do(countext.touch, address, 3)
        del cyclic
        """,
        3,
    )
    assert [sorted(lines.split()) for lines in said] == [["cyclic", "held"]] * 3


def test_finalizers_at_exit_may_count_flush_and_make_objects(run_ending):
    said = run_ending(
        """
        class Busy(Saying):
            def __del__(self, churn=countext.churn, touch=countext.touch, flush=refbuf.flush,
                        flush_all=refbuf.flush_all, refcount=refbuf.refcount, objects=objects,
                        there=there, make=Plain, say=Saying.__del__, address=id):
                churn(there, 500, 1)
                thing = make()
                touch(address(thing), 5)
                flush()
                flush_all()
                assert refcount(thing) > 0
                say(self)

        worker = Worker()
        refbuf.configure(heartbeat_ms=60_000)
        left_to_credits(worker, lambda: Busy("by credits"))
        held, cyclic = Busy("held"), Busy("cyclic")
        cyclic.itself = cyclic
        del cyclic
        """,
        3,
    )
    assert [sorted(lines.split("\n")) for lines in said] == [["", "by credits", "cyclic", "held"]] * 3


def test_functions_at_exit_may_use_refbuf_before_and_after_its_own(run_python):
    code = """
    import atexit
    def last():
        use("last")
    atexit.register(last)  # before refbuf's: called after it
    import refbuf
    from support import Plain, Worker, addresses, counts, settled_counts
    import countext

    def use(when):
        before = settled_counts(objects)
        with_thread(when)
        assert settled_counts(objects) == before
        assert counts(objects, refbuf.refcount) == before
        assert refbuf.stats().credits == 0
        print(when)

    def with_thread(when):
        if when == "in between":
            worker.do(countext.churn, addresses(objects), 500, 1)
        countext.churn(addresses(objects), 500, 1)

    objects = [Plain() for _ in range(20)]
    worker = Worker()
    worker.do(countext.churn, addresses(objects), 500, 1)
    atexit.register(use, "in between")
    atexit.register(use, "first")
    """
    assert run_python(code).split("\n") == ["first", "in between", "last", ""]


@pytest.mark.skipif(refbuf.installed(), reason="run has refbuf close after the program")
@pytest.mark.needs_buffering
def test_after_exit_has_begun_nothing_is_buffered(run_python):
    code = """
    import atexit
    def last():
        worker.do(countext.incref, id(thing), 50)
        assert refbuf.stats().credits == 0
        worker.do(countext.decref, id(thing), 50)
        assert refbuf.stats().credits == 0
        print("exact" if sys.getrefcount(thing) == before else "lost")
    atexit.register(last)
    import sys
    import refbuf
    from support import Plain, Worker, give_credits
    import countext
    thing, worker = Plain(), Worker()
    before = sys.getrefcount(thing)
    give_credits(worker, id(thing))
    assert refbuf.stats().credits > 0
    """
    assert run_python(code) == "exact\n"


def test_exit_waits_for_no_settler_while_daemon_threads_count(run_ending):
    run_ending(
        """
        def exit_takes():
            started = time.monotonic()
            atexit._run_exitfuncs()
            return time.monotonic() - started

        start_daemons(count)
        took = exit_takes()
        assert took < 0.4, took
        """
    )


def test_a_finalizer_that_runs_in_the_settler_may_outlast_the_program(run_ending):
    run_ending(
        """
        class Slow(Plain):
            def __del__(self):
                started.set()
                time.sleep(30)

        if BUFFERED:
            refbuf.configure(heartbeat_ms=200)
            started = threading.Event()
            left_to_credits(Worker(), Slow)
            assert started.wait(20)
        """,
        3,
        timeout=25,
    )


def test_a_program_that_is_interrupted_ends_as_usual(run_ending):
    run_ending(
        """
        import signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        start_daemons(count)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        """,
        returncode=-2,
    )


def test_an_import_that_is_not_used_leaves_no_thread(run_python):
    run_python(
        """
        import os
        import refbuf
        # In live mode with lulls a settler looks for them from the start.
        looks = refbuf._refbuf.live_lulls() is not None
        assert len(os.listdir("/proc/self/task")) == 1 + looks
        assert refbuf.stats().threads == 0
        """
    )


IMPORT = """
import atexit, threading, time

def late():
    try:
        import refbuf
    except ImportError as error:
        print(error)
    else:
        print("imported")
"""


@pytest.mark.skipif(refbuf.installed(), reason="run has imported it")
def test_an_import_by_an_exit_handler_is_refused(run_python):
    """What it would register there is not called: credits would not be given back."""
    out = run_python("atexit.register(late)", first=IMPORT)
    assert out.startswith("refbuf cannot start while the interpreter exits: ")


@pytest.mark.skipif(refbuf.installed(), reason="run has imported it")
def test_a_thread_that_outlasts_the_main_thread_may_import_it(run_python):
    code = "threading.Thread(target=lambda: (threading.main_thread().join(0.3), late())).start()"
    assert run_python(code, first=IMPORT) == "imported\n"
