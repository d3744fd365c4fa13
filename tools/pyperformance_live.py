#!/usr/bin/env python3
"""What live mode costs a program of one thread: pyperformance's benchmarks, stock and live.

    python3 tools/pyperformance_live.py PYTHON [--benchmarks a,b] [--rounds N] [--json FILE] [--quick]

PYTHON is a free-threaded interpreter with refbuf in it. What the benchmarks need is put
into a folder in build/ the first time: pyperformance and its dependencies, pinned in
tools/requirements-pyperformance.txt.

A benchmark is pyperformance's own run_benchmark.py. pyperf would start workers with
sys.executable, which would not be live, so each process is a worker from the beginning:
`PYTHON run_benchmark.py --worker ...` and `PYTHON -m refbuf run run_benchmark.py --worker
...`, with as many loops each, found once stock. A round has a pair of such processes for
each benchmark, with the same seed for hashes. A process counts with the median of its
values, a pair with the ratio live / stock, a benchmark with the median of its pairs.

Time is that of processors, over all threads of a process, refbuf's own among them. The
two processes of a pair take turns of a few milliseconds, the other one stopped, so that
what else the machine does meets both. With --wall, for a quiet machine, the clock is
pyperf's and they run one after the other; who goes first takes turns.

Python 3.13 makes functions, classes, modules and constants immortal once a program has
started a thread, which spares it their counts. refbuf starts one, so live mode has that
from its beginning. With --after-thread stock has it as well, which leaves what refbuf's
own code costs.

Exit status: 1 where a benchmark runs stock and not live, or where none has run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean, median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).with_name("requirements-pyperformance.txt")
FOLDER = ROOT / "build" / "pyperformance"

WAYS: Mapping[str, tuple[str, ...]] = {"stock": (), "live": ("-m", "refbuf", "run")}

#: What one thread may cost: over all benchmarks, and one alone.
GOAL = 1.02
GOAL_FOR_EACH = 1.05

#: Seconds that a process or a pair may take.
LIMIT = 600

#: Seconds of a turn.
TURN = 0.02


class Case(NamedTuple):
    """A benchmark as pyperformance reports it."""

    script: str
    """The folder of its run_benchmark.py, without bm_."""
    options: tuple[str, ...] = ()
    """For the script, as in pyperformance's bm_*.toml."""
    task: int = 0
    """Which one, where a script with these options has several."""


#: Of those that need no server, no child process and no compiled package.
BENCHMARKS = {
    "argparse_many_optionals": Case("argparse", ("many_optionals",)),
    "async_generators": Case("async_generators"),
    "async_tree": Case("async_tree", ("none",)),
    "async_tree_cpu_io_mixed": Case("async_tree", ("cpu_io_mixed",)),
    "async_tree_eager": Case("async_tree", ("eager",)),
    "bpe_tokeniser": Case("bpe_tokeniser"),
    "chaos": Case("chaos"),
    "comprehensions": Case("comprehensions"),
    "coroutines": Case("coroutines"),
    "crypto_pyaes": Case("crypto_pyaes"),
    "deepcopy": Case("deepcopy"),
    "deepcopy_memo": Case("deepcopy", task=2),
    "deepcopy_reduce": Case("deepcopy", task=1),
    "deltablue": Case("deltablue"),
    "docutils": Case("docutils"),
    "fannkuch": Case("fannkuch"),
    "float": Case("float"),
    "create_gc_cycles": Case("gc_collect"),
    "gc_traversal": Case("gc_traversal"),
    "generators": Case("generators"),
    "go": Case("go"),
    "hexiom": Case("hexiom"),
    "html5lib": Case("html5lib"),
    "json_dumps": Case("json_dumps"),
    "json_loads": Case("json_loads"),
    "logging_format": Case("logging", ("format",)),
    "logging_silent": Case("logging", ("silent",)),
    "logging_simple": Case("logging", ("simple",)),
    "mako": Case("mako"),
    "mdp": Case("mdp"),
    "meteor_contest": Case("meteor_contest"),
    "nbody": Case("nbody"),
    "nqueens": Case("nqueens"),
    "pathlib": Case("pathlib"),
    "pickle": Case("pickle", ("pickle",)),
    "pickle_dict": Case("pickle", ("pickle_dict",)),
    "pickle_pure_python": Case("pickle", ("--pure-python", "pickle")),
    "pidigits": Case("pidigits"),
    "pprint_pformat": Case("pprint", task=1),
    "pyflate": Case("pyflate"),
    "raytrace": Case("raytrace"),
    "regex_compile": Case("regex_compile"),
    "regex_dna": Case("regex_dna"),
    "regex_effbot": Case("regex_effbot"),
    "regex_v8": Case("regex_v8"),
    "richards": Case("richards"),
    "richards_super": Case("richards_super"),
    "scimark_fft": Case("scimark", ("fft",)),
    "scimark_lu": Case("scimark", ("lu",)),
    "scimark_monte_carlo": Case("scimark", ("monte_carlo",)),
    "scimark_sor": Case("scimark", ("sor",)),
    "scimark_sparse_mat_mult": Case("scimark", ("sparse_mat_mult",)),
    "spectral_norm": Case("spectral_norm"),
    "sqlglot_v2_normalize": Case("sqlglot_v2", ("normalize",)),
    "sqlglot_v2_parse": Case("sqlglot_v2", ("parse",)),
    "telco": Case("telco"),
    "tomli_loads": Case("tomli_loads"),
    "typing_runtime_protocols": Case("typing_runtime_protocols"),
    "unpack_sequence": Case("unpack_sequence"),
    "unpickle": Case("pickle", ("unpickle",)),
    "unpickle_pure_python": Case("pickle", ("--pure-python", "unpickle")),
    "xml_etree_parse": Case("xml_etree", ("parse",)),
    "xml_etree_process": Case("xml_etree", ("process",)),
}

#: Run where they are asked for: a value of theirs takes longest, or they have a shorter sister here.
SLOW = (
    "async_generators",
    "async_tree_cpu_io_mixed",
    "bpe_tokeniser",
    "docutils",
    "mdp",
    "pprint_pformat",
    "scimark_lu",
    "tomli_loads",
)

#: Says why there is nothing to run here, or nothing; then what names the build.
PROBE = """\
import refbuf, sys, sysconfig
print(refbuf._refbuf.live_obstacle() or "")
print(sysconfig.get_config_var("SOABI"), sys.version, sysconfig.get_config_var("CONFIG_ARGS"))
"""

#: sitecustomize of each process: pyperf's clock, and at the end what refbuf has counted.
#: It is registered first, so it comes last.
SITE = """\
import atexit
import json
import os
import sys
import time

if os.environ["BENCHMARK_CLOCK"] == "processor":
    time.perf_counter = time.process_time

if os.environ["BENCHMARK_THREAD"] == "yes":
    import threading

    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


@atexit.register
def tell():
    refbuf = sys.modules.get("refbuf")
    live = refbuf is not None and refbuf.installed()
    notes = {"live": live, "seconds": time.process_time()}
    if live:
        notes |= refbuf.stats().as_dict()
    with open(os.environ["BENCHMARK_NOTES"], "w") as file:
        json.dump(notes, file)
"""


class Budget(NamedTuple):
    """How long is measured."""

    rounds: int
    least: float
    """Seconds of a value."""
    values: int
    """Of a process."""
    seconds: float
    """Of all values of a process, where one takes no longer."""


USUAL = Budget(rounds=5, least=0.05, values=5, seconds=0.4)
QUICK = Budget(rounds=3, least=0.03, values=3, seconds=0.1)


class Plan(NamedTuple):
    """What a process of a benchmark does, either way."""

    loops: int
    warmups: int
    values: int


class Run(NamedTuple):
    """What a process found."""

    seconds: float
    """The median of its values, each the time of one loop."""
    total: float
    """Processor time from its start to its end."""
    operations: int
    """Counts of foreign objects in that time; not known stock."""
    hits: int
    """Those that a buffer served."""


class Result(NamedTuple):
    """A benchmark's rounds: pairs of runs by way."""

    name: str
    plan: Plan
    pairs: list[dict[str, Run]]

    @property
    def ratios(self) -> list[float]:
        return [pair["live"].seconds / pair["stock"].seconds for pair in self.pairs]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def fastest(self) -> float:
        """The ratio of the fastest runs, which least has disturbed."""
        stock, live = (min(pair[way].seconds for pair in self.pairs) for way in WAYS)
        return live / stock

    @property
    def foreign(self) -> float:
        """Counts of foreign objects in a millisecond."""
        return median(pair["live"].operations / pair["live"].total / 1000 for pair in self.pairs)

    @property
    def hit_rate(self) -> float:
        return median(pair["live"].hits / max(pair["live"].operations, 1) for pair in self.pairs)

    def as_dict(self) -> dict[str, object]:
        """For json."""
        pairs = [{way: run._asdict() for way, run in pair.items()} for pair in self.pairs]
        return {"name": self.name, **self.plan._asdict(), "ratio": self.ratio, "pairs": pairs}


class Failed(Exception):
    """A process did not do what it should; says how it ended."""


class Worker:
    """A process of a benchmark, and what it leaves."""

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.output = folder / "values.json"
        self.notes = folder / "notes.json"
        self.said = folder / "said.txt"
        for file in (self.output, self.notes):
            file.unlink(missing_ok=True)
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [*command, "--worker", "--quiet", "--output", str(self.output)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**environment, "BENCHMARK_NOTES": str(self.notes)},
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self) -> None:
        if not self.ends_within(LIMIT):
            raise Failed(f"took more than {LIMIT} s")

    def found(self) -> dict:
        """What pyperf has written of a process that has ended."""
        status = self.process.returncode
        if status != 0 or not self.output.exists():
            said = self.said.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise Failed(f"exit status {status}: {said[-1]}")
        return json.loads(self.output.read_text())["benchmarks"][0]

    def run(self, way: str) -> Run:
        """What it found, if it ran this way."""
        values = self.found()["runs"][0]["values"]
        notes = json.loads(self.notes.read_text())
        if notes["live"] != (way == "live"):
            raise Failed(f"was to run {way}, and did not")
        counts = [notes.get(kind, 0) for kind in ("hits", "misses", "acquires", "take_ins")]
        return Run(median(values), notes["seconds"], sum(counts), counts[0])


def take_turns(first: Worker, second: Worker) -> None:
    """Lets one of them run at a time, until both have ended."""
    deadline = time.monotonic() + LIMIT
    runs, waits = first, second
    waits.process.send_signal(signal.SIGSTOP)
    while not runs.ends_within(TURN):
        runs.process.send_signal(signal.SIGSTOP)
        waits.process.send_signal(signal.SIGCONT)
        runs, waits = waits, runs
        if time.monotonic() > deadline:
            raise Failed(f"the two took more than {LIMIT} s")
    waits.process.send_signal(signal.SIGCONT)
    waits.finish()


class Bench:
    """Runs benchmarks with one interpreter."""

    def __init__(
        self, python: str, packages: Path, budget: Budget, clock: str, after_thread: bool, folder: Path
    ) -> None:
        self.python = python
        self.after_thread = after_thread
        self.scripts = packages / "pyperformance" / "data-files" / "benchmarks"
        self.budget = budget
        self.clock = clock
        self.folders = {way: folder / way for way in WAYS}
        site = folder / "site"
        for made in (site, *self.folders.values()):
            made.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        self.environment = {
            **without_python(os.environ),
            "PYTHONPATH": os.pathsep.join(map(str, (site, packages))),
            "BENCHMARK_CLOCK": clock,
        }

    def plan(self, name: str) -> Plan:
        """As many loops as a value needs to take long enough, stock."""
        options = ("--calibrate-loops", f"--min-time={self.budget.least}", "--warmups=0", "--values=1")
        with self._start(name, "stock", 0, options) as worker:
            worker.finish()
            found = worker.found()
        loops, seconds = found["runs"][0]["warmups"][-1]
        # pyperf has divided by these as well.
        inner_loops = found.get("metadata", {}).get("inner_loops", 1)
        affordable = int(self.budget.seconds / (loops * inner_loops * seconds))
        # Where a value takes long, its beginning does not show.
        return Plan(loops, int(affordable > 0), min(self.budget.values, max(1, affordable)))

    def pair(self, name: str, plan: Plan, number: int) -> dict[str, Run]:
        """Both ways; who goes first takes turns."""
        options = (f"--loops={plan.loops}", f"--warmups={plan.warmups}", f"--values={plan.values}")
        order = sorted(WAYS, reverse=number % 2 == 0)
        with contextlib.ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for way in order:
                workers[way] = stack.enter_context(self._start(name, way, number + 1, options))
                if self.clock == "wall":
                    workers[way].finish()
            if self.clock != "wall":
                take_turns(*workers.values())
            return {way: workers[way].run(way) for way in WAYS}

    def _start(self, name: str, way: str, seed: int, options: tuple[str, ...]) -> Worker:
        case = BENCHMARKS[name]
        script = self.scripts / f"bm_{case.script}" / "run_benchmark.py"
        command = [self.python, *WAYS[way], str(script), f"--worker-task={case.task}"]
        thread = "yes" if self.after_thread and way == "stock" else "no"
        environment = {**self.environment, "PYTHONHASHSEED": str(seed), "BENCHMARK_THREAD": thread}
        return Worker([*command, *options, *case.options], environment, self.folders[way])


def without_python(variables: Mapping[str, str]) -> dict[str, str]:
    """Without those that would change what an interpreter does."""
    return {name: at for name, at in variables.items() if not name.startswith("PYTHON")}


def probe(python: str) -> str:
    """What names the build of an interpreter, in which live mode can be used."""
    process = subprocess.run(
        [python, "-P", "-c", PROBE], env=without_python(os.environ), capture_output=True, text=True
    )
    if process.returncode != 0:
        raise SystemExit(f"{python} has no refbuf:\n{process.stderr}")
    obstacle, _, build = process.stdout.partition("\n")
    if obstacle:
        raise SystemExit(f"Live mode cannot be used in {python}: {obstacle}")
    return build.strip()


def packages_for(python: str, build: str) -> Path:
    """The folder with what the benchmarks need, filled if it is not there yet."""
    tag = build.split()[0]
    pins = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:8]
    folder = FOLDER / f"{tag}-{pins}"
    if folder.exists():
        return folder
    print(f"==> {folder}: installing what {REQUIREMENTS.name} names", file=sys.stderr)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        # pyaes has no wheel.
        pip += ["--only-binary", ":all:", "--no-binary", "pyaes"]
        pip += ["--target", f"{scratch}/packages", "-r", str(REQUIREMENTS)]
        if subprocess.run(pip, env=without_python(os.environ)).returncode != 0:
            raise SystemExit(f"{REQUIREMENTS.name} could not be installed for {python}.")
        # All of it, or nothing.
        os.rename(f"{scratch}/packages", folder)
    return folder


def measure(bench: Bench, names: list[str], rounds: int) -> tuple[list[Result], list[str]]:
    """The results, and the names of those that ran stock and not live. Ctrl-C ends it early."""
    results: dict[str, Result] = {}
    broken: list[str] = []
    try:
        for name in names:
            try:
                results[name] = Result(name, bench.plan(name), [])
            except Failed as failure:
                print(f"{name} does not run stock: {failure}", file=sys.stderr)
        for number in range(rounds):
            started = time.monotonic()
            for name in list(results):
                try:
                    results[name].pairs.append(bench.pair(name, results[name].plan, number))
                except Failed as failure:
                    print(f"FAILED: {name}: {failure}", file=sys.stderr)
                    broken.append(name)
                    del results[name]
            print(f"round {number + 1} of {rounds}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return [result for result in results.values() if result.pairs], broken


def show(results: list[Result]) -> None:
    """A table, the dearest first."""
    width = max(len(result.name) for result in results)
    print(
        f"{'benchmark':{width}} {'stock':>10} {'live/stock':>10}   {'range':<11} {'fastest':>7}"
        f" {'foreign/ms':>10} {'hits':>5}"
    )
    for result in sorted(results, key=lambda result: -result.ratio):
        stock = median(pair["stock"].seconds for pair in result.pairs)
        mark = "!" if result.ratio > GOAL_FOR_EACH else " "
        span = f"{min(result.ratios):.3f}-{max(result.ratios):.3f}"
        print(
            f"{result.name:{width}} {duration(stock):>10} {result.ratio:>10.3f} {mark} {span:<11}"
            f" {result.fastest:>7.3f} {result.foreign:>10,.1f} {result.hit_rate:>5.0%}"
        )
    mean = geometric_mean(result.ratio for result in results)
    fastest = geometric_mean(result.fastest for result in results)
    above = sum(result.ratio > GOAL_FOR_EACH for result in results)
    print(
        f"geometric mean of {len(results)}: {mean:.3f} (goal: {GOAL}), of the fastest runs {fastest:.3f}; "
        f"{above} above {GOAL_FOR_EACH}"
    )


def rounds_run(results: list[Result]) -> int:
    return max((len(result.pairs) for result in results), default=0)


def duration(seconds: float) -> str:
    """With the unit that leaves three digits or so."""
    unit, factor = next(
        (pair for pair in (("s", 1), ("ms", 1e3), ("us", 1e6)) if seconds * pair[1] >= 1), ("ns", 1e9)
    )
    digits = max(0, 2 - math.floor(math.log10(seconds * factor)))
    return f"{seconds * factor:.{digits}f} {unit}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", metavar="PYTHON")
    parser.add_argument("--benchmarks", metavar="A,B", help=f"all but {', '.join(SLOW)}, if none is given")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default: {USUAL.rounds}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each run's figures there")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.rounds} rounds of shorter runs")
    parser.add_argument("--wall", action="store_true", help="pyperf's clock, on a quiet machine")
    parser.add_argument("--after-thread", action="store_true", help="stock has started a thread before")
    parser.add_argument("--list", action="store_true", help="print the benchmarks' names, and run nothing")
    options = parser.parse_args()
    options.names = [name for name in BENCHMARKS if name not in SLOW]
    if options.benchmarks:
        options.names = options.benchmarks.split(",")
        unknown = [name for name in options.names if name not in BENCHMARKS]
        if unknown:
            parser.error(f"there is no benchmark {', '.join(unknown)}: --list names those there are")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds begins at 1")
    return options


def main() -> int:
    options = arguments()
    if options.list:
        print("\n".join(BENCHMARKS))
        return 0
    # As Ctrl-C, which shows what has been measured: a worker must not be left behind, stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = shutil.which(options.python)
    if found is None:
        raise SystemExit(f"{options.python} is not an executable.")
    python = os.path.abspath(found)
    build = probe(python)
    packages = packages_for(python, build)
    budget = QUICK if options.quick else USUAL
    rounds = options.rounds or budget.rounds
    clock = "wall" if options.wall else "processor"
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="refbuf-") as folder:
        bench = Bench(python, packages, budget, clock, options.after_thread, Path(folder).resolve())
        results, broken = measure(bench, options.names, rounds)
    load.append(os.getloadavg()[0])
    print(f"{build}\n{platform.machine()}, {os.cpu_count()} processors; load average before ", end="")
    print(f"{load[0]:.1f}, after {load[1]:.1f}; rounds: {rounds_run(results)}; {clock} time", end="")
    print(", stock after a thread" if options.after_thread else "", flush=True)
    if results:
        show(results)
    if options.json:
        content = {
            "build": build,
            "processors": os.cpu_count(),
            "load": load,
            "clock": clock,
            "after_thread": options.after_thread,
            "benchmarks": [result.as_dict() for result in results],
            "broken": broken,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if broken or not results else 0


if __name__ == "__main__":
    sys.exit(main())
