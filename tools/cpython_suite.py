#!/usr/bin/env python3
"""Run CPython's own tests under `python -m refbuf run`, and ask for what stock gives.

    python3 tools/cpython_suite.py PYTHON [--sample | MODULE...]

PYTHON is an interpreter with refbuf in it and its own Lib/test beside it. Without
modules, all of them run; with --sample, those of tests/cpython/sample.txt.

Each module is a process of its own: regrtest's -j would start workers that are not
live. A module that does not pass live is run stock: what fails there as well, test
by test, is this machine's, and the outcome is the same. All else is a failure.
Neither runs the tests of tests/cpython/exceptions.toml, which has the reasons.

Not run: tests that need resources which regrtest keeps off unless asked (network,
GUI, large files, minutes of CPU time). The interpreter gets none of the caller's
variables that begin with PYTHON.

The last line is as pytest's: `430 passed, 12 skipped, 3 xfailed in 700.12s`, where
a module that fails stock as well is xfailed. Exit status: 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
EXCEPTIONS = ROOT / "tests" / "cpython" / "exceptions.toml"
SAMPLE = ROOT / "tests" / "cpython" / "sample.txt"

LIVE = ("-m", "refbuf", "run")
STOCK = ()

#: regrtest's exit status where all tests were skipped, or the whole module.
NO_TESTS_RAN = 4

#: `FAIL: test_it (test.test_sys.SysTest.test_it) [case] (n=1)`, below a rule. What
#: follows the id is of a subtest, and may hold addresses.
FAILED_TEST = re.compile(r"^={70}\n(?:ERROR|FAIL|UNEXPECTED SUCCESS): (.*?\([\w.<>]+\)|.*)", re.MULTILINE)
CRASHED = re.compile(r"^test \S+ crashed -- Traceback.*?^(\w[^\n]*)$", re.MULTILINE | re.DOTALL)
TESTS_RUN = re.compile(r"^Total tests: run=([\d,]+)", re.MULTILINE)
TIMED_OUT = re.compile(r"^Timeout \(\d+:\d\d:\d\d\)!$", re.MULTILINE)

#: Seconds that regrtest gets to say where a module hangs, and lines that are shown of it.
GRACE = 30
LINES_SHOWN = 40

#: Says why there is nothing to run here, or nothing.
PROBE = """\
from importlib.util import find_spec
import refbuf
if not (find_spec("test") and find_spec("test.libregrtest")):
    print("this interpreter is installed without them")
else:
    print(refbuf._refbuf.live_obstacle() or "")
"""


class Outcome(NamedTuple):
    """How a module ended."""

    word: str
    """passed, skipped, failed, crashed or timed out."""
    failures: frozenset[str]
    """The ids of the tests that failed, or what stands for them."""
    tests: int
    """How many ran."""
    seconds: float
    log: Path


class Verdict(NamedTuple):
    """What comes of a module, live and, if it did not pass, stock."""

    module: str
    live: Outcome
    stock: Outcome | None

    @property
    def word(self) -> str:
        """As pytest would count it."""
        if self.live.word == "passed":
            return "passed"
        if self.live.word == "skipped" and self.stock.word == "skipped":
            return "skipped"
        # Crashes and hangs have no two causes that could be told to be the same.
        same = self.live.word == self.stock.word == "failed" and self.live.failures <= self.stock.failures
        return "xfailed" if same else "failed"


class Stopped(Exception):
    """Nothing is started any more."""


class Suite:
    """Runs modules of one interpreter's tests."""

    def __init__(self, python: str, timeout: int, logs: Path) -> None:
        self.python = python
        self.timeout = timeout
        self.logs = logs
        self.environment = {name: at for name, at in os.environ.items() if not name.startswith("PYTHON")}
        self.ignored: dict[str, list[str]] = {}
        for exception in tomllib.loads(EXCEPTIONS.read_text())["exception"]:
            self.ignored.setdefault(exception["module"], []).extend(exception["tests"])
        # Guards the two below: nothing starts once all has been stopped.
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def obstacle(self) -> str:
        return self._output("-c", PROBE)

    def modules(self, names: list[str]) -> list[str]:
        """The modules of these names, where packages that regrtest splits are split; without names, all."""
        every = self._output("-m", "test", "--list-tests").split()
        if not names:
            return every
        chosen = self._output("-m", "test", "--list-tests", *map(short, names)).split()
        known = set(map(short, every))
        unknown = [name for name in chosen if short(name) not in known]
        if unknown:
            raise SystemExit(f"{self.python} has no tests named {', '.join(unknown)}.")
        return list(dict.fromkeys(chosen))

    def judge(self, module: str) -> Verdict:
        live = self.run(module, LIVE)
        return Verdict(module, live, None if live.word == "passed" else self.run(module, STOCK))

    def run(self, module: str, how: tuple[str, ...]) -> Outcome:
        log = self.logs / f"{short(module)}.{'live' if how else 'stock'}.log"
        ignored = [part for test in self.ignored.get(short(module), ()) for part in ("-i", test)]
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="refbuf-", ignore_cleanup_errors=True) as folder:
            regrtest = [
                "-m",
                "test",
                "-v",
                f"--timeout={self.timeout}",
                "--tempdir",
                folder,
                *ignored,
                module,
            ]
            # The folder is empty. -P is left out: tests of the command line would meet it in their children.
            status = self._wait([self.python, *how, *regrtest], Path(folder), log)
        return outcome(status, log, time.monotonic() - started)

    def stop(self) -> None:
        """Ends all that runs; nothing starts from now on."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                kill(process)

    def _wait(self, command: list[str], folder: Path, log: Path) -> int | None:
        """The exit status; None where the process did not end in time."""
        with log.open("wb") as sink:
            with self._lock:
                if self._stopped:
                    raise Stopped
                # A session of its own, so that what it leaves behind can be ended.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=self.environment,
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                return process.wait(self.timeout + GRACE)
            except subprocess.TimeoutExpired:
                return None
            finally:
                kill(process)
                process.wait()
                with self._lock:
                    self._running.discard(process)

    def _output(self, *arguments: str) -> str:
        process = subprocess.run(
            [self.python, "-P", *arguments], env=self.environment, capture_output=True, text=True
        )
        if process.returncode != 0:
            raise SystemExit(f"{self.python}: {process.stderr.strip().rpartition(chr(10))[2]}")
        return process.stdout.strip()


def kill(process: subprocess.Popen) -> None:
    """Ends a process and what it has started, if any of it is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def short(module: str) -> str:
    """regrtest names the modules of packages in full, and no others."""
    return module.removeprefix("test.")


def outcome(status: int | None, log: Path, seconds: float) -> Outcome:
    """What a process of regrtest has made of its module."""
    text = log.read_text(errors="replace")
    failures = frozenset(FAILED_TEST.findall(text)) | frozenset(CRASHED.findall(text))
    if status == 0:
        word, failures = "passed", frozenset()
    elif status == NO_TESTS_RAN:
        word, failures = "skipped", frozenset()
    elif status is None or (status == 1 and TIMED_OUT.search(text)):
        word = "timed out"
    elif status < 0:
        word = "crashed"
        failures |= {f"killed by {signal.Signals(-status).name}"}
    else:
        word = "failed"
        failures = failures or frozenset({f"exit status {status}"})
    ran = TESTS_RUN.search(text)
    return Outcome(word, failures, int(ran[1].replace(",", "")) if ran else 0, seconds, log)


def report(verdict: Verdict, place: str, width: int) -> None:
    """One line, and where something is wrong what there is to see of it."""
    module, live, stock = verdict
    line = f"{place} {short(module):{width}} {live.seconds:7.1f} s  "
    if verdict.word in ("passed", "skipped"):
        print(line + verdict.word, flush=True)
    elif verdict.word == "xfailed":
        print(f"{line}fails stock as well: {listed(live.failures)}", flush=True)
    else:
        beyond = live.failures - stock.failures if stock.word == "failed" else live.failures
        print(f"{line}FAILED: {live.word} live, {stock.word} stock: {listed(beyond)}")
        for line in excerpt(live.log.read_text(errors="replace")):
            print(f"    {line}")
        print(f"    (all of it: {live.log}, {stock.log})", flush=True)


def listed(failures: frozenset[str]) -> str:
    return ", ".join(sorted(failures)) or "it does not say where"


def excerpt(text: str) -> list[str]:
    """Tracebacks of tests, or the last that was said."""
    lines = text.rstrip().splitlines()
    first = next((n for n, line in enumerate(lines) if line == "=" * 70), None)
    return lines[-LINES_SHOWN:] if first is None else lines[first + 1 : first + 1 + LINES_SHOWN]


def run_all(suite: Suite, modules: list[str], jobs: int) -> list[Verdict]:
    """The verdicts, each reported as it comes."""
    width = max(len(short(module)) for module in modules)
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(suite.judge, module) for module in modules}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    verdicts.append(future.result())
                    place = f"[{len(verdicts):{len(str(len(modules)))}}/{len(modules)}]"
                    report(verdicts[-1], place, width)
        except BaseException:
            suite.stop()
            raise
    return verdicts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", metavar="PYTHON")
    parser.add_argument(
        "modules", metavar="MODULE", nargs="*", help="as for python -m test; all, if none is given"
    )
    parser.add_argument("--sample", action="store_true", help="the modules of tests/cpython/sample.txt")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default: 2)")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for a module (default: 600)")
    parser.add_argument(
        "--logs", type=Path, default=ROOT / "build" / "cpython", help="a folder for the output"
    )
    options = parser.parse_args()
    if options.sample and options.modules:
        parser.error("--sample has its own modules")
    if options.jobs < 1 or options.timeout < 1:
        parser.error("--jobs and --timeout begin at 1")
    return options


def main() -> int:
    options = arguments()
    # The processes have sessions of their own: they do not end with this one by themselves. And where
    # it is started with SIGINT ignored, they are not to be: tests wait for KeyboardInterrupt.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    python = shutil.which(options.python)
    if python is None:
        raise SystemExit(f"{options.python} is not an executable.")
    options.logs.mkdir(parents=True, exist_ok=True)
    suite = Suite(os.path.abspath(python), options.timeout, options.logs.resolve())
    if obstacle := suite.obstacle():
        print(f"SKIPPED CPython's own tests: {obstacle}")
        return 0
    names = SAMPLE.read_text().split() if options.sample else options.modules
    modules = suite.modules(names)
    started = time.monotonic()
    try:
        verdicts = run_all(suite, modules, options.jobs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    summarize(verdicts, time.monotonic() - started)
    return 1 if any(verdict.word == "failed" for verdict in verdicts) else 0


def summarize(verdicts: list[Verdict], seconds: float) -> None:
    tests = sum(verdict.live.tests for verdict in verdicts)
    print(f"{tests:,} tests in {len(verdicts)} modules, live")
    for word, title in (("xfailed", "fails stock as well"), ("failed", "FAILED")):
        for verdict in verdicts:
            if verdict.word == word:
                print(f"{title}: {short(verdict.module)}")
    counts = Counter(verdict.word for verdict in verdicts)
    order = ("passed", "skipped", "xfailed", "failed")
    print(", ".join(f"{counts[word]} {word}" for word in order if counts[word]) + f" in {seconds:.2f}s")


if __name__ == "__main__":
    sys.exit(main())
