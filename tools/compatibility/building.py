"""Builds a package stock and with the shim, into folders of their own."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from .common import PIP, SHIM, STOCK, BuildFailed, RunFailed, compiler, run, search_path
from .packages import Interpreter, Package

#: Setting CFLAGS replaces the interpreter's own.
FLAGS = "-O2 -DNDEBUG"


#: What an extension that looks for refbuf has in it.
CAPSULE = b"refbuf._C_API"


@dataclass(frozen=True)
class Job:
    """A package on an interpreter."""

    package: Package
    interpreter: Interpreter
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.package.title} on {self.interpreter.tag}"

    def build_folder(self, way: str) -> Path:
        return self.folder / way / "built"


def flags(way: str, interpreter: Interpreter) -> str:
    """The same both ways, but for one."""
    return FLAGS if way == STOCK else f"{FLAGS} -I{shlex.quote(interpreter.shimdir)}"


def stamp(job: Job, way: str) -> str:
    """Changes with all that a build is made of."""
    made_of = [
        job.package.sha256,
        flags(way, job.interpreter),
        job.interpreter.tag,
        # Named after the interpreter, and after what is pinned.
        str(job.interpreter.python),
        run([compiler(), "--version"]).stdout,
    ]
    if way == SHIM:
        headers = sorted(Path(job.interpreter.shimdir).parent.rglob("*.h"))
        made_of += [path.read_text() for path in headers]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def build(job: Job, source: Path, way: str) -> Path:
    """Builds and installs into a folder of its own, which is returned. Looks whether the shim is in it.

    A build is used again for as long as nothing changes that it is made of.
    """
    folder = job.folder / way
    log = folder / "build.log"
    stamped, wanted = folder / "stamp", stamp(job, way)
    if not stamped.exists() or stamped.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install(job, source, way, log)
        stamped.write_text(wanted)
    libraries = libraries_in(job.build_folder(way))
    if not libraries:
        raise RunFailed(way, f"the {way} build has no extension module in it (see {log})")
    for name, path in libraries.items():
        if (CAPSULE in path.read_bytes()) != (way == SHIM):
            has = "does not have" if way == SHIM else "has"
            raise RunFailed(way, f"{name} of the {way} build {has} the shim in it (see {log})")
    return job.build_folder(way)


def install(job: Job, source: Path, way: str, log: Path) -> None:
    folder = job.folder / way
    (unpacked,) = unpack(source, folder / "source")
    python = job.interpreter.python
    pip = [str(python), *PIP, "install", "-v", "--no-index", "--no-deps", "--no-build-isolation"]
    # A wheel in pip's cache would be of other flags.
    pip += ["--no-cache-dir", "--target", str(job.build_folder(way)), str(unpacked)]
    given = flags(way, job.interpreter)
    more = {"PATH": search_path(python), "CFLAGS": given, "CXXFLAGS": given, "TMPDIR": str(folder)}
    done = run(pip, more)
    log.write_text(f"CFLAGS={given}\n{shlex.join(pip)}\n{done.stdout}{done.stderr}")
    if done.returncode != 0:
        raise BuildFailed(way, log)


def unpack(source: Path, folder: Path) -> list[Path]:
    """Unpacks a source distribution; returns what it had at its top."""
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    return list(folder.iterdir())


def libraries_in(folder: Path) -> dict[str, Path]:
    """The extension modules in a folder, by their path there."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.so"))}
