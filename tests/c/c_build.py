"""Compile the sources of this folder against the installed refbuf's header."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterable
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


#: Those that everything is to compile by, if they are here; test_header_compiles.py says which are not.
COMMANDS = ("gcc", "g++", "clang", "clang++")


def installed(compilers: Iterable[Compiler]) -> tuple[Compiler, ...]:
    """Those that are here."""
    return tuple(compiler for compiler in compilers if shutil.which(compiler.command))


COMPILERS = installed(
    Compiler(command, standard)
    for command, standard in (("gcc", "c11"), ("g++", "c++17"), ("clang", "c11"), ("clang++", "c++17"))
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


# -- extensions that know nothing of refbuf, compiled with the shim -----------------

#: The ways to compile them: as CPython's own, and how the shim comes in.
SHIM_WAYS = ("stock", "directory", "forced", "both")


def shim_flags(way: str) -> tuple[str, ...]:
    """The flags by which a source that only knows Python.h counts through refbuf."""
    directory = (f"-I{refbuf.get_shimdir()}",)
    forced = ("-include", str(refbuf_include() / "refbuf_shim.h"))
    return {"stock": (), "directory": directory, "forced": forced, "both": directory + forced}[way]


@dataclass(frozen=True)
class ShimModule:
    """One of the shim's torture modules: the main unit is C or C++, the second always C."""

    name: str
    compiler: Compiler
    way: str
    flags: tuple[str, ...] = ()

    @property
    def knows_refbuf(self) -> bool:
        """On builds with a GIL, only code that may run on either kind does."""
        either = any("ABI3T" in flag for flag in self.flags)
        return self.way != "stock" and (either or bool(sysconfig.get_config_var("Py_GIL_DISABLED")))

    def build(self, folder: Path) -> Path:
        main = "shim_torture.cpp" if self.compiler.is_cpp else "shim_torture.c"
        second = self.compiler if not self.compiler.is_cpp else C
        assert second is not None
        flags = (*shim_flags(self.way), f"-DSHIM_MODULE={self.name}", *self.flags)
        # Nothing of refbuf's is in sight but by the shim.
        return build_module(
            self.name, folder, (self.compiler, main), (second, "shim_unit.c"), flags=flags, include=HERE
        )

    def __str__(self) -> str:
        return self.name


#: On builds with a GIL there is a stable ABI, and the shim is for that as well.
_LIMITED = f"-DPy_LIMITED_API=0x{sys.version_info.major:02x}{sys.version_info.minor:02x}0000"
_LIMITED_MODULES = (
    ShimModule("stock_limited", Compiler("gcc", "gnu17"), "stock", (_LIMITED,)),
    ShimModule("shim_limited", Compiler("gcc", "gnu17"), "directory", (_LIMITED,)),
    ShimModule("shim_older", Compiler("g++", "c++11"), "forced", ("-DPy_LIMITED_API=0x030b0000",)),
    # 3.15's stable ABI for both builds, by headers that do not know it: fields are opaque.
    ShimModule(
        "shim_abi3t",
        Compiler("gcc", "gnu17"),
        "directory",
        ("-DPy_LIMITED_API=0x030b0000", "-DPy_TARGET_ABI3T=0x030b0000"),
    ),
)

#: gcc sees NULL dereferenced in Py_SETREF, CPython's and ours, on ways that are never gone.
NEVER_GONE = ("-Wno-stringop-overflow",)

SHIM_MODULES = tuple(
    module
    for module in (
        ShimModule("stock_c", Compiler("gcc", "gnu17"), "stock", NEVER_GONE),
        ShimModule("stock_cpp", Compiler("g++", "c++17"), "stock", NEVER_GONE),
        ShimModule("shim_c", Compiler("gcc", "gnu89"), "directory", NEVER_GONE),
        ShimModule("shim_cpp", Compiler("g++", "c++17"), "forced", NEVER_GONE),
        ShimModule("shim_clang", Compiler("clang", "gnu17"), "both", ("-O0",)),
        ShimModule("shim_clangpp", Compiler("clang++", "c++20"), "directory", ("-O1",)),
        ShimModule("shim_single", Compiler("gcc", "gnu11"), "forced", ("-DSHIM_SINGLE_PHASE", *NEVER_GONE)),
        *(() if sysconfig.get_config_var("Py_GIL_DISABLED") else _LIMITED_MODULES),
    )
    if shutil.which(module.compiler.command)
)


def run_shimmed(
    code: str, folder: Path, *options: str, require: str | None = None, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter, given `options`, that can import what is in `folder`, and before
    all else what is in `path`; REFBUF_REQUIRE is as given."""
    environment = {key: value for key, value in os.environ.items() if key != "REFBUF_REQUIRE"}
    if require is not None:
        environment["REFBUF_REQUIRE"] = require
    folders = [str(place) for place in (path, folder) if place is not None]
    prologue = f"import sys; sys.path[:0] = {folders!r}\n"
    return subprocess.run(
        [sys.executable, "-P", *options, "-c", prologue + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
