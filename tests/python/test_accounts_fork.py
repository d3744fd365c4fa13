"""R4 for references without the interpreter: across fork, on both sides."""

import sys

import pytest
from accounts_setting import SETTING


@pytest.fixture
def run_with_accounts(run_python):
    def run(code, repeats=1, **options):
        return [run_python(code, first=SETTING, **options) for _ in range(repeats)]

    return run


def test_credits_of_other_threads_are_given_back_on_both_sides(run_with_accounts):
    run_with_accounts(
        """
        def go_on():
            works_and_is_exact()
            everything_is_given_up()

        worker = Worker()
        refbuf.configure(heartbeat_ms=300)
        worker.do(accountext.churn, accounts, 1_000, 1)
        assert refbuf.stats().credits > 0
        child = in_child(go_on)
        refbuf.configure(heartbeat_ms=10)
        go_on()
        assert_child_succeeds(child)
        """
    )


def test_a_thread_with_credits_may_fork(run_with_accounts):
    run_with_accounts(
        """
        def fork():
            accountext.churn(accounts, 1_000, 1)
            return in_child(works_and_is_exact)

        with Worker() as worker, Worker() as other:
            for _ in range(5):
                other.do(accountext.churn, accounts, 1_000, 1)
                assert_child_succeeds(worker.do(fork))
        works_and_is_exact()
        everything_is_given_up()
        """
    )


def test_an_object_that_only_credits_hold_dies_on_both_sides(run_with_accounts):
    """The child does nothing for it: it neither flushes nor counts."""
    run_with_accounts(
        """
        def left_dies():
            assert wait_until(lambda: log == ["left"])

        worker = Worker()
        refbuf.configure(heartbeat_ms=500)
        account = accountext.enroll(thing := Tracked(log, "left"))
        worker.do(accountext.incref, account)
        accountext.decref(account)
        del thing
        worker.do(accountext.decref, account)
        child = in_child(left_dies)
        assert_child_succeeds(child)
        left_dies()
        """
    )


def test_fork_while_native_threads_count_like_mad(run_with_accounts):
    """What they held at that moment is lost in the child, as ever; accounts that
    they were about to close or to refill are not."""
    run_with_accounts(
        """
        refbuf.configure(reserve=4)  # from here on some account always asks
        things = [Plain() for _ in range(20)]
        few = tuple(accountext.enroll(thing) for thing in things)

        def count(number):
            while not stop:
                # Native threads never run dry here: 3.11 hangs in the child if one
                # was just about to get a thread state, which attaching gives it.
                accountext.churn(accounts, 2_000, number, 2)
                accountext.churn(few, 2_000, number)
                for name in range(20):
                    account = accountext.enroll(thing := Plain())
                    del thing
                    accountext.decref(account)

        stop = False
        threads = [threading.Thread(target=count, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for turn in range(30):
            account = accountext.enroll(thing := Tracked(log, number := turn + 100))
            def one_more_dies(name=number):
                accountext.decref(account)
                assert wait_until(lambda: log[-1:] == [name]), (log, refbuf.stats())
                log.clear()
                accountext.churn(accounts + few, 2_000, name, 2)
                refbuf.flush_all()
                assert refbuf.stats().credits == 0
            del thing
            pid = in_child(one_more_dies)
            assert_child_succeeds(pid)
            accountext.decref(account)
            assert wait_until(lambda: log[-1:] == [number])
            log.clear()
        stop = True
        for thread in threads:
            thread.join()
        works_and_is_exact()
        for account in few:
            accountext.decref(account)
        everything_is_given_up()
        """,
        timeout=100,
    )


def test_fork_by_c_code_that_knows_nothing_of_python(run_with_accounts):
    """ctypes calls fork while detached: only the C library's hooks run."""
    run_with_accounts(
        """
        import ctypes
        libc = ctypes.CDLL(None)
        libc._exit  # looked up before
        for _ in range(5):
            accountext.churn(accounts, 1_000, 1, 2)
            pid = ctypes.PyDLL(None).fork()
            if pid == 0:
                libc._exit(0)
            assert_child_succeeds(pid)
        works_and_is_exact()
        everything_is_given_up()
        """
    )


def test_references_held_at_the_fork_are_there_on_both_sides(run_with_accounts):
    run_with_accounts(
        """
        def held_is_exact():
            assert counts(objects, refbuf.refcount) == [count + 8 for count in before]
            for account in accounts:
                accountext.decref(account, 7)
            works_and_is_exact()
            everything_is_given_up()

        worker = Worker()
        for account in accounts:
            worker.do(accountext.incref, account, 7)
        child = in_child(held_is_exact)
        assert_child_succeeds(child)
        held_is_exact()
        """
    )


def test_children_of_children(run_with_accounts):
    run_with_accounts(
        """
        def generation(depth):
            worker = Worker()
            worker.do(accountext.churn, accounts, 1_000, depth)
            if depth < 4:
                assert_child_succeeds(in_child(lambda: generation(depth + 1)))
            works_and_is_exact()
            everything_is_given_up()

        generation(0)
        """
    )


def test_threads_that_fork_at_once(run_with_accounts):
    run_with_accounts(
        """
        def child():
            in_threads(2, lambda number: accountext.churn(accounts, 500, number))
            refbuf.flush_all()
            assert refbuf.stats().credits == 0

        def fork(number):
            for turn in range(10):
                accountext.churn(accounts, 1_000, turn)
                assert_child_succeeds(in_child(child))

        in_threads(4, fork)
        works_and_is_exact()
        everything_is_given_up()
        """,
        timeout=100,
    )


def test_a_child_that_gets_no_membarrier_counts_as_well(run_with_accounts):
    run_with_accounts(
        """
        def child():
            assert refbuf._refbuf.build_info()["barrier"] == "fences"
            works_and_is_exact()
            everything_is_given_up()

        def in_a_thread_with_a_buffer(_number):
            accountext.churn(accounts, 1_000, 2)
            # Read when the child chooses.
            os.environ["REFBUF_MEMBARRIER"] = "0"
            assert_child_succeeds(in_child(child))

        in_threads(1, in_a_thread_with_a_buffer)
        works_and_is_exact()
        everything_is_given_up()
        """
    )


def test_a_child_that_exits_as_programs_do_finalizes_and_is_silent(run_with_accounts):
    (said,) = run_with_accounts(
        """
        worker = Worker()
        worker.do(accountext.churn, accounts, 1_000, 1)
        child = os.fork()
        if child == 0:
            works_and_is_exact()
            account = accountext.enroll(thing := Saying("gone in the child"))
            del thing
            Worker().do(accountext.decref, account)
            sys.exit(3)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 3
        works_and_is_exact()
        everything_is_given_up()
        """
    )
    assert said == "gone in the child\n"


def test_subprocesses_may_be_started_while_threads_count(run_with_accounts):
    run_with_accounts(
        """
        import subprocess
        def count(number):
            for turn in range(10):
                accountext.churn(accounts, 1_000, turn)
                subprocess.run(["/bin/true"], check=True)
                # With preexec_fn it is fork, not vfork.
                subprocess.run(["/bin/true"], check=True, preexec_fn=bool)

        in_threads(3, count)
        works_and_is_exact()
        everything_is_given_up()
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
import accountext
from support import Plain, Worker, counts, in_processes, in_threads, wait_until


def work(number):
    objects = [Plain() for _ in range(50)]
    before = counts(objects)
    accounts = tuple(accountext.enroll(thing) for thing in objects)
    in_threads(2, lambda seed: accountext.churn(accounts, 2_000, number + seed))
    assert counts(objects, refbuf.refcount) == [count + 1 for count in before]
    for account in accounts:
        accountext.decref(account)
    assert wait_until(lambda: counts(objects) == before)
    return number


if __name__ == "__main__":
    with Worker() as worker:
        worker.do(work, 0)
        in_processes(sys.argv[1], work)
        work(0)
    print("all is well")
"""


def test_a_finalizer_in_the_settler_may_fork(run_with_accounts):
    """It does not wait for itself, and both sides go on."""
    run_with_accounts(
        """
        class Forking(Plain):
            __slots__ = ()
            def __del__(self):
                began = time.monotonic()
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                took.append(time.monotonic() - began)
                assert_child_succeeds(pid)
                log.append("forked")

        took = []
        for turn in range(5):
            account = accountext.enroll(Forking())
            accountext.churn((account,), 100, turn, 2)
            accountext.decref(account)
            assert wait_until(lambda: log == ["forked"]), log
            log.clear()
        assert min(took) < 0.4, took
        works_and_is_exact()
        everything_is_given_up()
        """
    )
