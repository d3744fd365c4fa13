"""`python -m refbuf lab trace PROGRAM`: a program ends as under `python`, and the trace has what
its threads did to the objects of others."""

import json
import sys

import pytest
from programs import LIVE, live
from refbuf._refbuf import Trace

READS = 3_000

SHARING = f"""
    import sys, threading

    class Thing:
        def method(self):
            pass

    items = tuple(object() for _ in range(8))
    bound = Thing().method
    print("main", threading.get_ident())

    def work():
        mine, call = items, bound
        for turn in range({READS}):
            item = mine[turn % 8]
            call()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    """


@pytest.fixture
def record(start, tmp_path):
    """Records a program; returns how it ended, and the trace."""

    def record(*program, limit=None, **options):
        limits = () if limit is None else ("--limit", str(limit))
        command = ("-m", "refbuf", "lab", "trace", "--out", "program.trace", *limits)
        ended = start(*command, *program, **options)
        file = tmp_path / "program.trace"
        return ended, Trace(file.read_bytes()) if file.exists() else None

    return record


@live
def test_the_trace_has_what_threads_do_to_objects_of_others(record, write):
    write(SHARING)
    ended, trace = record("program.py")
    assert ended.returncode == 0 and ended.out.startswith("main "), ended
    main, *workers = trace.threads
    assert main[0] == "main" and len(workers) == 2
    for name, increments, decrements, lost, _ in workers:
        assert name.startswith("thread ") and lost == 0
        # An item; the bound method, its object and its function; a few to start and to end.
        assert 2 * READS <= increments <= 6 * READS + 500, (increments, decrements)
        assert abs(increments - decrements) < 200
    # The tuple's items, the method, the function.
    assert main[4] >= 10
    assert main[1] + main[2] < 500
    assert trace.immortal == 0 and trace.about["program"] == "program.py"
    assert "workload" not in trace.about
    # The busiest, whoever that is.
    assert sorted(trace.replayed) == [1, 2]


@live
def test_what_is_said_goes_to_standard_error(record, write):
    write("print('said')")
    ended, trace = record("program.py")
    assert ended.out == "said\n"
    assert "main: " in ended.err and f"{trace.objects:,} objects" in ended.err and "Written: " in ended.err


@live
def test_what_a_thread_does_with_its_own_objects_is_not_there(record):
    code = """if True:
        import threading

        def work():
            mine = tuple(object() for _ in range(8))
            for turn in range(20000):
                item = mine[turn % 8]

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        """
    _, trace = record("-c", code)
    assert len(trace.threads) == 2
    assert trace.threads[1][1] < 2_000


@live
def test_who_made_an_object_is_known_where_another_drops_it(record):
    code = """if True:
        import queue, threading

        results = queue.SimpleQueue()

        def work():
            for number in range(300):
                results.put(object())

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        taken = [results.get() for _ in range(600)]
        taken.clear()
        for thread in threads:
            thread.join()
        """
    _, trace = record("-c", code)
    _, first, second = trace.threads
    # Those that the collector or a later merge has made nobody's are missing.
    assert first[4] > 100 and second[4] > 100


@live
def test_a_limit_bounds_each_thread_and_the_rest_is_counted(record, write):
    write(SHARING)
    ended, trace = record("program.py", limit=1000)
    assert ended.returncode == 0 and "lost (--limit)" in ended.err
    for _, increments, decrements, lost, _ in trace.threads[1:]:
        assert 0 < increments + decrements <= 1000
        assert increments + decrements + lost > 4 * READS


@live
@pytest.mark.parametrize(
    "end",
    ["", "sys.exit(3)", "sys.exit('words')", "1 / 0", "raise KeyboardInterrupt", "raise SystemExit"],
)
def test_the_program_ends_as_under_python(start, record, write, end):
    write(f"""
        import atexit, sys, threading
        atexit.register(print, "at exit")

        def last():
            threading.main_thread().join()
            print("in a thread")

        threading.Thread(target=last).start()
        print(__name__, sys.argv)
        {end}
        """)
    expected = start("program.py", "--limit", "3")
    ended, trace = record("program.py", "--limit", "3")
    assert (ended.returncode, ended.out) == (expected.returncode, expected.out)
    assert ended.err.startswith(expected.err)
    assert trace.about["command"].endswith("program.py --limit 3")


@live
@pytest.mark.parametrize("program", [("-m", "program", "x"), ("-c", "import program", "x"), ("-", "x")])
def test_the_other_ways_to_give_a_program(record, write, program):
    write("import sys; print(sys.argv[1:])")
    ended, trace = record(*program, stdin=b"import program")
    assert (ended.returncode, ended.out) == (0, "['x']\n"), ended
    assert trace is not None


@live
def test_only_the_process_itself_writes(record, write):
    write("""
        import os, sys, multiprocessing

        def work(number):
            return number * 2

        if __name__ == "__main__":
            if not os.fork():
                sys.exit(5)
            os.wait()
            for method in "fork", "spawn":
                with multiprocessing.get_context(method).Pool(2) as pool:
                    print(pool.map(work, range(3)))
        """)
    ended, trace = record("program.py")
    assert (ended.returncode, ended.out) == (0, "[0, 2, 4]\n" * 2), ended
    assert ended.err.count("Written: ") == 1 and trace.threads[0][0] == "main"


@live
def test_the_trace_is_written_where_it_was_asked_for(record, write):
    write("import os, tempfile; os.chdir(tempfile.gettempdir())")
    _, trace = record("program.py")
    assert trace is not None


@live
def test_many_threads_one_after_the_other_have_recordings_of_their_own(record):
    code = """if True:
        import threading
        for number in range(50):
            thread = threading.Thread(target=len, args=((),))
            thread.start()
            thread.join()
        """
    ended, trace = record("-c", code)
    assert len(trace.threads) == 51
    assert "and 35 threads that counted less" in ended.err


@live
def test_a_daemon_that_still_runs_does_no_harm(record, write):
    write("""
        import threading
        shared, started = object(), threading.Event()

        def work():
            started.set()
            while True:
                other = shared

        threading.Thread(target=work, daemon=True).start()
        started.wait()
        """)
    for _ in range(5):
        ended, trace = record("program.py")
        assert ended.returncode == 0 and trace is not None, ended


@live
def test_live_mode_and_recording_are_not_mixed(record):
    code = """if True:
        import refbuf
        assert not refbuf.installed()
        refbuf.uninstall()
        try:
            refbuf.install()
        except refbuf.UnsupportedError as error:
            print(error)
        """
    ended, _ = record("-c", code)
    assert ended.out == "the interpreter's counts are recorded: install live mode in another process\n"


@live
def test_simulate_replays_it(record, write, run_process, tmp_path):
    write(SHARING)
    record("program.py")
    file = tmp_path / "simulation.json"
    command = [sys.executable, "-P", "-m", "refbuf", "lab", "simulate", "--trace", tmp_path / "program.trace"]
    costs = ("--cost", "transfer=60", "--cost", "hold=20", "--cost", "hold_looked=10", "--cost", "atomic=5")
    out = run_process([*command, "--threads", "1,2,64", *costs, "--json", file])
    results = json.loads(file.read_text())
    rows = {(row["scheme"], row["threads"]): row for row in results["rows"]}
    assert results["meta"]["recorded_threads"] == 2 and results["validation"] == []
    assert "of a program" in out
    # All of what is shared: so the schemes differ as they do on shared objects.
    for scheme in "atomic", "biased":
        assert rows[scheme, 64]["atomics_per_1000_pairs"] == pytest.approx(2_000, abs=20)
        assert rows[scheme, 64]["misses_per_1000_pairs"] > 100
    for scheme in "deltas", "credits":
        assert rows[scheme, 64]["atomics_per_1000_pairs"] < 100
        assert rows[scheme, 64]["scaling"] > 30


# -- bad usage ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("program.py",), "--out FILE must come before the program"),
        (("program.py", "--out", "x"), "--out FILE must come before the program"),
        (("--out", "x", "--threads", "2", "program.py"), "--threads is for workloads"),
        (("--out", "x", "--limit", "0", "program.py"), "--limit: must be a whole number"),
        (("--out", "x", "--limit=many", "program.py"), "--limit: must be a whole number"),
        (("--out", "/nonexistent/x", "program.py"), "cannot write"),
        (("--out", "x", "-m"), "-m takes a value"),
        (("--out", "x", "nothing"), "no script, and no workload"),
        (("--out", "x", "missing.py"), "there is no 'missing.py'"),
    ],
)
def test_bad_usage_is_one_sentence(start, write, arguments, sentence):
    write("print('started')")
    ended = start("-m", "refbuf", "lab", "trace", *arguments)
    assert (ended.returncode, ended.out) == (2, "")
    assert ended.err.startswith("refbuf: lab trace: ") and sentence in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.skipif(LIVE, reason="here live mode is supported")
def test_where_live_mode_is_not_supported_nothing_starts(record, write):
    write("print('started')")
    ended, trace = record("program.py")
    assert (ended.returncode, ended.out, trace) == (2, "", None)
    assert ended.err.startswith("refbuf: lab trace: live mode ") and ended.err.count("\n") == 1
