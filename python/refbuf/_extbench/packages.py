"""Builds packages of others, stock and with refbuf's shim, once each, into a cache.

A build is a directory to put on `sys.path`:

    $XDG_CACHE_HOME or ~/.cache
      /refbuf/extensions
        /INTERPRETER-refbufVERSION-HASH     the hash is of the shim's headers
          /PACKAGE-VERSION-stock
          /PACKAGE-VERSION-shim

The source distributions are downloaded by pip, whose settings hold, and their hashes are
compared; what they are built with is pinned as well. The two builds differ in one flag, the
shim's -I. Each is made in a temporary directory, and renamed once it was verified: the shim is
in all of its extension modules, or in none.
"""

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .. import __version__, get_include, get_shimdir
from .._pybench.measure import interrupts_wait

STOCK, SHIM = "stock", "shim"
BUILDS = (STOCK, SHIM)
# Setting CFLAGS replaces the interpreter's own, so they are restated.
FLAGS = ("-O2", "-DNDEBUG")
# What every extension has in it that looks for refbuf.
MARK = b"refbuf._C_API"
# What packages are built with, for all of them.
_PINS = "Cython==3.3.1\nsetuptools==80.9.0\nsetuptools-git-versioning==3.0.1\n"
# Seconds that a command of pip may take.
_PATIENCE = 1800.0


class Sdist(NamedTuple):
    """A source distribution."""

    name: str
    version: str
    sha256: str
    file: str | None = None
    """Where it is; None to download it."""


class Package(NamedTuple):
    """What is built."""

    source: Sdist
    needs: tuple[Sdist, ...] = ()
    """What it imports: put beside it."""
    isolated: bool = True
    """Whether pip gets what building needs; if not, it is here."""

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.source.name} {self.source.version}"


_TOOLZ = Sdist("toolz", "1.2.0", "9667a038e9d6ecba37995e26cb2f59ec6420b6ad8dd9677de59db9b956b08490")
# Versions and hashes as in tests/compat/packages.toml, where these are tested.
PACKAGES = {
    package.source.name: package
    for package in (
        Package(
            Sdist("lru-dict", "1.4.1", "cc518ff2d38cc7a8ab56f9a6ae557f91e2e1524b57ed8e598e97f45a2bd708fc")
        ),
        Package(
            Sdist("cytoolz", "1.2.0", "fdd8ded8a93e1be009577fccddaacf78aa21cbe7dc6ec53c229def0198a1ffa5"),
            needs=(_TOOLZ,),
        ),
        Package(
            Sdist("msgpack", "1.2.4", "475c44e12f2a5de766a8448783f149c9b33f3f49b88953c6cd739a77d93c732c")
        ),
    )
}


class BuildError(Exception):
    """A package cannot be built: one sentence."""


def cache() -> str:
    """The directory of this interpreter's builds, which may not be there yet."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that relative ones are invalid.
    if not os.path.isabs(home):
        home = os.path.expanduser("~/.cache")
    return os.path.join(home, "refbuf", "extensions", _tag())


def _tag() -> str:
    """Names all that builds depend on, so that none is used that is out of date."""
    digest = hashlib.sha256(_PINS.encode())
    shim = get_shimdir()
    for directory in (get_include(), shim):
        for name in sorted(os.listdir(directory)):
            if name.endswith(".h"):
                with open(os.path.join(directory, name), "rb") as header:
                    digest.update(header.read())
    return f"{sysconfig.get_config_var('SOABI')}-refbuf{__version__}-{digest.hexdigest()[:8]}"


def provide(packages: Sequence[Package], on_step: Callable[[str], None]) -> dict[tuple[str, str], str]:
    """The directory of each package's builds, by its name and the build's; builds what is not there.

    `on_step` hears of what takes time before it starts. Raises BuildError, and OSError
    where the cache cannot be written.
    """
    directory = cache()
    places = {
        (package.source.name, build): os.path.join(
            directory, f"{package.source.name}-{package.source.version}-{build}"
        )
        for package in packages
        for build in BUILDS
    }
    for package in packages:
        missing = [build for build in BUILDS if not os.path.isdir(places[package.source.name, build])]
        if missing:
            _check_tools()
            os.makedirs(directory, exist_ok=True)
            # In the cache: what is renamed must not cross file systems.
            with tempfile.TemporaryDirectory(
                prefix=".building-", dir=directory, ignore_cleanup_errors=True
            ) as scratch:
                _build(
                    package,
                    {build: places[package.source.name, build] for build in missing},
                    scratch,
                    on_step,
                )
    return places


def _check_tools() -> None:
    if find_spec("pip") is None:
        raise BuildError("packages are built with pip, which this python does not have")
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        raise BuildError(f"packages are built with a C compiler, and {compiler} cannot be found")


def _build(package: Package, places: dict[str, str], scratch: str, on_step: Callable[[str], None]) -> None:
    """Builds into these places, by way of a directory that is removed afterwards."""
    pins = os.path.join(scratch, "pins.txt")
    with open(pins, "w", encoding="ascii") as file:
        file.write(_PINS)
    sources = []
    for sdist in (package.source, *package.needs):
        if sdist.file is None:
            on_step(f"downloading {sdist.name} {sdist.version}")
        sources.append(_fetch(sdist, os.path.join(scratch, sdist.name), pins))
    for build, place in places.items():
        on_step(f"building {package.title}, {build}")
        made = os.path.join(scratch, build)
        # Without its cache, where pip would find the other build.
        options = ["install", "--no-cache-dir", "--no-deps", "--no-warn-conflicts", "--target", made]
        if not package.isolated:
            options.append("--no-build-isolation")
        _pip(f"cannot build {package.title} ({build})", [*options, *sources], pins, _flags(build))
        _verify(made, package, build)
        try:
            os.rename(made, place)
        except OSError:
            # Another process was faster.
            if not os.path.isdir(place):
                raise


def _fetch(sdist: Sdist, into: str, pins: str) -> str:
    """The file, whose hash is as it should be."""
    title = f"{sdist.name} {sdist.version}"
    file = sdist.file
    if file is None:
        # With the hash: pip runs the source's own code, to know what it needs.
        wanted = f"{into}.txt"
        with open(wanted, "w", encoding="ascii") as requirements:
            requirements.write(f"{sdist.name}=={sdist.version} --hash=sha256:{sdist.sha256}\n")
        options = ["download", "--no-deps", "--no-binary", sdist.name, "--retries", "2", "--dest", into]
        _pip(f"cannot download {title}", [*options, "--require-hashes", "-r", wanted], pins, _flags(STOCK))
        (name,) = os.listdir(into)
        file = os.path.join(into, name)
    with open(file, "rb") as content:
        found = hashlib.sha256(content.read()).hexdigest()
    if found != sdist.sha256:
        raise BuildError(f"the source of {title} has the hash {found}, not {sdist.sha256}")
    return file


def _flags(build: str) -> str:
    return shlex.join([*FLAGS, *([f"-I{get_shimdir()}"] if build == SHIM else [])])


def _pip(what: str, arguments: list[str], pins: str, flags: str) -> None:
    """Runs pip. Its processes are gone afterwards, also where this raises or is interrupted.

    What they leave is beside `pins`.
    """
    # pip takes several with spaces between, so a space in a path would not do.
    constraint = Path(pins).as_uri()
    changes = {
        "CFLAGS": flags,
        "CXXFLAGS": flags,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        # What pip and compilers have no time to remove goes with this directory.
        "TMPDIR": os.path.dirname(pins),
        # No --target with it.
        "PIP_USER": "0",
        # For the environments in which pip builds; the latter is read by pip 25.3 and later.
        "PIP_CONSTRAINT": constraint,
        "PIP_BUILD_CONSTRAINT": constraint,
    }
    process = None
    try:
        with interrupts_wait():
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pip", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="backslashreplace",
                env=dict(os.environ) | changes,
                # So that its compilers end with it.
                start_new_session=True,
            )
        out, _ = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{what}: not done within {_PATIENCE:g} seconds") from None
    finally:
        if process is not None:
            with process:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise BuildError(f"{what}: {_why(out)}")


def _why(out: str) -> str:
    """Why pip failed: the line that says it best, a compiler's, pip's last, or the last of all."""
    if "DO NOT MATCH THE HASHES" in out:
        return "what comes has not the hash that is pinned"
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    compilers = [line for line in lines if re.search(r":\d+: (fatal )?error: ", line)]
    pips = [line for line in lines if line.startswith("ERROR:")]
    if not compilers and "WARNING: Retrying (" in out:
        return "the package index cannot be reached"
    why = next(iter([*compilers[:1], *pips[-1:], *lines[-1:]]), "pip says nothing")
    return why.removeprefix("ERROR: ")


def _extensions(directory: str) -> Iterator[str]:
    """The files of extension modules."""
    for parent, _, names in os.walk(directory):
        for name in names:
            if name.endswith(tuple(EXTENSION_SUFFIXES)):
                yield os.path.join(parent, name)


def _verify(directory: str, package: Package, build: str) -> None:
    """That the shim is in all extension modules, or in none."""
    marked = {}
    for path in _extensions(directory):
        with open(path, "rb") as content:
            marked[os.path.basename(path)] = MARK in content.read()
    if not marked:
        raise BuildError(f"{package.title} was built without an extension module")
    wrong = [name for name, has in marked.items() if has != (build == SHIM)]
    if wrong:
        how = "without the shim" if build == SHIM else "with the shim"
        raise BuildError(f"{package.title} ({build}) was built {how}: {wrong[0]}")
