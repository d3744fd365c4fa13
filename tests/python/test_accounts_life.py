"""R4 for references without the interpreter: to the end of the process."""

import pytest
from accounts_setting import SETTING


@pytest.fixture
def run_with_accounts(run_python):
    def run(code, repeats=1, **options):
        return [run_python(code, first=SETTING, **options) for _ in range(repeats)]

    return run


def test_native_threads_may_count_to_the_end(run_with_accounts):
    run_with_accounts(
        """
        for account in accounts[:3]:
            accountext.churn_for_ever(account)
        time.sleep(0.02)
        """,
        10,
    )


def test_native_threads_may_count_while_the_program_exits_with_a_status(run_with_accounts):
    run_with_accounts(
        """
        accountext.churn_for_ever(accounts[0])
        time.sleep(0.02)
        sys.exit(3)
        """,
        3,
        returncode=3,
    )


def test_a_program_that_is_interrupted_ends_as_usual(run_with_accounts):
    run_with_accounts(
        """
        import signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        accountext.churn_for_ever(accounts[0])
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        """,
        returncode=-2,
    )


def test_daemon_threads_may_flush_to_the_end(run_with_accounts):
    run_with_accounts(
        """
        on_exit_daemons_stay_detached(4)
        def work(number):
            while True:
                accountext.churn(accounts, 200, number)
                refbuf.flush()
                refbuf.flush_all()
                refbuf.refcount(objects[number])

        accountext.churn_for_ever(accounts[0])
        for number in range(4):
            threading.Thread(target=work, args=(number,), daemon=True).start()
        time.sleep(0.02)
        """,
        10,
    )


def test_finalizers_at_exit_may_count_and_enroll(run_with_accounts):
    said = run_with_accounts(
        """
        class Busy(Saying):
            __slots__ = ("itself",)
            def __del__(self, churn=accountext.churn, enroll=accountext.enroll, drop=accountext.decref,
                        flush_all=refbuf.flush_all, accounts=accounts, make=Plain, say=Saying.__del__):
                churn(accounts, 500, 1)
                account = enroll(make())
                churn((account,), 50, 1)
                drop(account)
                flush_all()
                say(self)

        held, cyclic = Busy("held"), Busy("cyclic")
        cyclic.itself = cyclic
        del cyclic
        """,
        3,
    )
    assert [sorted(lines.split()) for lines in said] == [["cyclic", "held"]] * 3


def test_a_finalizer_that_runs_in_the_settler_may_outlast_the_program(run_with_accounts):
    run_with_accounts(
        """
        class Slow(Plain):
            def __del__(self):
                started.set()
                time.sleep(30)

        started = threading.Event()
        account = accountext.enroll(Slow())
        Worker().do(accountext.touch, account, 5)
        accountext.decref(account)
        assert started.wait(20)
        """,
        3,
        timeout=25,
    )


def test_daemon_threads_may_count_to_the_end(run_with_accounts):
    run_with_accounts(
        """
        on_exit_daemons_stay_detached(4)
        def count(number):
            while True:
                accountext.churn(accounts, 300, number)
                accountext.touch_by_turns(accounts[number], 50)

        for number in range(4):
            threading.Thread(target=count, args=(number,), daemon=True).start()
        time.sleep(0.02)
        """,
        10,
    )


def test_daemon_threads_may_find_reserves_dry_to_the_end(run_with_accounts):
    """They attach for a refill while the interpreter goes away."""
    run_with_accounts(
        """
        refbuf.configure(reserve=1)
        dry = tuple(accountext.enroll(thing) for thing in [Plain() for _ in range(5)])
        def count():
            while True:
                accountext.churn(dry, 500, 1)

        on_exit_daemons_stay_detached(3)
        for number in range(3):
            threading.Thread(target=count, daemon=True).start()
        accountext.churn_for_ever(dry[0])
        time.sleep(0.02)
        """,
        10,
    )


def test_exit_waits_for_no_native_thread_that_finds_a_reserve_dry(run_with_accounts):
    """It may not attach any more, and hangs: but not in the exit's way."""
    run_with_accounts(
        """
        refbuf.configure(reserve=1)
        thing = Plain()
        dry = accountext.enroll(thing)
        for _ in range(3):
            accountext.incref(dry)
            accountext.churn_for_ever(dry)
        time.sleep(0.02)
        started = time.monotonic()
        atexit._run_exitfuncs()
        took = time.monotonic() - started
        assert took < 0.4, took
        """,
        5,
    )


def test_an_object_that_only_credits_hold_is_finalized_at_exit(run_with_accounts):
    said = run_with_accounts(
        """
        refbuf.configure(heartbeat_ms=60_000)
        account = accountext.enroll(Saying("finalized"))
        accountext.churn((account,), 100, 1, 2)
        accountext.touch(account, 10)
        accountext.decref(account)
        """,
        3,
    )
    assert said == ["finalized\n"] * 3


def test_a_reference_dropped_after_the_exit_has_begun_finalizes_as_ever(run_python):
    """By a function at exit that runs after refbuf's, and by the destruction of
    modules: nobody is there to serve the account but the thread itself."""
    saying = """
class Saying:
    def __init__(self, what):
        self.what = what
    def __del__(self, write=__import__("os").write):
        write(1, (self.what + chr(10)).encode())
"""
    code = """
    import atexit
    def last():
        accountext.decref_attached(dropped)
        print("last is over", flush=True)
    atexit.register(last)  # before refbuf's: called after it
    import os, types
    import accountext
    # In a module of its own: through an account nobody sees that it refers to others.
    speech = types.ModuleType("speech")
    exec(saying, vars(speech))
    class Dropping:
        def __del__(self, decref=accountext.decref_attached):
            decref(self.account)
    dropped = accountext.enroll(speech.Saying("at exit"))
    late = accountext.enroll(speech.Saying("later"))
    keeper = Dropping()
    keeper.account = late
    """
    said = run_python(code, first=f"saying = {saying!r}\n")
    assert said.split("\n") == ["at exit", "last is over", "later", ""]


def test_references_that_are_never_dropped_do_no_harm_at_exit(run_with_accounts):
    run_with_accounts("sys.modules['kept'] = accounts\naccountext.touch(accounts[0], 10)\n", 3)
