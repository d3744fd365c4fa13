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
import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from compatibility.building import Job, build
from compatibility.common import (
    ROOT,
    SHIM,
    STOCK,
    WAYS,
    BuildFailed,
    CompatError,
    MissingTool,
    RunFailed,
    compiler,
)
from compatibility.machine_code import compare_code
from compatibility.packages import PACKAGES, Cache, packages
from compatibility.page import DOCUMENT, document, machine_facts
from compatibility.results import Result, summary, table
from compatibility.running import run_round

#: Rounds that are added, at most, to see whether a test that differs does so stock as well.
MORE_ROUNDS = 8


LINES_SHOWN = 15


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
