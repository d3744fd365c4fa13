"""Which packages are built and by which interpreters, and the cache of what is downloaded."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .common import PIP, ROOT, DownloadFailed, MissingTool, last_words, run, say, search_path

DATA = ROOT / "tests" / "compat"


PACKAGES = DATA / "packages.toml"


REQUIREMENTS = DATA / "requirements.txt"


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
    gil: tuple[str, ...]
    """More arguments where there is one."""
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
                gil=tuple(entry.get("gil", ())),
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
