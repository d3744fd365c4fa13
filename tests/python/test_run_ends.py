"""`python -m refbuf run X` against `python X`: how a program ends, and what is said of it."""

import signal
import sysconfig
import textwrap

import pytest
from programs import live

# What no traceback of a script has in it.
HIDDEN = ("refbuf", "<frozen runpy>")

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
    "extension that cannot be loaded": "import noextension",
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
    write("no machine code", "noextension" + sysconfig.get_config_var("EXT_SUFFIX"))
    write(code)
    script = compare("program.py")
    assert not any(word in script.out + script.err for word in HIDDEN)
    compare("-c", code)
    compare("-", stdin=code.encode())
    # Here python shows two frames of runpy.
    module = compare("-m", "program")
    assert "refbuf" not in module.err


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
