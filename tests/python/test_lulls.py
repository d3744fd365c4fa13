"""Lulls: live mode's sites are as they were while one thread at a time runs, and jumps as soon as others do.

Each test patches an interpreter of its own. Others run without lulls (conftest.py), so that what they count
does not depend on the processor.
"""

import pytest
import refbuf
from test_live import FIRST, live

MORE = """
import os
state = refbuf._refbuf.live_lulls

def is_lull():
    return state()[0]

def busy(seconds, things=()):
    "Runs for so long in this thread; counts these things all the time."
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(200):
            list(things)

def becomes(lull, things=()):
    "Runs one thread until there is a lull, or several until there is none. It may be over by then."
    began, used = time.perf_counter(), time.process_time()
    end = began + 30
    seen = []
    def run():
        while not seen and time.perf_counter() < end:
            busy(0.001, things)
            if is_lull() == lull:
                seen.append(lull)
    if lull:
        run()
    else:
        # As many as have more than one processor to themselves beside other tests.
        in_thread(run, 4)
        share = (time.process_time() - used) / (time.perf_counter() - began)
        if not seen and share < 1.2:
            # They look like one thread then, to whoever decides it.
            print(f"starved: {share:.2f} processors for 4 threads", flush=True)
            os._exit(0)
    return bool(seen)

hold = refbuf._refbuf.live_hold_lull
"""


@pytest.fixture
def run_lulls(run_python):
    def run(code, *arguments, timeout=130, **options):
        out = run_python(code, *arguments, first=FIRST + MORE, timeout=timeout, **options)
        if "starved" in out:
            pytest.skip(out.strip())
        return out

    return run


@live
def test_who_asks_for_lulls_has_them(run_lulls):
    code = """
    report = refbuf.install(lulls={"True": True, "False": False, "None": None}[sys.argv[1]])
    main = report.images[0]
    assert report.lulls == report.as_dict()["lulls"] == (state() is not None) == (main.hooked == ())
    print(report.lulls)
    refbuf.uninstall()
    assert state() is None
    """
    answers = {
        (argument, value): run_lulls(code, argument, env={"REFBUF_LULLS": value}).strip()
        for argument in ("True", "False", "None")
        for value in ("0", "1")
    }
    said = {"True": dict.fromkeys("01", "True"), "False": dict.fromkeys("01", "False")}
    said["None"] = {"0": "False", "1": "True"}
    assert answers == {(argument, value): said[argument][value] for argument, value in answers}


@live
def test_the_processor_decides_where_nobody_does(run_lulls):
    run_lulls(
        """
        from refbuf._cli.doctor import examine
        atomics, = (check for check in examine()["checks"] if check["name"] == "atomics")
        assert atomics["ok"], atomics
        assert ("in lulls" in atomics["detail"]) == refbuf.install().lulls, atomics
        """,
        env={"REFBUF_LULLS": ""},
    )


def test_what_the_environment_says_must_make_sense(run_python):
    code = """
    import refbuf
    try:
        refbuf.install()
    except refbuf.UnsupportedError as error:
        print(error)
    assert not refbuf.installed()
    """
    assert run_python(code, env={"REFBUF_LULLS": "yes"}) == "REFBUF_LULLS must be 1, 0 or empty, not 'yes'\n"


@live
def test_sites_are_as_they_were_while_one_thread_runs(run_lulls):
    run_lulls("""
    before = code()
    refbuf.install(lulls=True)
    for _ in range(3):
        assert becomes(True) and becomes(False)
    is_now, begun, seconds = state()
    assert begun >= 3 and seconds > 0
    assert hold(False)
    during = code()
    assert during != before
    for _ in range(3):
        assert hold(True) and is_lull()
        assert {key: value for key, value in code().items() if key in before} == before
        assert hold(False) and not is_lull() and code() == during
    assert hold(True)
    refbuf.uninstall()
    assert state() is None
    assert {key: value for key, value in code().items() if key in before} == before
    """)


@live
def test_a_lull_may_be_uninstalled_and_what_was_installed_may_be_otherwise(run_lulls):
    run_lulls("""
    before = code()
    for lulls in (True, False, True, True, False):
        report = refbuf.install(lulls=lulls)
        assert report.lulls == lulls and refbuf.installed()
        if lulls:
            assert hold(True) and refbuf.installed() and refbuf.install() is report
        else:
            assert code() != before
        refbuf.uninstall()
        assert {key: value for key, value in code().items() if key in before} == before
    """)


@live
def test_counts_are_exact_however_often_it_changes(run_lulls):
    run_lulls(
        """
        refbuf.install(lulls=True)
        class Thing:
            pass
        things = [Thing() for _ in range(30)]
        deaths = []
        for thing in things:
            weakref.finalize(thing, deaths.append, id(thing)).atexit = False
        refbuf.flush_all()
        counts = [refbuf.refcount(thing) for thing in things]
        while state()[1] < 6:
            assert becomes(False, things=things)
            in_thread(lambda: busy(0.01, things), 3)
            assert becomes(True, things=things)
        assert refbuf.stats().hits > 1000
        refbuf.flush_all()
        assert [refbuf.refcount(thing) for thing in things] == counts
        assert not deaths
        expected = sorted(map(id, things))
        del thing
        in_thread(things.clear)
        assert eventually(lambda: len(deaths) == 30)
        time.sleep(0.05)
        assert sorted(deaths) == expected
        """,
    )


@live
def test_counts_are_exact_while_it_changes_all_the_time(run_lulls):
    """Hundreds of times, while threads use what they share, objects die and the collector runs."""
    run_lulls(
        """
        refbuf.install(lulls=True)
        class Thing:
            kind = "shared"
            def __init__(self):
                self.value = self
            def method(self):
                return self.value
        things = [Thing() for _ in range(20)]
        pairs, table = tuple(things), dict(enumerate(things))
        lock, deaths, made = threading.Lock(), [], []
        refbuf.flush_all()
        gc.collect()
        counts = [refbuf.refcount(thing) for thing in things]
        end = time.perf_counter() + 4
        def change():
            changes = 0
            while time.perf_counter() < end:
                assert hold(changes % 2 == 0)
                changes += 1
            made.append(changes)
        def use():
            while time.perf_counter() < end:
                for number in range(20):
                    thing = table[number]
                    assert thing is pairs[number] is things[number] is thing.method() is thing.value
                    assert thing.kind and lock.locked() in (True, False) and number in table
                    new = Thing()
                    new.value = [thing] * 5
                    with lock:
                        things.append(new)
                    with lock:
                        other = things.pop()
                    weakref.finalize(other, deaths.append, None).atexit = False
                    del new, other
        changing = threading.Thread(target=change)
        changing.start()
        uses = [threading.Thread(target=use) for _ in range(3)]
        for thread in uses:
            thread.start()
        while time.perf_counter() < end:
            gc.collect()
            time.sleep(0.05)
        for thread in (changing, *uses):
            thread.join()
        assert made[0] > 100, made
        hold(False)
        refbuf.flush_all()
        gc.collect()
        assert len(things) == 20 and len(deaths) > 1000
        assert [refbuf.refcount(thing) for thing in things] == counts
        """
    )


@live
def test_what_two_threads_share_goes_through_the_buffers(run_lulls):
    run_lulls("""
    refbuf.install(lulls=True)
    thing = object()
    def counts():
        before = refbuf.stats().operations
        in_thread(lambda: busy(0.1, [thing] * 100), 2)
        return refbuf.stats().operations - before
    assert hold(True)
    assert counts() < 1000
    assert hold(False)
    assert counts() > 100_000
    assert hold(True)
    assert counts() < 1000
    """)


@live
def test_an_extension_that_is_loaded_in_a_lull_is_patched_when_it_ends(run_lulls):
    run_lulls("""
    refbuf.install(lulls=True)
    assert hold(True)
    import _testcapi
    def its_code():
        return {key: value for key, value in code().items() if "_testcapi" in key[0]}
    before = its_code()
    assert before
    assert hold(False) and its_code() != before
    assert hold(True) and its_code() == before
    refbuf.uninstall()
    assert its_code() == before
    """)


@live
@pytest.mark.parametrize("by", ["a lull", "threads"])
def test_a_forked_child_has_lulls_of_its_own(run_lulls, by):
    run_lulls(
        """
        import os
        refbuf.install(lulls=True)
        assert becomes(sys.argv[1] == "a lull")
        things = [object() for _ in range(10)]
        for _ in range(5):
            child = os.fork()
            if not child:
                try:
                    assert becomes(True, things=things)
                    assert becomes(False, things=things)
                    assert becomes(True, things=things)
                    os._exit(0)
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert becomes(False, things=things)
        assert becomes(True, things=things)
        """,
        by,
    )


@live
def test_forks_may_come_while_it_changes(run_lulls):
    """As a child of the C library's fork, which asks nobody: another thread may be at it."""
    run_lulls(
        """
        import ctypes, os
        libc = ctypes.PyDLL(None)
        gc.disable()  # In such a child it would wait for threads that are not there.
        refbuf.install(lulls=True)
        stop = time.perf_counter() + 3
        changes = []
        def change():
            while time.perf_counter() < stop:
                assert hold(len(changes) % 2 == 0)
                changes.append(None)
        changing = threading.Thread(target=change)
        changing.start()
        forks = 0
        while time.perf_counter() < stop:
            child = libc.fork()
            if not child:
                # Each waits for a lock that the thread may have held.
                refbuf._refbuf.live_lulls()
                refbuf._refbuf.live_trampolines()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            forks += 1
        changing.join()
        assert forks > 10 and len(changes) > 10, (forks, len(changes))
        """
    )


@live
def test_code_that_cannot_be_changed_stays_as_it_is_and_goes_on(run_lulls):
    """Memory may be refused at any time, as by a limit of address space."""
    run_lulls("""
    import resource
    refbuf.install(lulls=True)
    assert hold(False) and not is_lull()
    during = code()
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    for lull in (True, False):
        before = code()
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used, unlimited[1]))
        changed = hold(lull)
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        assert not changed and is_lull() != lull and code() == before
        in_thread(lambda: busy(0.01), 2)
        assert hold(lull) and is_lull() == lull and code() != before
    assert code() == during
    """)


@live
@pytest.mark.parametrize("asks", ["gc.collect()", "refbuf.flush()", "refbuf.flush_all()"])
def test_where_the_system_gives_no_settler_whoever_settles_asks_again(run_lulls, asks):
    """The settler looks for lulls, so until then all sites are jumps."""
    run_lulls(f"""
    import gc, resource
    if os.getuid() == 0:
        os.setuid(65534)
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    refbuf.install(lulls=True)
    busy(0.5)
    gc.collect()
    busy(0.5)
    assert len(os.listdir("/proc/self/task")) == 1 and not is_lull()
    resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
    {asks}
    assert becomes(True)
    """)


@live
def test_it_is_not_installed_another_way_on_top(run_lulls):
    run_lulls("""
    for one in (True, False):
        refbuf.install(lulls=one)
        during = code()
        try:
            refbuf._refbuf.live_install([], not one)
        except refbuf.UnsupportedError as error:
            assert "uninstall it first" in str(error)
        else:
            raise AssertionError("it is installed twice")
        if one:
            hold(False)
        # The same way: what is there stays, and is said.
        assert len(refbuf._refbuf.live_install([], one)) == 1
        in_thread(lambda: busy(0.01), 2)
        refbuf.uninstall()
    """)


@live
def test_lulls_end_at_any_heartbeat(run_lulls):
    """The buffers are looked at each half of one, and no oftener."""
    run_lulls("""
    refbuf.configure(heartbeat_ms=60_000)
    refbuf.install(lulls=True)
    assert becomes(True)
    assert becomes(False)
    assert becomes(True)
    assert refbuf.stats().beats <= 4, refbuf.stats()
    refbuf.configure(heartbeat_ms=10)
    things = [object() for _ in range(10)]
    hold(False)
    in_thread(lambda: busy(0.05, things * 10), 2)
    assert eventually(lambda: refbuf.stats().credits == 0)
    """)


@live
def test_it_is_not_another_thread_for_fork(run_lulls):
    """Python warns of a fork in a process with several threads: the settler that looks is none by then."""
    run_lulls("""
    import os, warnings
    refbuf.install(lulls=True)
    assert becomes(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
            busy(0.02)
    assert becomes(False)
    """)


@live
def test_what_is_recorded_is_recorded_all_the_time(run_lulls):
    run_lulls(
        """
        from refbuf import _live
        _live.record(1000)
        assert state() is None
        during = code()
        busy(0.1)
        assert code() == during
        """,
        env={"REFBUF_LULLS": "1"},
    )


def test_elsewhere_there_are_none():
    if not refbuf.installed():
        assert refbuf._refbuf.live_lulls() is None
