#!/usr/bin/env python3
"""Build other people's extensions stock and with the shim, and compare what their own tests say.

    python3 tools/compat.py PYTHON... [--sample | --packages a,b] [--rounds N] [--json FILE] [--write]

Each PYTHON is an interpreter with refbuf in it. tests/compat/packages.toml has the packages:
a pinned source distribution each, with its hash, and how its own tests are run; and
tests/compat/requirements.txt pins what builds and tests need. Nothing is changed in a source.

Both builds have the same flags, but for the shim's -I. A round runs the tests of both, a process
each, which take turns of a few milliseconds with the other one stopped, so that all that changes
the machine's speed changes it for both. Time is that of processors while tests run, over all
threads and children, without start-up and collection. A package counts with its medians, and
with the median of its rounds' ratios.

That each process really tests what it should is checked: which files its extension modules came
from, that refbuf's capsule is named in all of them or in none, and that refbuf was imported, or
was not. On a free-threaded interpreter the shim's has REFBUF_REQUIRE=1.

Tests that fail with the shim, or end in any other way than stock, are listed by name. Where there are
any, more rounds follow: a test that has had several outcomes stock may have each of them with the
shim. Such tests are listed too, with how often they failed.

Exit status: 0 if all outcomes are the same, 1 if not, 2 for bad usage and for what is missing
here, 130 if interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "compat"
PACKAGES = DATA / "packages.toml"
REQUIREMENTS = DATA / "requirements.txt"
DOCUMENT = ROOT / "docs" / "COMPAT.md"

STOCK, SHIM = "stock", "shim"
WAYS = (STOCK, SHIM)

#: Outcomes of tests that are not as their authors want them.
BAD = ("failed", "error")

#: Setting CFLAGS replaces the interpreter's own.
FLAGS = "-O2 -DNDEBUG"
#: What an extension that looks for refbuf has in it.
CAPSULE = b"refbuf._C_API"
#: What the shim may cost where there is a GIL.
GOAL = 1.02
#: Rounds that are added, at most, to see whether a test that differs does so stock as well.
MORE_ROUNDS = 8
#: Seconds of a turn, and that a package's tests may take.
TURN = 0.01
LIMIT = 900
LINES_SHOWN = 15
NAMES_SHOWN = 4

PROBE = """\
import json, os, sys, sysconfig
import refbuf
print(json.dumps({
    "version": sys.version.split()[0],
    "gil": not sysconfig.get_config_var("Py_GIL_DISABLED"),
    "implementation": sys.implementation.name,
    "base": os.path.realpath(sys.executable),
    "package": os.path.dirname(os.path.abspath(refbuf.__file__)),
    "shimdir": refbuf.get_shimdir(),
}))
"""

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


class CompatError(Exception):
    """Says in one sentence why nothing can be compared. Exit status 2."""


class MissingTool(CompatError):
    """Something that has to be installed here is not."""


class DownloadFailed(CompatError):
    """A source distribution could not be had, or is not the pinned one."""


class BuildFailed(Exception):
    """A package did not build, one way."""

    def __init__(self, way: str, log: Path) -> None:
        super().__init__(f"the {way} build failed: {last_line(log)} (all of it: {log})")
        self.way = way


class RunFailed(Exception):
    """Tests did not run, or with something else than they should."""

    def __init__(self, way: str, what: str) -> None:
        super().__init__(what)
        self.way = way


# -- what there is to do ------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """A source distribution, and how its tests are run."""

    name: str
    version: str
    sha256: str
    language: str
    modules: tuple[str, ...]
    """The extension modules, all of which the tests load."""
    copy: tuple[str, ...]
    """What tests need of the source, put into an empty folder, which they run in."""
    arguments: tuple[str, ...]
    """For pytest."""
    free_threaded: tuple[str, ...]
    """More arguments there."""
    environment: Mapping[str, str]
    sample: bool
    note: str

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


def packages() -> list[Package]:
    """Those of packages.toml."""
    found = []
    for entry in tomllib.loads(PACKAGES.read_text())["package"]:
        found.append(
            Package(
                name=entry["name"],
                version=entry["version"],
                sha256=entry["sha256"],
                language=entry["language"],
                modules=tuple(entry["modules"]),
                copy=tuple(entry.get("copy", ())),
                arguments=tuple(entry["arguments"]),
                free_threaded=tuple(entry.get("free-threaded", ())),
                environment=entry.get("environment", {}),
                sample=entry.get("sample", False),
                note=entry.get("note", ""),
            )
        )
    return found


@dataclass(frozen=True)
class Interpreter:
    """One with refbuf in it, and an environment of it that builds and tests packages."""

    version: str
    gil: bool
    shimdir: str
    package: Path
    """refbuf's own, where it is installed."""
    python: Path
    """That of the environment."""

    @property
    def tag(self) -> str:
        return self.version if self.gil else f"{self.version}t"


class Cache:
    """What is downloaded once: source distributions, and environments."""

    def __init__(self) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = Path(base) / "refbuf" / "compat"
        self.folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else fills it meanwhile."""
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def interpreter(self, name: str) -> Interpreter:
        """The one of this name, with its environment, which is made if it is not there yet."""
        found = shutil.which(name)
        if found is None:
            raise MissingTool(f"{name} is not an executable.")
        python = os.path.abspath(found)
        probe = run([python, "-P", "-c", PROBE])
        if probe.returncode != 0:
            raise MissingTool(f"{name} has no usable refbuf: {last_words(probe.stderr)}")
        facts = json.loads(probe.stdout)
        if facts["implementation"] != "cpython":
            raise MissingTool(f"{name} is {facts['implementation']}, and refbuf is for CPython.")
        tag = facts["version"] if facts["gil"] else f"{facts['version']}t"
        pins = hashlib.sha256(REQUIREMENTS.read_bytes() + facts["base"].encode()).hexdigest()[:8]
        environment = self.folder / f"env-{tag}-{pins}"
        if not (environment / "complete").exists():
            self._create(python, environment)
        return Interpreter(
            facts["version"],
            facts["gil"],
            facts["shimdir"],
            Path(facts["package"]),
            environment / "bin" / "python",
        )

    def _create(self, python: str, environment: Path) -> None:
        say(f"{environment.name}: installing what {REQUIREMENTS.name} names")
        shutil.rmtree(environment, ignore_errors=True)
        made = run([python, "-m", "venv", str(environment)])
        if made.returncode != 0:
            raise MissingTool(f"{python} cannot make virtual environments: {last_words(made.stderr)}")
        pip = [str(environment / "bin" / "python"), *PIP, "install", "--no-deps"]
        done = run([*pip, "--only-binary", ":all:", "-r", str(REQUIREMENTS)])
        if done.returncode != 0:
            raise MissingTool(f"{REQUIREMENTS.name} could not be installed: {last_words(done.stderr)}")
        (environment / "complete").touch()

    def source(self, package: Package, python: Path) -> Path:
        """The source distribution, as it was pinned."""
        folder = self.folder / "sdists"
        folder.mkdir(exist_ok=True)
        wanted = folder / f"{package.name}-{package.version}-{package.sha256[:8]}.tar.gz"
        if not wanted.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                pinned = Path(scratch, "pinned.txt")
                pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
                # pip looks into what it downloads, with the environment's own tools.
                pip = [str(python), *PIP, "download", "--no-deps", "--no-binary", ":all:"]
                pip += ["--no-build-isolation", "--require-hashes", "-r", str(pinned), "-d", f"{scratch}/got"]
                done = run(pip, {"PATH": search_path(python)})
                if done.returncode != 0:
                    raise DownloadFailed(
                        f"{package.title} could not be downloaded: {last_words(done.stderr)}"
                    )
                (got,) = Path(scratch, "got").iterdir()
                got.rename(wanted)
        if hashlib.sha256(wanted.read_bytes()).hexdigest() != package.sha256:
            raise DownloadFailed(f"{wanted} does not have the pinned hash: remove it, and try again.")
        return wanted


PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def without_python(variables: Mapping[str, str]) -> dict[str, str]:
    """Without those that would change what an interpreter, a compiler or refbuf does."""
    prefixes = ("PYTHON", "PYTEST", "REFBUF", "HYPOTHESIS")
    flags = {"CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "VIRTUAL_ENV"}
    return {at: it for at, it in variables.items() if not at.startswith(prefixes) and at not in flags}


def search_path(python: Path) -> str:
    """With the programs that belong to an interpreter first."""
    return os.pathsep.join((str(python.parent), os.environ.get("PATH", os.defpath)))


def run(
    command: list[str], more: Mapping[str, str] | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """A process with what it says, and without the caller's Python variables."""
    environment = {**without_python(os.environ), **(more or {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, **how)


def last_words(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it does not say why"


def last_line(log: Path) -> str:
    """The first error that a log has, or its last line."""
    text = log.read_text(errors="replace")
    errors = re.findall(r"^.*\berror: (?!subprocess-exited).*$", text, re.MULTILINE)
    return errors[0].strip() if errors else last_words(text)


def say(line: str) -> None:
    print(f"==> {line}", file=sys.stderr, flush=True)


# -- building -----------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A package on an interpreter."""

    package: Package
    interpreter: Interpreter
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.package.title} on {self.interpreter.tag}"

    def build_folder(self, way: str) -> Path:
        return self.folder / way / "built"


def flags(way: str, interpreter: Interpreter) -> str:
    """The same both ways, but for one."""
    return FLAGS if way == STOCK else f"{FLAGS} -I{shlex.quote(interpreter.shimdir)}"


def stamp(job: Job, way: str) -> str:
    """Changes with all that a build is made of."""
    made_of = [
        job.package.sha256,
        flags(way, job.interpreter),
        job.interpreter.tag,
        # Named after the interpreter, and after what is pinned.
        str(job.interpreter.python),
        run([compiler(), "--version"]).stdout,
    ]
    if way == SHIM:
        headers = sorted(Path(job.interpreter.shimdir).parent.rglob("*.h"))
        made_of += [path.read_text() for path in headers]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def build(job: Job, source: Path, way: str) -> Path:
    """Builds and installs into a folder of its own, which is returned. Looks whether the shim is in it.

    A build is used again for as long as nothing changes that it is made of.
    """
    folder = job.folder / way
    log = folder / "build.log"
    stamped, wanted = folder / "stamp", stamp(job, way)
    if not stamped.exists() or stamped.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install(job, source, way, log)
        stamped.write_text(wanted)
    libraries = libraries_in(job.build_folder(way))
    if not libraries:
        raise RunFailed(way, f"the {way} build has no extension module in it (see {log})")
    for name, path in libraries.items():
        if (CAPSULE in path.read_bytes()) != (way == SHIM):
            has = "does not have" if way == SHIM else "has"
            raise RunFailed(way, f"{name} of the {way} build {has} the shim in it (see {log})")
    return job.build_folder(way)


def install(job: Job, source: Path, way: str, log: Path) -> None:
    folder = job.folder / way
    (unpacked,) = unpack(source, folder / "source")
    python = job.interpreter.python
    pip = [str(python), *PIP, "install", "-v", "--no-index", "--no-deps", "--no-build-isolation"]
    # A wheel in pip's cache would be of other flags.
    pip += ["--no-cache-dir", "--target", str(job.build_folder(way)), str(unpacked)]
    given = flags(way, job.interpreter)
    more = {"PATH": search_path(python), "CFLAGS": given, "CXXFLAGS": given, "TMPDIR": str(folder)}
    done = run(pip, more)
    log.write_text(f"CFLAGS={given}\n{shlex.join(pip)}\n{done.stdout}{done.stderr}")
    if done.returncode != 0:
        raise BuildFailed(way, log)


def unpack(source: Path, folder: Path) -> list[Path]:
    """Unpacks a source distribution; returns what it had at its top."""
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    return list(folder.iterdir())


def libraries_in(folder: Path) -> dict[str, Path]:
    """The extension modules in a folder, by their path there."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.so"))}


# -- machine code -------------------------------------------------------------


class Code(NamedTuple):
    """How the machine code of two builds of a package compares."""

    stock_bytes: int
    """Of .text, in all modules."""
    shim_bytes: int
    same: int
    """Functions that are instruction for instruction the same."""
    changed: tuple[str, ...]
    """Those that are not."""
    added: tuple[str, ...]
    """Those that only the shim's has."""
    removed: tuple[str, ...]

    @property
    def summary(self) -> str:
        total = self.same + len(self.changed) + len(self.removed)
        return f"{self.same}/{total}"


#: `call 1130 <PyList_New@plt>`: the address moves with all that lies before it, the name does not.
TARGET = re.compile(r"\b(?:0x)?[0-9a-f]+ (<[^>]+>)")
#: `lea 0x2ee3(%rip),%rsi        # 2000 <_fini+0xe58>`: data, which has no names of its own.
RELATIVE = re.compile(r"-?0x[0-9a-f]+\(%rip\)")
PADDING = re.compile(r"^(?:(?:data16|cs|ds)\s+)*(?:nop|xchg\s+%ax,%ax)")
FUNCTION = re.compile(r"^(?:[0-9a-f]+ )?<([^>]+)>:$")


def functions(disassembly: str) -> dict[str, list[tuple[str, ...]]]:
    """The instructions of each function, without what depends on where things lie. Names may repeat."""
    found: dict[str, list[list[str]]] = {}
    current: list[str] | None = None
    for line in disassembly.splitlines():
        if match := FUNCTION.match(line):
            current = []
            found.setdefault(match[1], []).append(current)
        elif current is not None and line.startswith((" ", "\t")):
            instruction = line.partition("#")[0].strip()
            if instruction and not PADDING.match(instruction):
                instruction = RELATIVE.sub("DATA(%rip)", TARGET.sub(r"\1", instruction))
                current.append(re.sub(r"\s+", " ", instruction))
    return {name: sorted(map(tuple, bodies)) for name, bodies in found.items()}


def disassemble(path: Path) -> dict[str, list[tuple[str, ...]]]:
    done = run(
        ["objdump", "-d", "-w", "-C", "--no-show-raw-insn", "--no-addresses", "-j", ".text", str(path)]
    )
    if done.returncode != 0:
        raise MissingTool(f"objdump cannot read {path}: {last_words(done.stderr)}")
    return functions(done.stdout)


def text_bytes(path: Path) -> int:
    """The size of .text."""
    for line in run(["size", "-A", str(path)]).stdout.splitlines():
        if line.startswith(".text"):
            return int(line.split()[1])
    raise MissingTool(f"size does not say how large .text of {path} is.")


def compare_code(stock: Path, shim: Path) -> Code:
    """Of all modules of two builds."""
    ours, theirs = libraries_in(shim), libraries_in(stock)
    same = 0
    changed: list[str] = []
    added: list[str] = []
    removed: list[str] = []
    for name in sorted(theirs.keys() | ours.keys()):
        before = disassemble(theirs[name]) if name in theirs else {}
        after = disassemble(ours[name]) if name in ours else {}
        for function in sorted(before.keys() | after.keys()):
            if function not in before:
                added.append(function)
            elif function not in after:
                removed.append(function)
            elif before[function] == after[function]:
                same += 1
            else:
                changed.append(function)
    return Code(
        sum(map(text_bytes, theirs.values())),
        sum(map(text_bytes, ours.values())),
        same,
        tuple(changed),
        tuple(dict.fromkeys(added)),
        tuple(removed),
    )


# -- running ------------------------------------------------------------------


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
        command += () if job.interpreter.gil else job.package.free_threaded
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


# -- what comes of it ---------------------------------------------------------


@dataclass
class Result:
    """A package on an interpreter, both ways."""

    job: Job
    rounds: list[dict[str, Run]] = field(default_factory=list)
    code: Code | None = None
    broken: str = ""
    """Why nothing could be compared, if so."""
    broken_stock: bool = False
    """Whether that is so without the shim."""

    def seconds(self, way: str) -> float:
        return median(pair[way].seconds for pair in self.rounds)

    @property
    def ratios(self) -> list[float]:
        return [pair[SHIM].seconds / pair[STOCK].seconds for pair in self.rounds if pair[STOCK].seconds]

    @property
    def ratio(self) -> float:
        return median(self.ratios) if self.ratios else float("nan")

    def tests(self, way: str) -> Counter[str]:
        """How many ended how, in the first round."""
        return Counter(self.rounds[0][way].outcomes.values())

    @property
    def differences(self) -> list[str]:
        return differences([{way: pair[way].outcomes for way in WAYS} for pair in self.rounds])

    @property
    def unsteady(self) -> dict[str, str]:
        """Tests that do not always end the same way stock: how often they failed."""
        found = {}
        for name in sorted({name for pair in self.rounds for name in pair[STOCK].outcomes}):
            words = {way: [pair[way].outcomes.get(name, "missing") for pair in self.rounds] for way in WAYS}
            if len(set(words[STOCK])) > 1:
                stock, shim = (sum(word in BAD for word in words[way]) for way in WAYS)
                found[name] = (
                    f"{name} failed in {stock} rounds stock and {shim} with the shim, of {len(self.rounds)}"
                )
        return found

    @property
    def fine(self) -> bool:
        return not self.broken and not self.differences

    def as_dict(self) -> dict[str, Any]:
        package, interpreter = self.job.package, self.job.interpreter
        content: dict[str, Any] = {
            "package": package.name,
            "version": package.version,
            "language": package.language,
            "interpreter": interpreter.tag,
            "gil": interpreter.gil,
            "same": self.fine,
        }
        if self.broken:
            return {**content, "broken": self.broken}
        return {
            **content,
            "tests": {way: dict(self.tests(way)) for way in WAYS},
            "differences": self.differences,
            "unsteady": self.unsteady,
            "failed_stock": failures(self.rounds[0][STOCK].outcomes),
            "seconds": {way: [pair[way].seconds for pair in self.rounds] for way in WAYS},
            "ratio": self.ratio,
            "counts": self.rounds[0][SHIM].counts,
            "gil_enabled": {way: self.rounds[0][way].gil for way in WAYS},
            "code": self.code._asdict() if self.code else None,
        }


def differences(rounds: list[dict[str, dict[str, str]]]) -> list[str]:
    """The tests that ended otherwise with the shim than they ever did stock, with how."""
    seen: dict[str, dict[str, set[str]]] = {way: {} for way in WAYS}
    for pair in rounds:
        for way in WAYS:
            for name in pair[STOCK].keys() | pair[SHIM].keys():
                seen[way].setdefault(name, set()).add(pair[way].get(name, "missing"))
    found = []
    for name, words in sorted(seen[SHIM].items()):
        if not words <= seen[STOCK][name]:
            found.append(f"{name}: {listed(seen[STOCK][name])} stock, {listed(words)} with the shim")
    return found


def failures(found: Mapping[str, str]) -> list[str]:
    return sorted(name for name, word in found.items() if word in BAD)


def listed(words: set[str]) -> str:
    return " or ".join(sorted(words))


def counted(tests: Counter[str]) -> str:
    """As passed/failed/skipped."""
    return f"{tests['passed']}/{tests['failed'] + tests['error']}/{tests['skipped'] + tests['xfailed']}"


HEADINGS = ("package", "version", "in", "Python", "stock", "shim", "stock s", "shim s", "ratio", "code")


def row(result: Result) -> tuple[str, ...]:
    package, interpreter = result.job.package, result.job.interpreter
    beginning = (package.name, package.version, package.language, interpreter.tag)
    if result.broken:
        return (*beginning, "-", "-", "-", "-", "-", "-")
    return (
        *beginning,
        *(counted(result.tests(way)) for way in WAYS),
        *(f"{result.seconds(way):.2f}" for way in WAYS),
        f"{result.ratio:.3f}",
        result.code.summary if result.code else "",
    )


def table(results: list[Result]) -> str:
    rows = [HEADINGS, *map(row, results)]
    widths = [max(len(line[at]) for line in rows) for at in range(len(HEADINGS))]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in rows)  # fmt: skip


def summary(results: list[Result]) -> str:
    """One line for each kind of interpreter, and one for all."""
    lines = []
    for tag in dict.fromkeys(result.job.interpreter.tag for result in results):
        ours = [result for result in results if result.job.interpreter.tag == tag and not result.broken]
        ratios = [result.ratio for result in ours if result.ratios]
        if not ratios:
            continue
        line = f"{tag}: {geometric_mean(ratios):.3f} times stock's time in the geometric mean"
        if ours[0].job.interpreter.gil:
            above = sum(ratio > GOAL for ratio in ratios)
            line += f" (goal: {GOAL}); {above} of {len(ratios)} above it"
        lines.append(line)
    tests = sum(len(result.rounds[0][SHIM].outcomes) for result in results if result.rounds)
    wrong = sum(not result.fine for result in results)
    lines.append(
        f"{tests:,} outcomes of {len(results)} suites with the shim: "
        + ("all as stock" if not wrong else f"not as stock: {wrong}")
    )
    return "\n".join(lines)


# -- the document -------------------------------------------------------------

INTRODUCTION = """\
# Other people's extensions

Packages that nobody here wrote, built twice from their source distributions without a change to them:
stock, and with the shim's directory on the compiler's command line. Then their own tests, both ways.

```console
$ make compat    # builds, tests, compares: a round
$ {command}    # writes this page
```

{machine}
"""

READING = """\
Tests are passed/failed/skipped (skipped with those that are expected to fail). Seconds are processor time
while tests run, of all threads and children, medians of {rounds} rounds; in a round the two processes take
turns of {turn:.0f} ms, the other one stopped. The ratio is the median of the rounds' own. With a GIL it
should be at most {goal}; how much of it is the machine's noise, the range of the rounds tells. The last
column has how many counts were of objects that another thread owns, the only ones that refbuf buffers: most
suites have one thread, and test that all else is counted as before.

All versions are pinned with their hashes (`tests/compat/packages.toml`), and so is all that builds and tests
need (`tests/compat/requirements.txt`). Flags are `{flags}` both ways. Each run checks that the tests
loaded the extension modules of its build, and not a fallback in Python; that all of them have the shim in
them, or none; that refbuf was imported on the free-threaded build with the shim (`REFBUF_REQUIRE=1`), and
nowhere else.
"""

CODE = """\
## Machine code with a GIL

There the shim's counts are CPython's own, so the machine code tells what the shim costs without a clock: how
many functions of a package are the same, instruction for instruction but for addresses; which are not; and
what only one of the builds has.

| package | same | changed | in one build alone | .text stock | .text shim |
|---|---|---|---|---|---|
"""


def document(results: list[Result], facts: dict[str, Any]) -> str:
    """docs/COMPAT.md."""
    rounds = facts["rounds"]
    command = f"python3 tools/compat.py .venv-gil/bin/python .venv-ft/bin/python --rounds {rounds} --write"
    machine = (
        f"{facts['processor']}, {facts['processors']} processors, {facts['compiler']}; load average "
        f"{facts['load'][0]:.1f} before and {facts['load'][1]:.1f} after."
    )
    parts = [INTRODUCTION.format(command=command, machine=machine)]
    for tag in dict.fromkeys(result.job.interpreter.tag for result in results):
        parts += outcome_table([result for result in results if result.job.interpreter.tag == tag])
    parts += [*(f"- {line}" for line in summary(results).splitlines()), ""]
    unlike = [f"- **{result.job.title}**: {line}" for result in results for line in result.differences]
    parts += [*unlike, ""] if unlike else []
    parts.append(READING.format(rounds=rounds, turn=TURN * 1000, goal=GOAL, flags=FLAGS))
    parts += remarks(results)
    coded = [result for result in results if result.code]
    parts += code_table(coded) if coded else []
    return "\n".join(parts).rstrip() + "\n"


def outcome_table(results: list[Result]) -> list[str]:
    """Of one interpreter's packages."""
    interpreter = results[0].job.interpreter
    headings = ["package", "in", "tests stock", "with the shim", "stock", "shim", "ratio", "range"]
    if not interpreter.gil:
        headings.append("counts of other threads' objects")
    lines = [f"## {interpreter.tag}, {'with a GIL' if interpreter.gil else 'free-threaded'}", ""]
    lines += [cells(*headings), cells(*("---" for _ in headings)).replace(" ", "")]
    for result in results:
        package = result.job.package
        if result.broken:
            lines.append(cells(package.title, package.language, result.broken, *("" for _ in headings[3:])))
            continue
        line = [
            package.title,
            package.language,
            counted(result.tests(STOCK)),
            "the same" if result.fine else f"{counted(result.tests(SHIM))}, **not the same**",
            f"{result.seconds(STOCK):.2f} s",
            f"{result.seconds(SHIM):.2f} s",
            f"{result.ratio:.3f}",
            f"{min(result.ratios):.3f} to {max(result.ratios):.3f}" if result.ratios else "",
        ]
        if not interpreter.gil:
            line.append(f"{sum(result.rounds[0][SHIM].counts.values()):,}")
        lines.append(cells(*line))
    return [*lines, ""]


def code_table(results: list[Result]) -> list[str]:
    lines = [CODE.rstrip()]
    for result in results:
        code = result.code
        sizes = (f"{size:,}" for size in (code.stock_bytes, code.shim_bytes))
        only = ", ".join(
            f"{kind} {some(it)}" for kind, it in (("shim", code.added), ("stock", code.removed)) if it
        )
        lines.append(cells(result.job.package.title, code.summary, some(code.changed), only, *sizes))
    return [*lines, ""]


def cells(*texts: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(texts)} |"


def remarks(results: list[Result]) -> list[str]:
    """What there is to say of single packages, and which tests fail stock as well."""
    notes = dict.fromkeys(result.job.package.note.strip() for result in results)
    lines = [f"- {note}" for note in notes if note]
    for result in results:
        if result.broken:
            continue
        job, first = result.job, result.rounds[0]
        if not job.interpreter.gil and first[SHIM].gil:
            lines.append(f"- {job.title}: switches the GIL on, both ways.")
        lines += [f"- {job.title}: {line}." for line in result.unsteady.values()]
        always = [name for name in failures(first[STOCK].outcomes) if name not in result.unsteady]
        if always:
            lines.append(f"- {job.title}: failed both ways: {', '.join(always)}.")
    return ["## Remarks", "", *lines, ""] if lines else []


def some(functions_: tuple[str, ...]) -> str:
    """A few by name."""
    shown = ", ".join(f"`{name}`" for name in functions_[:NAMES_SHOWN])
    more = len(functions_) - NAMES_SHOWN
    return f"{shown}, {more} more" if more > 0 else shown


def machine_facts(rounds: int, load: list[float]) -> dict[str, Any]:
    processor = ""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = found[1] if found else ""
    return {
        "processor": processor or platform.machine(),
        "processors": os.cpu_count(),
        "compiler": run([compiler(), "--version"]).stdout.partition("\n")[0],
        "rounds": rounds,
        "load": load,
    }


def compiler() -> str:
    return shlex.split(os.environ.get("CC", "") or "cc")[0]


# -- all of it ----------------------------------------------------------------


class Progress:
    """A bar where someone looks at one, and a line for each suite in any case."""

    def __init__(self, total: int) -> None:
        self.bar: Any = None
        self.total, self.done = total, 0
        if sys.stderr.isatty():
            # Of refbuf's bench extra: there are still the lines.
            with contextlib.suppress(ImportError):
                from rich.console import Console
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
                from rich.progress import Progress as Bar

                columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
                description = TextColumn("{task.description}")
                self.bar = Bar(*columns, description, console=Console(stderr=True), transient=True)
                self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def doing(self, what: str) -> None:
        if self.bar:
            self.bar.update(self.task, description=what)

    def finished(self, result: Result) -> None:
        self.done += 1
        place = f"[{self.done:{len(str(self.total))}}/{self.total}]"
        line = f"{place} {result.job.title}: {verdict(result)}"
        if self.bar:
            self.bar.update(self.task, completed=self.done)
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def verdict(result: Result) -> str:
    if result.broken:
        return f"FAILED: {result.broken}"
    if result.differences:
        shown = result.differences[:LINES_SHOWN]
        more = len(result.differences) - len(shown)
        tail = [f"and {more} more"] if more else []
        return "NOT AS STOCK\n" + "\n".join(f"    {line}" for line in [*shown, *tail])
    return f"the same {len(result.rounds[0][SHIM].outcomes):,} outcomes, {result.ratio:.3f} times the time"


def compare(job: Job, source: Path, rounds: int, progress: Progress) -> Result:
    """Builds, runs and compares a package on an interpreter."""
    result = Result(job)
    try:
        progress.doing(f"{job.title}: building")
        with ThreadPoolExecutor(len(WAYS)) as pool:
            # Where both fail, it is stock that says so.
            built = list(pool.map(lambda way: build(job, source, way), WAYS))
        if job.interpreter.gil:
            result.code = compare_code(*built)
        number = 0
        while number < rounds or (number < rounds + MORE_ROUNDS and result.differences):
            progress.doing(f"{job.title}: round {number + 1} of {max(rounds, number + 1)}")
            result.rounds.append(run_round(job, number))
            number += 1
    except (BuildFailed, RunFailed) as failure:
        result.broken = str(failure)
        result.broken_stock = failure.way == STOCK
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", metavar="PYTHON", nargs="+")
    parser.add_argument("--packages", metavar="A,B", help="these alone")
    parser.add_argument("--sample", action="store_true", help="three that build fast")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="runs of each suite (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found there")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)}")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "compat", help="a folder for builds and logs"
    )
    options = parser.parse_args()
    options.chosen = packages()
    if options.sample and options.packages:
        parser.error("--sample has its own packages")
    if options.sample:
        options.chosen = [package for package in options.chosen if package.sample]
    elif options.packages:
        wanted = options.packages.split(",")
        unknown = set(wanted) - {package.name for package in options.chosen}
        if unknown:
            parser.error(f"{PACKAGES.name} has no package {', '.join(sorted(unknown))}")
        options.chosen = [package for package in options.chosen if package.name in wanted]
    if options.rounds < 1:
        parser.error("--rounds begins at 1")
    return options


def check_tools() -> None:
    for tool, package in ((compiler(), "gcc"), ("c++", "g++"), ("objdump", "binutils"), ("size", "binutils")):
        if shutil.which(tool) is None:
            raise MissingTool(f"{tool} is not installed: install {package} (Debian's name of it).")


def main() -> int:
    options = arguments()
    # As Ctrl-C: nothing must be left behind, stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started, load = time.monotonic(), [os.getloadavg()[0]]
    results: list[Result] = []
    try:
        check_tools()
        cache = Cache()
        with cache.locked():
            interpreters = [cache.interpreter(name) for name in options.pythons]
            sources = {p.name: cache.source(p, interpreters[0].python) for p in options.chosen}
        work = options.work.resolve()
        jobs = [Job(p, i, work / i.tag / p.name) for i in interpreters for p in options.chosen]
        with Progress(len(jobs)) as progress:
            for job in jobs:
                results.append(compare(job, sources[job.package.name], options.rounds, progress))
                progress.finished(results[-1])
    except CompatError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    load.append(os.getloadavg()[0])
    facts = machine_facts(options.rounds, load)
    print(table(results))
    print(summary(results))
    print(f"in {time.monotonic() - started:.0f} s")
    if options.json:
        content = {**facts, "results": [result.as_dict() for result in results]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.write:
        DOCUMENT.write_text(document(results, facts))
    if all(result.fine for result in results):
        return 0
    only_stock = all(result.fine or result.broken_stock for result in results)
    return 2 if only_stock else 1


if __name__ == "__main__":
    sys.exit(main())
