"""docs/COMPAT.md."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path
from typing import Any

from .building import FLAGS
from .common import ROOT, SHIM, STOCK, compiler, run
from .results import GOAL, Result, counted, failures, summary
from .running import TURN

DOCUMENT = ROOT / "docs" / "COMPAT.md"


NAMES_SHOWN = 4


INTRODUCTION = """\
# Other people's extensions

Packages that nobody here wrote, built twice from their source distributions without a change to them:
stock, and with the shim's directory on the compiler's command line. Then their own tests, both ways.

```console
$ make compat    # builds, tests, compares, and writes this page: a quarter of an hour
$ {command}    # what it ran
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
