"""What all of `tools/compat.py` uses: the two ways to build, errors, and how programs are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


STOCK, SHIM = "stock", "shim"


WAYS = (STOCK, SHIM)


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


def compiler() -> str:
    return shlex.split(os.environ.get("CC", "") or "cc")[0]
