"""Compile the sources of this folder against the installed refbuf's header."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import refbuf

HERE = Path(__file__).resolve().parent

#: Python's own headers come as system headers: the warnings are about refbuf.h.
WARNINGS = ("-Wall", "-Wextra", "-Wundef", "-Wshadow", "-Werror")


@dataclass(frozen=True)
class Compiler:
    """A compiler for one language, at the standard that the header promises."""

    command: str
    standard: str

    @property
    def is_cpp(self) -> bool:
        return "++" in self.standard

    def __str__(self) -> str:
        return f"{self.command}-{self.standard}"


COMPILERS = tuple(
    Compiler(command, standard)
    for command, standard in (("gcc", "c11"), ("g++", "c++17"), ("clang", "c11"), ("clang++", "c++17"))
    if shutil.which(command)
)

C = next((compiler for compiler in COMPILERS if not compiler.is_cpp), None)
CPP = next((compiler for compiler in COMPILERS if compiler.is_cpp), None)


def refbuf_include() -> Path:
    return Path(refbuf.get_include())


def compile_object(
    compiler: Compiler, source: Path, target: Path, *flags: str, include: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Compile one source; the result says whether it worked, and what was complained of."""
    language = "c++" if compiler.is_cpp else "c"
    command = [compiler.command, "-x", language, f"-std={compiler.standard}", *WARNINGS, "-fPIC"]
    command += [f"-I{include or refbuf_include()}", f"-isystem{sysconfig.get_path('include')}"]
    command += [*flags, "-c", str(source), "-o", str(target)]
    return subprocess.run(command, capture_output=True, text=True)


def build_module(
    name: str,
    folder: Path,
    *units: tuple[Compiler, str],
    flags: tuple[str, ...] = (),
    include: Path | None = None,
) -> Path:
    """Build an extension module of several translation units into `folder`."""
    objects = []
    for compiler, source in units:
        target = folder / f"{name}-{Path(source).name}.o"
        result = compile_object(compiler, HERE / source, target, "-O2", "-DNDEBUG", *flags, include=include)
        assert result.returncode == 0, result.stderr
        objects.append(str(target))
    module = folder / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    linker = next((compiler for compiler, _ in units if compiler.is_cpp), units[0][0])
    result = subprocess.run(
        [linker.command, "-shared", *objects, "-o", str(module)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return module


def load(name: str, path: Path) -> ModuleType:
    """Import the extension at `path` under its own name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def run_python(code: str, folder: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that can import the extensions in `folder`."""
    prologue = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run(
        [sys.executable, "-P", "-c", prologue + code], capture_output=True, text=True, timeout=timeout
    )
