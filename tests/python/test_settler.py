"""The settler's thread: finalizers run there as in any other, and what the program does with its
own threads is nobody else's business. Each test in a process of its own."""

import os
import sys

import pytest

pytestmark = pytest.mark.needs_buffering

FIRST = """
import os, signal, sys, threading, time
import refbuf, countext
from support import Plain, Worker, left_to_credits, wait_until

class Ending(Plain):
    '''Calls a function when it is finalized.'''
    __slots__ = ("function",)
    def __init__(self, function):
        self.function = function
    def __del__(self):
        self.function()

def settlers():
    tasks = [f"/proc/self/task/{task}" for task in os.listdir("/proc/self/task")]
    return [task for task in tasks if open(f"{task}/comm").read().startswith("refbuf-settler")]
"""


@pytest.fixture
def run_settling(run_python):
    def run(code, **options):
        return run_python(code, first=FIRST, **options)

    return run


@pytest.mark.parametrize("levels", [150, 100_000], ids=["deep", "too deep"])
def test_a_finalizer_has_the_stack_of_pythons_threads(run_settling, levels):
    """Through C code, which takes much of it; CPython's own limit comes first."""
    run_settling(f"""
    sys.setrecursionlimit(100_000 if {levels} < 1000 else 1000)
    results = []
    def descend(level):
        if level:
            sorted([level - 1], key=descend)
        return level
    def fall():
        try:
            descend({levels})
            results.append("arrived")
        except RecursionError:
            results.append("stopped")
        results.append(threading.get_ident())
    with Worker() as worker:
        left_to_credits(worker, lambda: Ending(fall))
        assert wait_until(lambda: len(results) == 2)
    assert results[0] == ("arrived" if {levels} < 1000 else "stopped")
    assert results[1] not in (worker.thread.ident, threading.get_ident())
    """)


def test_a_signal_that_the_program_has_blocked_does_not_come_to_it(run_settling):
    run_settling("""
    with Worker() as worker:
        left_to_credits(worker, Plain)
        assert wait_until(lambda: settlers())
        worker.do(signal.pthread_sigmask, signal.SIG_BLOCK, {signal.SIGUSR1})
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1
    """)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_it_is_scheduled_as_the_first_thread_whoever_has_started_it(run_settling):
    run_settling("""
    def be_special():
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    usual = os.sched_getaffinity(0)
    assert len(usual) > 1 and not settlers()
    with Worker() as worker:
        worker.do(be_special)
        left_to_credits(worker, Plain)
        assert wait_until(lambda: settlers())
        settler = int(settlers()[0].rpartition("/")[2])
        assert wait_until(lambda: os.sched_getaffinity(settler) == usual)
    """)


def test_an_object_that_is_dead_at_a_fork_is_finalized_in_the_parent_alone(run_settling):
    out = run_settling("""
    refbuf.configure(heartbeat_ms=300)
    with Worker() as worker:
        for turn in range(5):
            made = os.getpid()
            left_to_credits(worker, lambda: Ending(lambda: os.write(1, f"{os.getpid() == made} ".encode())))
            child = os.fork()
            if child == 0:
                time.sleep(0.7)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)
    assert out.split() == ["True"] * 5


def test_a_finalizer_that_wants_what_fork_holds_delays_it_and_no_more(run_settling):
    """Other modules' hooks hold their locks across a fork, and make them anew in the child."""
    run_settling("""
    lock = threading.Lock()
    anew = lock._at_fork_reinit
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=anew)
    log = []
    def want():
        with lock:
            log.append(os.getpid())
    refbuf.configure(heartbeat_ms=300)
    with Worker() as worker:
        left_to_credits(worker, lambda: Ending(want))
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert wait_until(lambda: log == [os.getpid()])
    """)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("ends", ["at once", "after a while"])
def test_it_keeps_no_child_alive_whose_thread_has_ended(run_settling, ends):
    """A thread forks, and goes on in the child until it ends: as the last one, with the process."""
    run_settling(f"""
    import warnings
    warnings.simplefilter("ignore")
    parent, children = os.getpid(), []
    def work():
        thing = things[0]
        child = os.fork()
        if child:
            children.append(child)
            return
        for _ in range(30):
            countext.touch(id(thing), 3)
        assert wait_until(lambda: settlers())  # its name is the new thread's own doing
        if {ends!r} == "after a while":
            time.sleep(0.3)
    things = [Plain()]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert os.getpid() == parent
    ended = []
    assert wait_until(lambda: ended.append(os.waitpid(children[0], os.WNOHANG)) or ended[-1] != (0, 0))
    assert ended[-1] == (children[0], 0)
    """)


def test_it_may_fork_in_a_finalizer(run_settling):
    """It is no settler in the child: that ends with its thread."""
    run_settling("""
    children = []
    def fork():
        if child := os.fork():
            children.append(child)
    with Worker() as worker:
        left_to_credits(worker, lambda: Ending(fork))
        assert wait_until(lambda: children)
        ended = []
        assert wait_until(lambda: ended.append(os.waitpid(children[0], os.WNOHANG)) or ended[-1] != (0, 0))
        assert ended[-1] == (children[0], 0)
        left_to_credits(worker, lambda: Ending(lambda: children.append("again")))
        assert wait_until(lambda: children[1:] == ["again"])
    """)
