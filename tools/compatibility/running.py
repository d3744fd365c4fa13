"""Runs a package's own tests, both ways at once, a process each that take turns."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

from .building import Job
from .common import SHIM, STOCK, WAYS, RunFailed, last_words, without_python

#: Seconds of a turn, and that a package's tests may take.
TURN = 0.01


LIMIT = 900


#: A plugin of pytest, in each process that runs tests: says what it has run with, and how long.
PLUGIN = """\
import json, os, random, resource, sys

notes = {"modules": {}}


def seconds():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def look():
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".so"):
            notes["modules"][name] = file


def pytest_collection_finish(session):
    look()
    notes["began"] = seconds()


def pytest_runtest_setup(item):
    # Both ways the same work.
    random.seed(os.environ["PYTHONHASHSEED"])


def pytest_sessionfinish(session, exitstatus):
    notes["seconds"] = seconds() - notes.get("began", seconds())
    look()
    notes["gil"] = getattr(sys, "_is_gil_enabled", lambda: True)()
    refbuf = sys.modules.get("refbuf")
    notes["refbuf"] = refbuf is not None
    if refbuf is not None:
        stats = refbuf.stats()
        notes["counts"] = {name: getattr(stats, name) for name in ("hits", "misses", "acquires", "take_ins")}
    with open(os.environ["REFBUF_COMPAT_NOTES"], "w") as file:
        json.dump(notes, file)
"""


class Run(NamedTuple):
    """What came of a package's tests, once, one way."""

    outcomes: dict[str, str]
    """passed, failed, error, skipped or xfailed, by test."""
    seconds: float
    counts: dict[str, int]
    """refbuf's, of objects that other threads own."""
    gil: bool


def outcomes(report: str) -> dict[str, str]:
    """The outcome of each test, by its name, of a report in JUnit's format."""
    found: dict[str, str] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        # Of an object, in the name of a case.
        name = re.sub(r"0x[0-9a-f]+", "0x", name)
        kinds = {child.tag for child in case}
        skipped = case.find("skipped")
        if "error" in kinds:
            word = "error"
        elif "failure" in kinds:
            word = "failed"
        elif skipped is not None:
            word = "xfailed" if skipped.get("type") == "pytest.xfail" else "skipped"
        else:
            word = "passed"
        number, key = 1, name
        while key in found:
            number += 1
            key = f"{name} ({number})"
        found[key] = word
    return found


class Worker:
    """A process that runs tests, in a session of its own: it ends with all that it has started."""

    def __init__(self, job: Job, way: str, seed: int) -> None:
        self.job, self.way = job, way
        self.folder = job.folder / way / "run"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        tests, site = self.folder / "tests", self.folder / "site"
        tests.mkdir()
        site.mkdir()
        (unpacked,) = (job.folder / way / "source").iterdir()
        for name in job.package.copy:
            at = tests / name
            at.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (unpacked / name).is_dir() else shutil.copy2
            copy(unpacked / name, at)
        # A package's own settings may ask for plugins that measure coverage.
        (tests / "compat.ini").write_text("[pytest]\n")
        (site / "refbuf_compat.py").write_text(PLUGIN)
        (site / "refbuf").symlink_to(job.interpreter.package)
        self.report = self.folder / "report.xml"
        self.notes = self.folder / "notes.json"
        self.log = self.folder / "tests.log"
        self.built = job.build_folder(way)
        environment = {
            **without_python(os.environ),
            "PYTHONPATH": os.pathsep.join((str(self.built), str(site))),
            "PYTHONHASHSEED": str(seed),
            "PYTHONDONTWRITEBYTECODE": "1",
            "REFBUF_COMPAT_NOTES": str(self.notes),
            **job.package.environment,
        }
        if job.interpreter.gil:
            environment.pop("PYTHON_GIL", None)
        elif way == SHIM:
            environment["REFBUF_REQUIRE"] = "1"
        command = [str(job.interpreter.python), "-P", "-m", "pytest", "-c", "compat.ini", "--rootdir=."]
        command += ["-p", "refbuf_compat", "-p", "no:cacheprovider", "-q", f"--junitxml={self.report}"]
        # Of the environment, whether the tests use hypothesis or not.
        command += [f"--hypothesis-seed={seed}", *job.package.arguments]
        command += job.package.gil if job.interpreter.gil else job.package.free_threaded
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=tests,
                env=environment,
                start_new_session=True,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, number: int) -> None:
        """To all that belong to it, if any is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def result(self) -> Run:
        """Of a process that has ended, or did not in time."""
        status = self.process.poll()
        crash = None
        if status is None:
            crash = f"took more than {LIMIT} s"
        elif status < 0:
            crash = f"killed by {signal.Signals(-status).name}"
        elif status > 1 or not self.report.exists():
            crash = f"exit status {status}: {last_words(self.log.read_text(errors='replace'))}"
        if crash and self.way == STOCK:
            raise RunFailed(STOCK, f"the stock tests did not run to their end: {crash}")
        if crash:
            return Run({"(the process)": crash}, 0.0, {}, True)
        notes = json.loads(self.notes.read_text())
        self._check(notes)
        found = outcomes(self.report.read_text())
        return Run(found, notes["seconds"], notes.get("counts", {}), notes["gil"])

    def _check(self, notes: dict[str, Any]) -> None:
        """That the tests had this build, and with it refbuf or not."""
        for name in self.job.package.modules:
            file = notes["modules"].get(name)
            if file is None:
                raise RunFailed(self.way, f"the {self.way} tests did not load {name}")
            if not Path(file).resolve().is_relative_to(self.built.resolve()):
                raise RunFailed(self.way, f"the {self.way} tests had {name} from {file}")
        wanted = self.way == SHIM and not self.job.interpreter.gil
        if notes["refbuf"] != wanted:
            raise RunFailed(self.way, f"the {self.way} tests {'did not have' if wanted else 'had'} refbuf")


def take_turns(first: Worker, second: Worker) -> None:
    """Lets one of them run at a time, until both have ended, or their time is over."""
    deadline = time.monotonic() + 2 * LIMIT
    runs, waits = first, second
    waits.signal(signal.SIGSTOP)
    while not runs.ends_within(TURN):
        runs.signal(signal.SIGSTOP)
        waits.signal(signal.SIGCONT)
        runs, waits = waits, runs
        if time.monotonic() > deadline:
            return
    waits.signal(signal.SIGCONT)
    waits.ends_within(LIMIT)


def run_round(job: Job, number: int) -> dict[str, Run]:
    """Both ways; who goes first takes turns."""
    order = WAYS if number % 2 == 0 else WAYS[::-1]
    with contextlib.ExitStack() as stack:
        workers = {way: stack.enter_context(Worker(job, way, number)) for way in order}
        take_turns(*workers.values())
        return {way: workers[way].result() for way in WAYS}
