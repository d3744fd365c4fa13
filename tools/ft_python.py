#!/usr/bin/env python3
"""Find, download or build a free-threaded CPython, and print its path.

The order, first hit wins:

1. ``REFBUF_FT_PYTHON``, which must then be right;
2. the first of python3.13t, 3.14t on PATH, in pyenv or in our cache;
3. uv's, where it is installed and has one or can download one;
4. Debian's source package, built with ``--disable-gil`` into the cache.

With ``--lto`` only the cache and the fourth way count, and the interpreter is
built with link-time optimization, as those of distributions and installers are:
live mode meets other machine code there.

The path goes to standard output, everything else to standard error, so that
``$(python3 tools/ft_python.py)`` is the interpreter. Exit status 1, and one
sentence, when none of these works.

The cache is ``$REFBUF_CACHE``, else ``$XDG_CACHE_HOME/refbuf``, else
``~/.cache/refbuf``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: The one on which refbuf has been run first. PyO3 0.28, which Cargo.toml pins,
#: refuses 3.15: with the pin goes this list, and preflight.py's NEWEST.
VERSIONS = ("3.13", "3.14")

#: (source package, suites to look in), in the same order.
SOURCE_PACKAGES = (("python3.13", ("trixie",)), ("python3.14", ("forky", "sid")))

#: Without these an interpreter cannot make a virtual environment and fill it.
NEEDED_MODULES = ("ssl", "zlib", "ctypes", "ensurepip")

#: Seconds for all of uv's downloads, and for each of apt's.
UV_LIMIT = 300
APT_LIMIT = 300

BUILD_DEPENDENCIES = "gcc make dpkg-dev libssl-dev zlib1g-dev libffi-dev xz-utils"


class Kind(NamedTuple):
    """A build that the cache may hold."""

    prefix: str
    """What its folder's name begins with."""
    options: tuple[str, ...]
    """For configure, beside --disable-gil."""
    minutes: int
    """What building takes on 2 cores."""


USUAL = Kind("python", (), 3)
LTO = Kind("lto-python", ("--with-lto",), 8)

PROBE = (
    "import sys, sysconfig;"
    "print(sysconfig.get_config_var('Py_GIL_DISABLED') or 0, '%d.%d' % sys.version_info[:2])"
)


class Unavailable(Exception):
    """One way of getting an interpreter does not work here; says why."""


def say(message: str) -> None:
    print(f"[free-threaded python] {message}", file=sys.stderr, flush=True)


def cache_dir() -> Path:
    if explicit := os.environ.get("REFBUF_CACHE"):
        return Path(explicit).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "refbuf"


def free_threaded_version(python: str | Path) -> str | None:
    """`3.14`, say, where `python` runs and has the GIL disabled; else None."""
    try:
        probe = subprocess.run([str(python), "-c", PROBE], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    disabled, _, version = probe.stdout.strip().partition(" ")
    return version if probe.returncode == 0 and disabled == "1" else None


def is_usable(python: str | Path) -> bool:
    return free_threaded_version(python) in VERSIONS


# -- what is here already ----------------------------------------------------


def from_environment() -> Path | None:
    named = os.environ.get("REFBUF_FT_PYTHON")
    if not named:
        return None
    found = shutil.which(named)
    if found is None:
        raise SystemExit(
            f"REFBUF_FT_PYTHON is {named!r}, which is not an executable: set it to a free-threaded python."
        )
    version = free_threaded_version(found)
    if version is None:
        raise SystemExit(f"REFBUF_FT_PYTHON is {named!r}, which is not a free-threaded CPython.")
    if version not in VERSIONS:
        raise SystemExit(
            f"REFBUF_FT_PYTHON is {named!r}, a free-threaded {version}: "
            f"refbuf builds for {' and '.join(VERSIONS)} so far."
        )
    return Path(found)


def installed() -> Path | None:
    """The first free-threaded interpreter on PATH, in pyenv or in the cache."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in VERSIONS:
        name = f"python{version}t"
        candidates = [shutil.which(name)]
        candidates += sorted(pyenv.glob(f"{version}*t/bin/{name}"), reverse=True)
        candidates += in_cache(USUAL, version)
        for candidate in candidates:
            if candidate and is_usable(candidate):
                return Path(candidate)
    return None


def in_cache(kind: Kind, version: str) -> list[Path]:
    return sorted(cache_dir().glob(f"{kind.prefix}{version}.*/bin/python{version}t"), reverse=True)


def cached(kind: Kind) -> Path | None:
    """The first of a kind in the cache."""
    found = (path for version in VERSIONS for path in in_cache(kind, version))
    return next(filter(is_usable, found), None)


# -- uv ----------------------------------------------------------------------


def from_uv() -> Path:
    uv = shutil.which("uv")
    if uv is None:
        raise Unavailable("uv is not installed")
    deadline = time.monotonic() + UV_LIMIT
    for install in (False, True):
        for version in VERSIONS:
            if install:
                say(f"asking uv for {version}t")
                output([uv, "python", "install", f"{version}t"], deadline)
            path = output([uv, "python", "find", f"{version}t"], deadline)
            if path and is_usable(path):
                return Path(path)
    raise Unavailable("uv could not download one")


def output(command: list[str], deadline: float) -> str:
    """What `command` prints; empty if it fails or is not done by the deadline."""
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=max(1.0, deadline - time.monotonic())
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


# -- Debian's source package -------------------------------------------------


def debian_mirrors() -> list[tuple[str, str]]:
    """(URI, keyring) of each Debian archive among this machine's apt sources."""
    etc = Path("/etc/apt")
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    found: list[tuple[str, str]] = []
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        uris = re.findall(r"^(?:deb|URIs:)\s.*?(\w+://\S+)", text, re.MULTILINE)
        keyring = re.search(r"(?:Signed-By:\s*|signed-by=)(/[^\s\]]+)", text)
        for uri in uris:
            if re.search(r"/debian/?$", uri):
                found.append((uri, keyring.group(1) if keyring else ""))
    return list(dict.fromkeys(found))


def private_apt(root: Path) -> list[str]:
    """apt options for a configuration of our own below `root`."""
    mirrors = debian_mirrors()
    if not mirrors:
        raise Unavailable("this machine has no Debian archive among its apt sources")
    suites = [suite for _, names in SOURCE_PACKAGES for suite in names]
    lines = []
    for uri, keyring in mirrors:
        signed = f"[signed-by={keyring}] " if keyring else ""
        lines += [f"deb-src {signed}{uri} {suite} main" for suite in suites]
    for folder in ("lists/partial", "archives/partial"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "sources.list").write_text("\n".join(lines) + "\n")
    settings = {
        "Dir::State::Lists": root / "lists",
        "Dir::Cache": root,
        "Dir::Etc::sourcelist": root / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "root",
        "Acquire::http::Timeout": 30,
        "Acquire::https::Timeout": 30,
        "Acquire::Retries": 1,
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def fetch_source(work: Path) -> tuple[str, Path]:
    """Download the first source package that can be had: (upstream version, .dsc)."""
    apt = private_apt(work / "apt")
    say("reading Debian's source index")
    # A suite that this mirror lacks fails the update, and is no reason to stop.
    trouble = apt_get(apt, work, "update")
    for package, suites in SOURCE_PACKAGES:
        for suite in suites:
            say(f"fetching {package} from {suite}")
            options = ("source", "--download-only", "-t", suite, f"{package}/{suite}")
            failure = apt_get(apt, work, *options)
            found = sorted(work.glob(f"{package}_*.dsc"))
            if not failure and found:
                version = re.match(rf"{re.escape(package)}_([0-9.]+)", found[-1].name)
                return version.group(1), found[-1]
            trouble = failure or trouble
    raise Unavailable(f"Debian's source package could not be downloaded ({trouble})")


def apt_get(options: list[str], work: Path, *command: str) -> str:
    """Empty, or the last line of what apt-get complains of."""
    try:
        run = subprocess.run(
            ["apt-get", *options, *command], cwd=work, capture_output=True, text=True, timeout=APT_LIMIT
        )
    except subprocess.TimeoutExpired:
        return f"apt-get {command[0]} took more than {APT_LIMIT} s"
    return "" if run.returncode == 0 else last_line(run.stderr)


def from_debian_source(kind: Kind = USUAL) -> Path:
    for tool in ("apt-get", "dpkg-source", "gcc", "make"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    cache = cache_dir()
    with alone(cache):
        # Another run may have built one while this one waited.
        return cached(kind) or fetch_and_build(cache, kind)


@contextlib.contextmanager
def alone(cache: Path) -> Iterator[None]:
    """One build at a time in this cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that builds one")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch_and_build(cache: Path, kind: Kind) -> Path:
    work = cache / "build-python"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        version, dsc = fetch_source(work)
        python = build(version, dsc, work, cache / f"{kind.prefix}{version}t", kind)
    finally:
        # A failed build leaves its log, and nothing that looks like a success.
        log = work / "build.log"
        if log.exists():
            shutil.copy(log, cache / "build-python.log")
        shutil.rmtree(work, ignore_errors=True)
    return python


def build(version: str, dsc: Path, work: Path, prefix: Path, kind: Kind) -> Path:
    source = work / "source"
    log = work / "build.log"
    jobs = f"-j{os.cpu_count() or 1}"
    staging = work / "staging"
    say(f"building {version} (about {kind.minutes} minutes on 2 cores)")
    # Debian's patches move site-packages, which breaks venv and pip in a private prefix.
    step("unpacking", ["dpkg-source", "--skip-patches", "-x", str(dsc), str(source)], work, log)
    step(
        "configuring",
        ["./configure", "--disable-gil", "--with-ensurepip=install", f"--prefix={prefix}", *kind.options],
        source,
        log,
    )
    plan = subprocess.run(["make", "-n"], cwd=source, capture_output=True, text=True)
    total = sum(compiles(line) for line in plan.stdout.splitlines())
    step("compiling", ["make", jobs], source, log, total=total)
    step("installing", ["make", "install", f"DESTDIR={staging}"], source, log)
    shutil.rmtree(prefix, ignore_errors=True)
    # One rename, so that an interrupted build is never found by the next run.
    os.rename(staging / prefix.relative_to("/"), prefix)
    python = prefix / "bin" / f"python{version.rpartition('.')[0]}t"
    missing = [name for name in NEEDED_MODULES if not imports(python, name)]
    if missing or not is_usable(python):
        shutil.rmtree(prefix, ignore_errors=True)
        raise Unavailable(f"the interpreter built here lacks {', '.join(missing) or 'free threading'}")
    return python


def imports(python: Path, module: str) -> bool:
    return subprocess.run([str(python), "-c", f"import {module}"], capture_output=True).returncode == 0


def compiles(line: str) -> bool:
    return " -c " in line and " -o " in line


def step(title: str, command: list[str], cwd: Path, log: Path, total: int = 0) -> None:
    """Run one build step, its output to the log; show how far it is."""
    started = time.monotonic()
    done, shown = 0, -1
    terminal = sys.stderr.isatty()
    with log.open("a") as sink:
        child = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in child.stdout:
            sink.write(line)
            done += compiles(line)
            percent = min(99, 100 * done // total) if total else 0
            if total and percent >= shown + (1 if terminal else 20):
                shown = percent
                end = "\r" if terminal else "\n"
                print(f"[free-threaded python] {title} {percent:3d} %", end=end, file=sys.stderr, flush=True)
        status = child.wait()
    if status != 0:
        raise Unavailable(f"{title} failed: {last_line(log.read_text(errors='replace'))}")
    say(f"{title} done in {time.monotonic() - started:.0f} s")


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lto", action="store_true", help="one that is built with link-time optimization")
    if parser.parse_args().lto:
        python, ways = cached(LTO), (lambda: from_debian_source(LTO),)
        advice = ""
    else:
        python, ways = from_environment() or installed(), (from_uv, from_debian_source)
        advice = "install python3.14t or python3.13t and set REFBUF_FT_PYTHON to it, or "
    if python is None:
        reasons = []
        for way in ways:
            try:
                python = way()
                break
            except Unavailable as reason:
                say(str(reason))
                reasons.append(str(reason))
        else:
            print(
                f"No free-threaded CPython could be found or made ({'; '.join(reasons)}): "
                f"{advice}install {BUILD_DEPENDENCIES} and run this again.",
                file=sys.stderr,
            )
            return 1
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
