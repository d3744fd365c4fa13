"""R4 across fork: in both processes the credits are real and are given back."""

import sys

import pytest

# Ten objects, of the main thread's making; a thread that has credits on them.
SETTING = """
import os, sys, threading, time
import refbuf, countext
from refbuf import workloads
from support import (BUFFERED, INSTALLED, Plain, Tracked, Worker, addresses, assert_child_succeeds,
                     at_once, counts, give_credits, in_child, in_threads, left_to_credits,
                     settled_counts, wait_until)

log = []
objects = [Tracked(log, number) for number in range(10)]
before = counts(objects)
there = addresses(objects)

def everything_works():
    '''Counts are exact, new threads may count, and nothing is left.'''
    assert counts(objects, refbuf.refcount) == before
    assert settled_counts(objects) == before
    in_threads(3, lambda number: countext.churn(there, 2_000, number))
    workloads.run("random", "refbuf", objects, threads=2, pairs=2_000)
    assert at_once(lambda: counts(objects, refbuf.refcount) == before)
    assert settled_counts(objects) == before
    # Under live mode there are those of what has been called since.
    assert INSTALLED or refbuf.stats().credits == 0

def everything_is_finalized():
    with Worker() as worker:
        worker.do(countext.churn, there, 1_000, 3)
        objects.clear()
        assert wait_until(lambda: sorted(log) == list(range(10))), (log, refbuf.stats())
"""


@pytest.fixture
def run_forking(run_python):
    def run(code, **options):
        return run_python(code, first=SETTING, **options)

    return run


def test_credits_of_other_threads_are_given_back_on_both_sides(run_forking):
    run_forking(
        """
        def child():
            everything_works()
            everything_is_finalized()

        refbuf.configure(heartbeat_ms=300)
        worker = Worker()
        give_credits(worker, there[0])
        worker.do(countext.churn, there, 1_000, 1)
        assert refbuf.stats().credits > 0 or not BUFFERED
        pid = in_child(child)
        refbuf.configure(heartbeat_ms=10)
        assert_child_succeeds(pid)
        everything_works()
        worker.do(countext.churn, there, 1_000, 2)
        everything_works()
        everything_is_finalized()
        """
    )


def test_a_thread_with_credits_may_fork(run_forking):
    run_forking(
        """
        def child():
            assert counts(objects, refbuf.refcount) == before
            countext.churn(there, 1_000, 2)  # with what is left of its credits
            everything_works()
            everything_is_finalized()

        def fork():
            countext.churn(there, 1_000, 1)
            return in_child(child)

        worker, other = Worker(), Worker()
        other.do(countext.churn, there, 1_000, 1)
        for _ in range(5):
            assert_child_succeeds(worker.do(fork))
        everything_works()
        everything_is_finalized()
        """
    )


def test_an_object_that_only_credits_hold_dies_on_both_sides(run_forking):
    """The child does nothing for it: it neither flushes nor counts."""
    run_forking(
        """
        def child():
            assert wait_until(lambda: "left" in log)
            assert log.count("left") == 1

        worker = Worker()
        refbuf.configure(heartbeat_ms=500)
        left_to_credits(worker, lambda: Tracked(log, "left"))
        pid = in_child(child)
        assert_child_succeeds(pid)
        assert wait_until(lambda: log == ["left"])
        """
    )


def test_the_settler_runs_on_both_sides(run_forking):
    run_forking(
        """
        def garbage_is_released():
            with Worker() as worker:
                for turn in range(3):
                    left_to_credits(worker, lambda: Tracked(log, f"left {turn}"))
                    assert wait_until(lambda: f"left {turn}" in log)
            log.clear()

        garbage_is_released()
        pid = in_child(garbage_is_released)
        garbage_is_released()
        assert_child_succeeds(pid)
        garbage_is_released()
        """
    )


def test_references_held_at_the_fork_are_there_on_both_sides(run_forking):
    run_forking(
        """
        def held_is_exact():
            expected = [count + 7 for count in before]
            assert counts(objects, refbuf.refcount) == expected
            assert settled_counts(objects) == expected
            for address in there:
                countext.decref(address, 7)
            everything_works()
            everything_is_finalized()

        worker = Worker()
        for address in there:
            worker.do(countext.incref, address, 7)
        pid = in_child(held_is_exact)
        assert_child_succeeds(pid)
        held_is_exact()
        """
    )


def test_fork_while_4_threads_count_like_mad(run_forking):
    run_forking(
        """
        def count(number):
            while not stop:
                countext.churn(there, 400, number)

        def child():
            # References that those threads held are lost with them, as ever;
            # credits are not.
            settled = settled_counts(objects)
            assert all(now >= then for now, then in zip(settled, before)), (settled, before)
            assert INSTALLED or refbuf.stats().credits == 0, refbuf.stats()
            if turn % 10 == 0:
                in_threads(2, lambda number: countext.churn(there, 500, number))
            else:
                countext.churn(there, 500, turn)
            assert counts(objects, refbuf.refcount) == settled
            assert settled_counts(objects) == settled

        stop = False
        threads = [threading.Thread(target=count, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(50):
            assert_child_succeeds(in_child(child))
        stop = True
        for thread in threads:
            thread.join()
        everything_works()
        everything_is_finalized()
        """,
        timeout=100,
    )


def test_fork_waits_for_no_settler_while_others_count(run_forking):
    run_forking(
        """
        def count():
            while not stop:
                countext.churn(there, 400, 1)

        stop, took = False, []
        thread = threading.Thread(target=count)
        thread.start()
        for _ in range(8):
            started = time.monotonic()
            pid = in_child(bool)
            took.append(time.monotonic() - started)
            assert_child_succeeds(pid)
        stop = True
        thread.join()
        assert sorted(took)[len(took) // 2] < 0.25, took
        """
    )


@pytest.mark.needs_buffering
def test_fork_of_a_program_with_one_thread_warns_of_no_other(run_forking):
    """The settler has ended by then: the child comes from a process with one
    thread, as it does without refbuf."""
    run_forking(
        """
        import warnings
        warnings.simplefilter("error")
        with Worker() as worker:
            foreign = worker.do(lambda: [Plain() for _ in range(100)])
            there = addresses(foreign)
            worker.do(countext.churn, addresses(objects), 100, 1)
        for turn in range(30):
            countext.churn(there, 1_000, turn)
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert_child_succeeds(pid)
        assert refbuf.stats().beats > 0
        """
    )


def test_children_of_children(run_forking):
    run_forking(
        """
        def generation(depth):
            worker = Worker()
            worker.do(countext.churn, there, 1_000, depth)
            if depth < 4:
                assert_child_succeeds(in_child(lambda: generation(depth + 1)))
            everything_works()

        generation(0)
        """
    )


@pytest.mark.needs_buffering
def test_a_child_that_gets_no_membarrier_keeps_off_the_inline_path(run_forking):
    run_forking(
        """
        def child():
            info = refbuf._refbuf.build_info()
            assert (info["barrier"], info["inline"]) == ("fences", False), info
            # The parent's buffer, and one that is made here.
            assert not countext.is_inline()
            with Worker() as worker:
                worker.do(countext.churn, there, 1_000, 1)
                assert not worker.do(countext.is_inline)
            everything_works()

        def in_a_thread_with_a_buffer(_number):
            countext.churn(there, 1_000, 2)
            assert countext.is_inline()
            # Read when the child chooses.
            os.environ["REFBUF_MEMBARRIER"] = "0"
            assert_child_succeeds(in_child(child))

        if refbuf._refbuf.build_info()["barrier"] == "membarrier":
            in_threads(1, in_a_thread_with_a_buffer)
        """
    )


def test_threads_that_fork_at_once(run_forking):
    run_forking(
        """
        def child():
            in_threads(2, lambda number: countext.churn(there, 500, number))
            refbuf.flush_all()
            assert INSTALLED or refbuf.stats().credits == 0

        def fork(number):
            for turn in range(10):
                countext.churn(there, 1_000, turn)
                assert_child_succeeds(in_child(child))

        in_threads(4, fork)
        everything_works()
        """,
        timeout=100,
    )


def test_a_child_that_exits_as_programs_do_finalizes_and_is_silent(run_forking):
    run_forking(
        """
        worker = Worker()
        worker.do(countext.churn, there, 1_000, 1)
        pid = os.fork()
        if pid == 0:
            everything_works()
            left_to_credits(Worker(), lambda: Tracked(log, "left"))
            sys.exit(0)
        assert_child_succeeds(pid)
        everything_works()
        """
    )


def test_subprocesses_may_be_started_while_threads_count(run_forking):
    run_forking(
        """
        import subprocess
        def count(number):
            for turn in range(10):
                countext.churn(there, 1_000, turn)
                subprocess.run(["/bin/true"], check=True)
                # With preexec_fn it is fork, not vfork.
                subprocess.run(["/bin/true"], check=True, preexec_fn=bool)

        in_threads(3, count)
        everything_works()
        """
    )


def test_fork_by_c_code_that_knows_nothing_of_python(run_forking):
    """ctypes calls fork while detached: only the C library's hooks run."""
    run_forking(
        """
        import ctypes
        libc = ctypes.CDLL(None)
        libc._exit  # looked up before
        worker = Worker()
        worker.do(countext.churn, there, 1_000, 1)
        for _ in range(5):
            pid = ctypes.PyDLL(None).fork()
            if pid == 0:
                libc._exit(0)
            assert_child_succeeds(pid)
            worker.do(countext.churn, there, 1_000, 1)
        everything_works()
        everything_is_finalized()
        """
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(run_process, tmp_path, method):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    assert run_process([sys.executable, script, method]) == "all is well\n"


PROGRAM = """
import sys

import refbuf
import countext
from refbuf import workloads
from support import Plain, Worker, addresses, counts, in_processes, in_threads, settled_counts


def work(number):
    objects = [Plain() for _ in range(50)]
    before = counts(objects)
    in_threads(2, lambda seed: countext.churn(addresses(objects), 2_000, number + seed))
    workloads.run("random", "refbuf", objects, threads=2, pairs=2_000)
    assert counts(objects, refbuf.refcount) == before
    assert settled_counts(objects) == before
    return number


if __name__ == "__main__":
    with Worker() as worker:
        objects = [Plain() for _ in range(50)]
        worker.do(countext.churn, addresses(objects), 1_000, 1)
        in_processes(sys.argv[1], work)
        work(0)
    print("all is well")
"""


@pytest.mark.needs_buffering
def test_credits_are_given_back_after_a_fork_that_did_not_wait_for_the_settler(run_forking):
    """It was in a finalizer, and heard only later that it should have ended."""
    run_forking(
        """
        class Slow:
            def __del__(self):
                begun.set()
                may_end.wait(30)
                log.append("slow")

        begun, may_end = threading.Event(), threading.Event()
        worker = Worker()
        left_to_credits(worker, Slow)
        assert begun.wait(30)
        left_to_credits(worker, lambda: Tracked(log, "waiting"))
        assert_child_succeeds(in_child(lambda: None))
        assert log == []
        may_end.set()
        assert wait_until(lambda: log == ["slow", "waiting"]), log
        """
    )
