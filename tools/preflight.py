#!/usr/bin/env python3
"""Check that what cannot be installed from PyPI or crates.io is here.

    python3 tools/preflight.py [rust] [compiler] [headers PYTHON]... [venv]

Says in one sentence what is missing, and exits with status 1.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

#: Cargo.toml's rust-version.
RUST = (1, 85)

PYTHON = (3, 11)

#: What the PyO3 that Cargo.toml pins builds for.
NEWEST = (3, 14)


def rust() -> str | None:
    if shutil.which("cargo") is None:
        return f"Rust is not installed: install version {version(RUST)} or later, for example with rustup."
    answer = output(["rustc", "--version"])
    found = re.search(r"(\d+)\.(\d+)", answer)
    if found is None:
        return "rustc does not run: repair the Rust installation, for example with `rustup default stable`."
    if tuple(map(int, found.groups())) < RUST:
        return f"{answer} is too old: install Rust {version(RUST)} or later, for example with rustup."
    return None


def compiler() -> str | None:
    for tool, package in (("cc", "gcc"), ("c++", "g++"), ("make", "make")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed: install {package} (on Debian: apt-get install {package})."
    return None


def venv() -> str | None:
    if sys.version_info < PYTHON:
        return f"{sys.executable} is too old: install Python {version(PYTHON)} or later."
    if sys.version_info[:2] > NEWEST:
        return f"{sys.executable} is too new: set PYTHON to a Python {version(PYTHON)} to {version(NEWEST)}."
    if output([sys.executable, "-c", "import ensurepip, venv; print('here')"]) != "here":
        return f"{sys.executable} cannot make virtual environments (on Debian: apt-get install python3-venv)."
    return None


def headers(python: str) -> str | None:
    folder = output([python, "-c", "import sysconfig; print(sysconfig.get_path('include'))"])
    if not folder:
        return f"{python} does not run: set PYTHON to a CPython {version(PYTHON)} or later."
    if not (Path(folder) / "Python.h").exists():
        return f"The C headers of {python} are not in {folder} (on Debian: apt-get install python3-dev)."
    return None


def version(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"


def output(command: list[str]) -> str:
    """What `command` prints; empty if it fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def main(arguments: list[str]) -> int:
    checks = {"rust": rust, "compiler": compiler, "venv": venv}
    if not set(arguments[:1]) <= {*checks, "headers"}:
        print(__doc__)
        return 0 if arguments[0] in ("-h", "--help") else 2
    remaining = iter(arguments)
    for name in remaining:
        complaint = headers(next(remaining)) if name == "headers" else checks[name]()
        if complaint:
            print(complaint, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
