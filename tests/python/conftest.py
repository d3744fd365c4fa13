"""Set-up: the C extension, the marker for what needs buffers, and subprocesses.

Environment, for runs of the suite within the suite (test_settings.py):
REFBUF_TEST_SLOTS and REFBUF_TEST_ACCOUNT_SLOTS are the numbers of slots to configure.
"""

import contextlib
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap

import pytest
import refbuf
from building import HERE, compile_extension
from programs import Ended

# A test that takes longer hangs: then all threads' stacks are shown.
LONGEST_TEST = 150


# Whether there are lulls depends on the processor, and with that what is counted where: see test_lulls.py.
os.environ.setdefault("REFBUF_LULLS", "0")


def pytest_configure(config):
    config.addinivalue_line("markers", "needs_buffering: on builds with a GIL nothing is buffered")
    config.addinivalue_line("markers", "counts_alone: under live mode the interpreter counts as well")
    if "REFBUF_TEST_SLOTS" in os.environ:
        refbuf.configure(slots=int(os.environ["REFBUF_TEST_SLOTS"]))
    if "REFBUF_TEST_ACCOUNT_SLOTS" in os.environ:
        refbuf.configure(account_slots=int(os.environ["REFBUF_TEST_ACCOUNT_SLOTS"]))
    config.extensions = tempfile.mkdtemp(prefix="refbuf-tests-")
    for name in "countext", "countext_too":
        compile_extension(name, config.extensions)
    for name in "accountext", "dyingext":
        compile_extension(name, config.extensions, source=f"{name}.c")
    sys.path.insert(0, config.extensions)
    # pytest puts another file in the place of standard error.
    config.real_stderr = os.fdopen(os.dup(2), "w")


def pytest_unconfigure(config):
    shutil.rmtree(config.extensions, ignore_errors=True)


def pytest_collection_modifyitems(items):
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        unbuffered = pytest.mark.skip(reason="attached threads do not buffer on builds with a GIL")
        for item in items:
            if "needs_buffering" in item.keywords:
                item.add_marker(unbuffered)

    if refbuf.installed():
        live = pytest.mark.skip(reason="the interpreter's own operations are not to be told apart")
        for item in items:
            if "counts_alone" in item.keywords:
                item.add_marker(live)


@pytest.fixture(autouse=True)
def watchdog(request):
    """Ends a run that hangs, and says where."""
    faulthandler.dump_traceback_later(LONGEST_TEST, exit=True, file=request.config.real_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def quiet_buffers():
    """Every test starts with all credits settled and the heartbeat at 10 ms."""
    refbuf.configure(heartbeat_ms=10)
    refbuf.flush_all()


@pytest.fixture
def environment(request):
    """For processes that import what the tests import."""
    paths = [str(HERE), request.config.extensions, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONWARNINGS": "ignore::DeprecationWarning",  # fork with threads
    }


@pytest.fixture
def run_process(environment):
    """Runs a command, which must end in time, well, and without a word on
    standard error, unless told otherwise; returns what it printed."""

    def run(command, *, timeout=60, returncode=0, stderr="", env=None, cwd=None):
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, **(env or {})},
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler shows where it hangs
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, err = process.communicate(timeout=10)
                pytest.fail(f"hung for {timeout} s\n{out}\n{err}")
            process.kill()
            raise
        assert process.returncode == returncode, f"return code {process.returncode}\n{out}\n{err}"
        if stderr is not None:
            assert err == stderr
        return out

    return run


@pytest.fixture
def run_python(run_process):
    """Runs code, with `first` before it, in an interpreter of its own, which is under
    live mode where this one is; see run_process."""
    python = [sys.executable, *(["-m", "refbuf", "run"] if refbuf.installed() else [])]

    def run(code, *arguments, first="", **options):
        code = first + textwrap.dedent(code)
        return run_process([*python, "-c", code, *arguments], **options)

    return run


# -- programs, under python and under run; see programs.py -----------------------


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
