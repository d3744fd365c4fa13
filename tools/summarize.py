#!/usr/bin/env python3
"""Sum up a log of test runs: `N passed, M failed`, alone on the last line.

    python3 tools/summarize.py LOG [STATUS]

Reads the closing lines of cargo test and of pytest. STATUS is what the run
itself exited with: where it is not 0 and no test has failed, something else
has, such as a build or a lint, and counts as one failure. Exits with status 1
if anything failed, or if no test ran.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CARGO = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed;")
#: `== 3 passed, 1 skipped in 0.12s ==`, and the same without its frame.
PYTEST = re.compile(r"^(?:=+ )?((?:\d+ \w+(?:, )?)+) in [\d.]+s(?: \([\d:]+\))?(?: =+)?$")
PYTEST_PART = re.compile(r"(\d+) (\w+)")


def count(lines: list[str]) -> tuple[int, int]:
    """(passed, failed) over all closing lines."""
    passed = failed = 0
    for line in lines:
        line = COLOUR.sub("", line).strip()
        if cargo := CARGO.match(line):
            passed += int(cargo.group(1))
            failed += int(cargo.group(2))
        elif pytest := PYTEST.match(line):
            parts = {word: int(number) for number, word in PYTEST_PART.findall(pytest.group(1))}
            passed += parts.get("passed", 0) + parts.get("xfailed", 0)
            failed += sum(parts.get(word, 0) for word in ("failed", "error", "errors", "xpassed"))
    return passed, failed


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    log, status = arguments[0], int(arguments[1]) if len(arguments) > 1 else 0
    passed, failed = count(Path(log).read_text(errors="replace").splitlines())
    if failed == 0 and (status != 0 or passed == 0):
        failed = 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
