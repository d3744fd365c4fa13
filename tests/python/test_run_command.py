"""`python -m refbuf run X` against `python X`: what they print and how they end must be the same."""

import platform
import py_compile
import signal
import subprocess
import sys
import textwrap
import zipfile

import pytest
import refbuf

from support import BUFFERED

LIVE = BUFFERED and sys.platform == "linux" and platform.machine() == "x86_64"
live = pytest.mark.skipif(not LIVE, reason="live mode is for free-threaded CPython on x86-64 Linux")

# What a program can see of how it was started; addresses are those of that process.
ABOUT = """\
import re, sys

def clean(value):
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))

for name, value in list(globals().items()):
    print(name, "module" if name == "__builtins__" else clean(value))
print(sys.argv, sys.path, sys.flags, sys.warnoptions, sys._xoptions)
print(sys.modules["__main__"].__dict__ is globals(), sys.exc_info(), __name__)
print(re.sub(" at 0x[0-9a-f]+", "", repr(sys.modules["__main__"])))
"""

HIDDEN = ("refbuf", "<frozen runpy>")


class Ended:
    """How a program ended, and what it said."""

    def __init__(self, command, stdin, **options):
        process = subprocess.run(command, input=stdin, capture_output=True, timeout=60, **options)
        self.returncode = process.returncode
        self.out = process.stdout.decode(errors="backslashreplace")
        self.err = process.stderr.decode(errors="backslashreplace")

    def __eq__(self, other):
        return (self.returncode, self.out, self.err) == (other.returncode, other.out, other.err)

    def __repr__(self):
        return f"<ended with {self.returncode}>\n{self.out}\n{self.err}"


@pytest.fixture
def write(tmp_path):
    def write(code, name="program.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(code if isinstance(code, bytes) else textwrap.dedent(code).encode())
        return file

    return write


@pytest.fixture
def start(environment, tmp_path):
    """Runs python with these arguments."""

    def start(*arguments, stdin=b"", cwd=tmp_path, env=None):
        command = [sys.executable, *arguments]
        return Ended(command, stdin, cwd=cwd, env={**environment, **(env or {})})

    return start


@pytest.fixture
def run(start):
    """Runs a program with `run`."""

    def run(*arguments, python=(), **options):
        return start(*python, "-m", "refbuf", "run", *arguments, **options)

    return run


@pytest.fixture
def compare(start, run):
    """Runs a program both ways; returns how it ends either way."""

    def compare(*arguments, python=(), **options):
        expected = start(*python, *arguments, **options)
        assert run(*arguments, python=python, **options) == expected
        return expected

    return compare


# -- how a program is given ---------------------------------------------------


@live
@pytest.mark.parametrize("python", [(), ("-P",), ("-O", "-X", "dev"), ("-W", "error"), ("-B", "-s", "-u")])
def test_a_program_sees_what_it_sees_under_python(compare, write, python):
    write(ABOUT)
    write(ABOUT, "package/__main__.py")
    write("", "package/__init__.py")
    write(ABOUT, "package/inner.py")
    # With -P nothing of the current directory is found.
    for found, arguments in (
        (True, ("program.py",)),
        (True, ("program.py", "-m", "--stats", "a b", "")),
        (True, ("./program.py", "x")),
        (True, ("package/../program.py",)),
        (True, ("package",)),
        (True, ("./package/", "x")),
        (True, ("-c", ABOUT, "-c", "x")),
        (True, (f"-c{ABOUT}",)),
        (True, ("-", "x")),
        ("-P" not in python, ("-m", "package", "-x")),
        ("-P" not in python, ("-mpackage",)),
        ("-P" not in python, ("-m", "package.inner", "--help")),
    ):
        ended = compare(*arguments, python=python, stdin=ABOUT.encode())
        assert ("__builtins__ module" in ended.out) == found, arguments


@live
def test_isolated(compare, start, write):
    if start("-I", "-c", "import refbuf._cli.run").returncode:
        pytest.skip("refbuf is not installed where -I finds it")
    write(ABOUT)
    for arguments in ("program.py",), ("-c", ABOUT), ("-", "x"), ("-m", "program"):
        compare(*arguments, python=("-I",), stdin=ABOUT.encode())


@live
def test_links_are_followed_for_the_path_alone(compare, write, tmp_path):
    write(ABOUT, "there/program.py")
    (tmp_path / "link.py").symlink_to("there/program.py")
    (tmp_path / "chain.py").symlink_to("link.py")
    (tmp_path / "directory").symlink_to("there")
    for script in "link.py", "chain.py", "directory/program.py", str(tmp_path / "link.py"):
        assert str(tmp_path / "there") in compare(script).out


@live
def test_a_program_elsewhere(compare, write, tmp_path):
    file = write(ABOUT)
    below = tmp_path / "below"
    below.mkdir()
    compare("../program.py", cwd=below)
    compare(file, cwd="/")
    compare("-c", ABOUT, cwd="/")


@live
def test_zip_files(compare, tmp_path):
    file = tmp_path / "program.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("__main__.py", ABOUT + "import helper\nhelper.fail()\n")
        archive.writestr("helper.py", "def fail():\n    raise ValueError('in a zip file')\n")
    for script in "program.zip", file:
        assert "ValueError: in a zip file" in compare(script).err
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("other.py", "")
    assert "can't find '__main__' module" in compare("program.zip").err


@live
def test_compiled_files(compare, write, tmp_path):
    file = write(ABOUT + "raise ValueError('compiled')\n")
    py_compile.compile(str(file), cfile=str(tmp_path / "compiled.pyc"))
    (tmp_path / "other-name").write_bytes((tmp_path / "compiled.pyc").read_bytes())
    for script in "compiled.pyc", "other-name":
        assert "ValueError: compiled" in compare(script).err
    write(b"\0\0\0\0" * 8, "bad.pyc")
    assert "Bad magic number" in compare("bad.pyc").err


@live
def test_standard_input_is_the_programs(compare, write):
    write("import sys; print([line for line in sys.stdin], sys.stdin.buffer.read())")
    assert "one" in compare("program.py", stdin=b"one\ntwo").out
    # All of it is the program where it is the program.
    program = b"import sys\nprint(sys.stdin.read())\ndef fail():\n    raise ValueError\nfail()\n"
    assert "<stdin>" in compare("-", stdin=program).err
    compare("-", stdin=b"")
    compare("/dev/stdin", stdin=program)


@live
@pytest.mark.parametrize(
    "arguments",
    [
        ("missing.py",),
        ("there/missing.py", "-x"),
        ("/missing",),
        ("program.py/",),
        ("empty",),
        ("-m", "missing"),
        ("-m", "missing.module"),
        ("-m", "program.inner"),
        ("-m", "program.py"),
        ("-m", ".relative"),
        ("-m", "space"),
        ("-m", "package"),
        ("-m", "package.broken"),
        ("-m", "sys"),
        ("-m", "failing.inner"),
    ],
)
def test_what_cannot_be_run(compare, write, tmp_path, arguments):
    write("print('started')")
    (tmp_path / "empty").mkdir()
    (tmp_path / "space").mkdir()
    write("", "package/__init__.py")
    write("import nothing_like_it", "package/broken.py")
    write("1 / 0", "failing/__init__.py")
    ended = compare(*arguments)
    assert ended.returncode in (1, 2) and ended.err


# -- how a program ends -------------------------------------------------------

ENDS = {
    "falls off": "print('done')",
    "exit": "import sys; sys.exit()",
    "exit 3": "import sys; sys.exit(3)",
    "exit -1": "import sys; sys.exit(-1)",
    "exit 256": "import sys; sys.exit(256)",
    "exit None": "raise SystemExit(None)",
    "exit str": "raise SystemExit('a sentence')",
    "exit object": "raise SystemExit([1, 2])",
    "exit True": "raise SystemExit(True)",
    "exit in a block": "try:\n    exit(4)\nfinally:\n    print('left')",
    "os._exit": "import os; os._exit(5)",
    "abort": "import os, signal; signal.raise_signal(signal.SIGKILL)",
    "closed output": "import sys; sys.stdout.close()",
}


@live
@pytest.mark.parametrize("name", ENDS)
def test_exit_statuses(compare, write, name):
    write(ENDS[name])
    compare("program.py")
    compare("-c", ENDS[name])
    compare("-m", "program")


FAILURES = {
    "top": "1 / 0",
    "nested": """
        def outer(number):
            return inner(number)

        def inner(number):
            return [][number]

        outer(3)
        """,
    "chained": """
        try:
            try:
                {}["key"]
            except KeyError as error:
                raise ValueError("from") from error
        except ValueError:
            raise TypeError("while")
        """,
    "group": """
        def fail():
            raise ValueError(1)
        try:
            fail()
        except ValueError as error:
            raise ExceptionGroup("some", [error, TypeError(2)])
        """,
    "notes": "error = ValueError('with')\nerror.add_note('a note')\nraise error",
    "imported": "import broken",
    "imported syntax error": "import unreadable",
    "missing module": "import nothing_like_it",
    "misspelled": "import sys\nsys.pth",
    "exec": "exec('x = 1\\ny = x.z')",
    "eval": "eval('1 +')",
    "syntax": "print('never')\nx = = 1\n",
    "unclosed": "print('never')\nx = (1,\ny\n",
    "indentation": "if True:\nprint()\n",
    "tab": "if True:\n    x = 1\n\tx = 2\n",
    "return": "return 1",
    "unicode": "x = 'äöü' + 1 # ü",
    "warning": "x = '\\d'\nimport warnings\nwarnings.warn('careful')\n",
    "base exception": "class Mine(BaseException): pass\nraise Mine('mine')",
    "generator exit": "raise GeneratorExit",
    "traceback of its own": "raise ValueError('bare').with_traceback(None)",
    "hook": """
        import sys, traceback
        sys.excepthook = lambda *error: print(error[:2], traceback.extract_tb(error[2]))
        1/0
        """,
    "hook fails": "import sys\ndef hook(*_):\n    raise TypeError('hook')\nsys.excepthook = hook\n1/0",
    "hook exits": "import sys\ndef hook(*_):\n    sys.exit(7)\nsys.excepthook = hook\n1/0",
    "hook sees": """
        import sys, traceback
        def hook(kind, error, trace):
            print(traceback.format_exception(error), sys.last_traceback is trace, sys.last_value is error)
            print(sys.excepthook is hook, globals().get("__file__"))
            sys.__excepthook__(kind, error, trace)
        sys.excepthook = hook
        1/0
        """,
    "shown and raised": """
        import traceback
        try:
            1/0
        except ZeroDivisionError:
            traceback.print_exc()
            raise
        """,
}


@live
@pytest.mark.parametrize("name", FAILURES)
def test_tracebacks(compare, write, name):
    code = textwrap.dedent(FAILURES[name])
    write("def fail():\n    raise OSError(2, 'broken')\nfail()", "broken.py")
    write("x = = 1", "unreadable.py")
    write(code)
    script = compare("program.py")
    assert not any(word in script.out + script.err for word in HIDDEN)
    compare("-c", code)
    compare("-", stdin=code.encode())
    # Here python shows two frames of runpy.
    module = compare("-m", "program")
    assert "_cli" not in module.err


@live
@pytest.mark.parametrize(
    "source",
    [
        b"x = '\xff'\n",
        b"\n\n# \xe4\nprint('never')\n",
        b"# coding: utf-8\nx = '\xff'\n",
        b"# coding: ascii\nx = '\xff'\n",
        b"# coding: nonsense\nx = 1\n",
        b"# -*- coding: latin-1 -*-\nprint(ascii('\xff'))\n1 / 0\n",
        b"\xef\xbb\xbfprint('mark')\r\n1 / 0\r\n",
        b"print(1)\r\nx = [\r\n",
        b"",
    ],
)
def test_encodings_of_scripts(compare, write, source):
    write(source)
    compare("program.py")
    # Python wants to go back in what it has read to find other encodings, which a
    # pipe does not allow. Ours can.
    if b"latin-1" not in source:
        compare("-", stdin=source)


@live
def test_code_that_is_no_text(compare):
    compare("-c", b"print('\xff')")


@live
@pytest.mark.parametrize("arguments", [("program.py",), ("-m", "program"), ("-c",), ("-",)])
def test_interrupts_end_the_process_as_signals(compare, write, arguments):
    code = """
        import atexit, os, signal, time
        atexit.register(print, "at exit")
        def wait():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        wait()
        """
    write(code)
    code = textwrap.dedent(code)
    if arguments == ("-c",):
        arguments = ("-c", code)
    ended = compare(*arguments, stdin=code.encode())
    assert ended.returncode == -signal.SIGINT
    assert ended.out == "at exit\n" and ended.err.endswith("KeyboardInterrupt\n")


@live
def test_an_interrupt_that_is_handled(compare):
    code = "import signal\ntry:\n    signal.raise_signal(2)\nexcept KeyboardInterrupt:\n    print('caught')"
    assert compare("-c", code).out == "caught\n"


@live
def test_the_interpreter_stays_with_i(compare, write):
    write("import sys\nx = 'kept'\nif sys.argv[1:]: sys.exit(2)")
    for arguments in ("program.py",), ("program.py", "exit"):
        ended = compare(*arguments, python=("-i",), stdin=b"print(x)\n")
        assert "kept" in ended.out


@live
def test_order_of_what_runs_at_exit(compare, write):
    code = """
        import atexit, sys, threading, time

        class Last:
            def __del__(self):
                print("deleted", sys is not None)

        def thread():
            time.sleep(0.1)
            print("thread", threading.main_thread().is_alive(), "__file__" in globals())

        def callback(name):
            print(name, "__file__" in globals(), "__cached__" in globals())

        last = Last()
        atexit.register(callback, "first")
        atexit.register(callback, "second")
        failing = threading.Thread(target=lambda: 1 / 0, name="failing")
        failing.start()
        failing.join()
        threading.Thread(target=thread).start()
        print("end", flush=True)
        if sys.argv[1:]:
            exec(sys.argv[1])
        """
    write(code)
    for how in (), ("sys.exit(3)",), ("1 / 0",), ("raise KeyboardInterrupt",):
        compare("program.py", *how)
        compare("-m", "program", *how)
        compare("-", *how, stdin=textwrap.dedent(code).encode())


# -- what a program does ------------------------------------------------------


@live
def test_its_classes_are_those_of_main(compare, write):
    code = """
        import inspect, pickle, sys
        class Mine:
            "Documented."
            def method(self): return 1
        print(pickle.loads(pickle.dumps(Mine)) is Mine, type(pickle.loads(pickle.dumps(Mine()))) is Mine)
        print(inspect.getsource(Mine.method), inspect.getmodule(Mine) is sys.modules["__main__"])
        import __main__
        print(__main__.Mine is Mine)
        """
    write(code)
    compare("program.py")
    compare("-m", "program")
    compare("-c", textwrap.dedent(code))


@live
def test_modules_beside_it_are_found(compare, write):
    write("import beside; print(beside.__file__, beside.value)")
    write("value = 1", "beside.py")
    compare("program.py")
    compare("-m", "program")
    compare("-c", "import beside; print(beside.__file__)")


@live
def test_future_imports_are_the_programs_own(compare):
    compare("-c", "def f(x: undefined.name = 1): pass")
    compare("-c", "from __future__ import annotations\ndef f(x: a.b): pass\nprint(f.__annotations__)")


@live
def test_a_forked_child_ends_like_the_program(compare, write):
    write("""
        import os, sys
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        else:
            sys.exit(9)
        """)
    assert compare("program.py").out == "9\n"


@live
def test_multiprocessing_is_not_loaded_for_programs_without_it(run):
    ended = run("-c", "import sys; print([name for name in sys.modules if name.startswith('multiproc')])")
    assert ended.out == "[]\n"


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
def test_stats_survive_a_program_without_standard_error(run):
    ended = run("--stats", "-c", "import sys; sys.stderr = None")
    assert ended.out == "" and "hits" in ended.err


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
        (("--stats=yes", "x.py"), "unknown option"),
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
