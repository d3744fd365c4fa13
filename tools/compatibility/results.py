"""What came of it: outcomes compared test by test, times, and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import geometric_mean, median
from typing import Any

from .building import Job
from .common import SHIM, STOCK, WAYS
from .machine_code import Code
from .running import Run

#: Outcomes of tests that are not as their authors want them.
BAD = ("failed", "error")


#: What the shim may cost where there is a GIL.
GOAL = 1.02


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
