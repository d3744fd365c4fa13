"""`python -m refbuf run`: refbuf in programs and in the processes that they start; bad usage."""

import sys

import pytest
import refbuf
from programs import LIVE, live

# -- refbuf in it -------------------------------------------------------------


@live
def test_it_is_installed_before_the_program_starts(run, write):
    write("import refbuf; print(refbuf.installed(), refbuf.stats().slots)")
    for arguments in ("program.py",), ("-m", "program"), ("--no-extensions", "program.py"):
        assert run("--slots", "64", *arguments).out == "True 64\n"
    assert run("--slots=32", "--heartbeat=2.5", "-c", "import program").out == "True 32\n"


PARALLEL = """
    import multiprocessing, os, sys
    from concurrent.futures import ProcessPoolExecutor
    import refbuf

    def say(*words):
        # At once, as other processes write there too.
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    say("imported", __name__, refbuf.installed(), refbuf.stats().slots)

    class Task:
        def __init__(self, number):
            self.number = number

    def work(task):
        import __main__
        return task.number * 2, refbuf.installed(), refbuf.stats().slots, os.getpid() != task.parent

    def nested(method, results):
        process = multiprocessing.get_context(method).Process(target=report, args=(results,))
        process.start()
        process.join()

    def report(results):
        results.put((refbuf.installed(), refbuf.stats().slots))

    def main(method):
        context = multiprocessing.get_context(method)
        tasks = [Task(number) for number in range(4)]
        for task in tasks:
            task.parent = os.getpid()
        with context.Pool(2) as pool:
            say(pool.map(work, tasks))
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            say(list(pool.map(work, tasks)))
        results = context.Queue()
        process = context.Process(target=nested, args=(method, results))
        process.start()
        say(results.get(timeout=60))
        process.join()
        say(process.exitcode)

    if __name__ == "__main__":
        main(sys.argv[1])
    """


@live
@pytest.mark.parametrize("given", [("program.py",), ("-m", "package.inner"), ("directory",)])
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_of_multiprocessing(run, write, method, given):
    for name in "program.py", "package/inner.py", "directory/tasks.py":
        write(PARALLEL, name)
    write("", "package/__init__.py")
    # What is defined in a __main__.py itself, multiprocessing does not find.
    write("import sys, tasks\nif __name__ == '__main__': tasks.main(sys.argv[1])", "directory/__main__.py")
    # A semaphore may be finalized while the tracker is told of another: the tracker says so.
    quiet = {"PYTHONWARNINGS": "ignore::DeprecationWarning,ignore:ResourceTracker called reentrantly"}
    ended = run("--slots", "64", "--no-extensions", "--heartbeat", "7.5", *given, method, env=quiet)
    assert ended.returncode == 0 and ended.err == "", ended
    lines = ended.out.splitlines()
    assert all(line.endswith(" True 64") for line in lines if line.startswith("imported"))
    results = [(number * 2, True, 64, True) for number in range(4)]
    wanted = [str(results), str(results), "(True, 64)", "0"]
    assert [line for line in lines if not line.startswith("imported")] == wanted


@live
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_of_multiprocessing_end_as_under_python(compare, write, method):
    write("""
        import multiprocessing, sys

        def fail(how):
            exec(how)

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            for how in "print('good', flush=True)", "sys.exit(3)", "1 / 0", "import os; os._exit(4)":
                process = context.Process(target=fail, args=(how,), name="child")
                process.start()
                process.join()
                print(process.exitcode, flush=True)
            with context.Manager() as manager:
                print(manager.list([1, 2]))
        """)
    compare("program.py", method)


@live
def test_processes_of_another_interpreter_are_left_alone(run, write):
    """multiprocessing.set_executable: there may be no refbuf."""
    other = write(f"""\
        #!/bin/sh
        echo "$@" >> others
        exec {sys.executable} "$@"
        """, "other")  # fmt: skip
    other.chmod(0o755)
    write("""
        import multiprocessing, refbuf, sys

        def work(results):
            results.put(refbuf.installed())

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            context.set_executable(sys.argv[1])
            results = context.Queue()
            process = context.Process(target=work, args=(results,))
            process.start()
            print(results.get(timeout=60))
            process.join()
            with open("others") as file:
                print(file.read().count("-m refbuf"))
        """)
    ended = run("program.py", other)
    assert (ended.out, ended.err) == ("False\n0\n", "")


@live
def test_the_resource_tracker_is_left_alone(run, write):
    write("""
        from multiprocessing import resource_tracker, shared_memory
        memory = shared_memory.SharedMemory(create=True, size=64)
        with open(f"/proc/{resource_tracker._resource_tracker._pid}/cmdline", "rb") as file:
            print(file.read().count(b"refbuf"))
        memory.close()
        memory.unlink()
        """)
    ended = run("program.py")
    assert (ended.out, ended.err) == ("0\n", "")


@live
@pytest.mark.parametrize("end", ["", "sys.exit(3)", "1 / 0", "raise KeyboardInterrupt"])
def test_stats_come_last(start, run, write, end):
    write(f"""
        import atexit, os, sys
        atexit.register(print, "at exit", file=sys.stderr)
        if not os.fork():
            sys.exit()
        os.wait()
        {end}
        """)
    ended, expected = run("--stats", "program.py"), start("program.py")
    assert ended.out == expected.out and ended.returncode == expected.returncode
    said, _, table = ended.err.partition("refbuf:\n")
    assert said == expected.err
    names = [line.rsplit(maxsplit=1)[0].strip() for line in table.splitlines()]
    assert names == ["hits", "misses", "share of hits", "atomics", "threads"]
    assert run("program.py").err == expected.err


@live
def test_stats_say_how_long_lulls_were(run):
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    ended = run("--stats", "-c", busy, env={"REFBUF_LULLS": "1"})
    *_, (name, seconds, unit) = (line.rsplit(maxsplit=2) for line in ended.err.splitlines())
    assert (name.strip(), unit) == ("in lulls", "s") and 0.1 <= float(seconds) < 10, ended


@live
def test_stats_survive_a_program_without_standard_error(run):
    ended = run("--stats", "-c", "import sys; sys.stderr = None")
    assert ended.out == "" and "hits" in ended.err


@live
def test_multiprocessing_is_not_loaded_for_programs_without_it(run):
    ended = run("-c", "import sys; print([name for name in sys.modules if name.startswith('multiproc')])")
    assert ended.out == "[]\n"


# -- bad usage ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "no program given"),
        (("--stats",), "no program given"),
        (("--slots",), "--slots takes a value"),
        (("--slots", "many", "x.py"), "--slots takes a number, not 'many'"),
        (("--slots", "3", "x.py"), ""),
        (("--slots", "-1", "x.py"), ""),
        (("--slots", "4.5", "x.py"), "--slots takes a number"),
        (("--heartbeat", "soon", "x.py"), "--heartbeat takes a number"),
        (("--heartbeat=nan", "x.py"), ""),
        (("--heartbeat", "0", "x.py"), "--heartbeat must be from 0.5 to 60000"),
        (("--stats=yes", "x.py"), "--stats takes no value"),
        (("--stat", "x.py"), "unknown option '--stat'"),
        (("--", "x.py"), "unknown option '--'"),
        (("-X", "dev", "x.py"), "python's own come before -m refbuf"),
        (("-m",), "-m takes a value"),
        (("--stats", "-c"), "-c takes a value"),
    ],
)
def test_bad_usage_is_one_sentence(run, arguments, sentence):
    ended = run(*arguments)
    assert ended.returncode == 2 and ended.out == ""
    assert ended.err.startswith("refbuf: run: ") and sentence in ended.err
    assert ended.err.count("\n") == 1


def test_help(run):
    for option in "-h", "--help":
        ended = run(option)
        assert ended.returncode == 0 and ended.err == ""
        assert ended.out.startswith("usage: python -m refbuf run") and "sys.executable" in ended.out


@pytest.mark.skipif(LIVE, reason="here live mode is supported")
def test_where_live_mode_is_not_supported_nothing_starts(run, write):
    write("print('started')")
    for arguments in ("program.py",), ("--stats", "-m", "program"), ("-c", "print('started')"), ("missing",):
        ended = run(*arguments)
        assert (ended.returncode, ended.out) == (2, "")
        assert ended.err.startswith("refbuf: ") and ended.err.count("\n") == 1
    assert not refbuf.installed()
