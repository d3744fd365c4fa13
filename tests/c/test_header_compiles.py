"""refbuf.h is C11 and C++17, without a warning, in every configuration."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from c_build import COMMANDS, COMPILERS, CPP, HERE, C, Compiler, build_module, compile_object, run_python

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

LIMITED = f"-DPy_LIMITED_API=0x{sys.version_info.major:02x}{sys.version_info.minor:02x}0000"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_compiles_it_is_here(command: str) -> None:
    if not shutil.which(command):
        pytest.skip(f"{command} is not installed: nothing is compiled by it")
    assert command in {compiler.command for compiler in COMPILERS}


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("optimization", ["-O0", "-O2", "-O3"])
def test_header_compiles_without_a_warning(compiler: Compiler, optimization: str, tmp_path: Path) -> None:
    result = compile_object(compiler, HERE / "every_name.c", tmp_path / "every.o", optimization)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
def test_header_needs_no_other_header_before_it(compiler: Compiler, tmp_path: Path) -> None:
    result = compile_object(compiler, HERE / "every_name.c", tmp_path / "every.o", "-O2", "-DREFBUF_FIRST")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
def test_header_compiles_with_the_limited_api(compiler: Compiler, tmp_path: Path) -> None:
    result = compile_object(compiler, HERE / "every_name.c", tmp_path / "every.o", "-O2", LIMITED)
    if FREE_THREADED and "not currently supported in the free-threaded build" in result.stderr:
        pytest.skip("this free-threaded CPython has no limited API")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
def test_header_compiles_for_the_oldest_limited_api(compiler: Compiler, tmp_path: Path) -> None:
    if FREE_THREADED:
        pytest.skip("older limited APIs have no free threading")
    limited = "-DPy_LIMITED_API=0x030b0000"
    result = compile_object(compiler, HERE / "every_name.c", tmp_path / "every.o", "-O2", limited)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize(
    "warnings",
    [
        ("-Wpedantic",),
        ("-Wconversion",),
        ("-Wcast-align", "-Wcast-qual", "-Wpointer-arith"),
        ("-Wmissing-declarations", "-Wredundant-decls", "-Wunused"),
    ],
    ids=" ".join,
)
def test_header_keeps_quiet_for_stricter_users(
    compiler: Compiler, warnings: tuple[str, ...], tmp_path: Path
) -> None:
    result = compile_object(compiler, HERE / "every_name.c", tmp_path / "every.o", "-O2", *warnings)
    assert result.returncode == 0, result.stderr


TABLE = """
#include "refbuf_table.h"
uintptr_t pointer(void) { return refbuf_thread_pointer(); }
int skips(RefBuf_Buffer *buffer) { return refbuf_skips(buffer); }
int spend(RefBuf_Buffer *buffer, uintptr_t object) { return refbuf_spend(buffer, object); }
int refund(RefBuf_Buffer *buffer, uintptr_t object) { return refbuf_refund(buffer, object); }
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="has one dialect of assembler")
def test_the_table_is_the_same_code_in_both_dialects_of_assembler(tmp_path: Path) -> None:
    assert C is not None
    source = tmp_path / "table.c"
    source.write_text(TABLE)
    made = []
    for dialect in ("att", "intel"):
        unit, code = tmp_path / f"{dialect}.o", tmp_path / f"{dialect}.bin"
        flags = ("-O2", "-Wno-missing-prototypes", f"-masm={dialect}")
        result = compile_object(Compiler("gcc", "gnu17"), source, unit, *flags)
        assert result.returncode == 0, result.stderr
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(unit), str(code)], check=True)
        made.append(code.read_bytes())
    assert made[0] and made[0] == made[1]


@pytest.mark.skipif(FREE_THREADED, reason="the free-threaded build's limited API is not the stable one")
def test_extension_of_the_limited_api_loads_and_imports_refbuf(tmp_path: Path) -> None:
    assert C is not None
    build_module("probe", tmp_path, (C, "probe.c"), flags=(LIMITED,))
    result = run_python("import probe; print('imported')", tmp_path)
    assert result.stdout.strip() == "imported", result.stderr


def test_units_in_c_and_in_cpp_share_one_import_state(tmp_path: Path) -> None:
    assert C is not None and CPP is not None
    units = {
        "c_first": ((C, "torture.c"), (CPP, "torture_unit.c")),
        "cpp_first": ((CPP, "torture.c"), (C, "torture_unit.c")),
    }
    for order, pair in units.items():
        folder = tmp_path / order
        folder.mkdir()
        build_module("torture_c", folder, *pair)
        code = (
            "import torture_c; torture_c.connect(); connected, here, there = torture_c.import_state();"
            "print(connected, here == there)"
        )
        result = run_python(code, folder)
        assert result.stdout.split() == ["1", "True"], (order, result.stderr)
