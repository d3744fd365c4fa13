"""With the shim, everything compiles that compiles without it, and without a warning:
each dialect of C and C++, what sources define before Python.h, and what is no
extension at all where a header is forced upon all that is compiled."""

from __future__ import annotations

import itertools
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from c_build import (
    COMPILERS,
    HERE,
    NEVER_GONE,
    SHIM_WAYS,
    WARNINGS,
    Compiler,
    build_module,
    compile_object,
    installed,
    refbuf_include,
    run_shimmed,
    shim_flags,
)

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

SHIMMED_WAYS = [way for way in SHIM_WAYS if way != "stock"]

C_DIALECTS = ("gnu89", "gnu99", "c11", "gnu17")
CPP_DIALECTS = ("c++98", "c++11", "c++17", "c++20")

DIALECTS = installed(
    Compiler(command, standard)
    for command, standards in (
        ("gcc", C_DIALECTS),
        ("clang", C_DIALECTS),
        ("g++", CPP_DIALECTS),
        ("clang++", CPP_DIALECTS),
    )
    for standard in standards
)

SYSTEM_HEADER = "#  pragma GCC system_header\n"

#: Each dialect in one way in, one way after the other; the ways do not depend on the dialect.
DIALECTS_AND_WAYS = list(zip(DIALECTS, itertools.cycle(SHIMMED_WAYS), strict=False))


def compile_text(
    compiler: Compiler, text: str, folder: Path, way: str, *flags: str
) -> subprocess.CompletedProcess[str]:
    """Compile a source of our own: nothing of refbuf's is in sight but by the shim."""
    source = folder / f"source-{way}.txt"
    source.write_text(text)
    return compile_object(
        compiler, source, folder / "source.o", "-fsyntax-only", *shim_flags(way), *flags, include=folder
    )


@pytest.mark.parametrize(("compiler", "way"), DIALECTS_AND_WAYS, ids=str)
def test_each_dialect_compiles_without_a_warning(compiler: Compiler, way: str, tmp_path: Path) -> None:
    source = HERE / ("shim_torture.cpp" if compiler.is_cpp else "shim_torture.c")
    flags = ("-fsyntax-only", "-pedantic", *shim_flags(way))
    result = compile_object(compiler, source, tmp_path / "none.o", *flags, include=HERE)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("way", ["directory", "forced"])
def test_the_shim_itself_gives_no_warning(compiler: Compiler, way: str, tmp_path: Path) -> None:
    """Users are kept from it, as from any system header; here it is none."""
    include = shutil.copytree(refbuf_include(), tmp_path / "include")
    headers = [include / "refbuf_shim.h", include / "shim" / "Python.h"]
    for header in headers:
        text = header.read_text()
        assert text.count(SYSTEM_HEADER) == 1
        header.write_text(text.replace(SYSTEM_HEADER, ""))
    found = (f"-I{include / 'shim'}",) if way == "directory" else ("-include", str(headers[0]))
    source = HERE / ("shim_torture.cpp" if compiler.is_cpp else "shim_torture.c")
    # gcc finds it odd that a function is noinline, and inline lest a probe that never calls it has it.
    of_gcc = ("-Wno-attributes", *NEVER_GONE) if compiler.command.startswith("g") else ()
    flags = ("-O2", *of_gcc, *found)
    result = compile_object(compiler, source, tmp_path / "some.o", *flags, include=HERE)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("way", ["directory", "forced"])
@pytest.mark.parametrize("first", [False, True], ids=["Python.h first", "refbuf.h first"])
def test_sources_that_use_refbuf_compile_with_the_shim(
    compiler: Compiler, way: str, first: bool, tmp_path: Path
) -> None:
    flags = ("-fsyntax-only", "-pedantic", *shim_flags(way), *(("-DREFBUF_FIRST",) if first else ()))
    result = compile_object(compiler, HERE / "every_name.c", tmp_path / "every.o", *flags)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("compiler", COMPILERS[:2], ids=str)
@pytest.mark.parametrize(
    "order",
    list(itertools.permutations(["Python.h", "refbuf.h", "refbuf_shim.h"])),
    ids=" ".join,
)
def test_the_headers_may_be_included_in_any_order(
    compiler: Compiler, order: tuple[str, ...], tmp_path: Path
) -> None:
    lines = [f"#include <{header}>" for header in order]
    uses = """
PyObject *both(PyObject *op);
PyObject *both(PyObject *op) { RefBuf_INCREF(op); return Py_NewRef(op); }
"""
    source = tmp_path / "orders.txt"
    source.write_text("\n".join([*lines, *lines, uses]))
    result = compile_object(compiler, source, tmp_path / "orders.o", "-fsyntax-only")
    assert result.returncode == 0, result.stderr


#: Warnings that some extensions are compiled with, and that are errors here.
STRICTER = ("-Wconversion", "-Wcast-qual", "-Wcast-align", "-Wmissing-declarations", "-Wredundant-decls")
STRICTER_CPP = ("-Wold-style-cast", "-Wzero-as-null-pointer-constant", "-Wextra-semi")

USES_ALL = """
#include <Python.h>
PyObject *uses_all(PyObject *op, PyTypeObject *type);
PyObject *uses_all(PyObject *op, PyTypeObject *type)
{
    PyObject *variable = op;
    void (*count)(PyObject *) = Py_INCREF;
    count(op);
    Py_INCREF(type);
    Py_XINCREF(type);
    Py_DECREF(type);
    Py_XDECREF(type);
    Py_CLEAR(variable);
    Py_XSETREF(variable, op);
    Py_SETREF(variable, Py_XNewRef(op));
    Py_IncRef(op);
    Py_DecRef(op);
    return Py_NewRef(variable);
}
PyMODINIT_FUNC PyInit_uses_all(void);
PyMODINIT_FUNC PyInit_uses_all(void)
{
    static struct PyModuleDef definition;
    return PyModule_Create(&definition);
}
"""


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("way", ["directory", "forced"])
def test_stricter_users_see_no_warning(compiler: Compiler, way: str, tmp_path: Path) -> None:
    warnings = STRICTER + (STRICTER_CPP if compiler.is_cpp else ())
    result = compile_text(compiler, USES_ALL, tmp_path, way, *warnings)
    assert result.returncode == 0, result.stderr


# -- what CPython's macros take ---------------------------------------------------------

VOLATILE = """
#include <Python.h>
void change(PyObject *op);
void change(PyObject *op)
{
    PyObject *volatile across_a_jump = op;
    Py_SETREF(across_a_jump, op);
    Py_XSETREF(across_a_jump, op);
    Py_CLEAR(across_a_jump);
}
"""


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("way", ["stock", "directory"])
def test_a_volatile_variable_may_be_cleared(compiler: Compiler, way: str, tmp_path: Path) -> None:
    result = compile_text(compiler, VOLATILE, tmp_path, way)
    assert result.returncode == 0, result.stderr


REGISTER = """
#include <Python.h>
void change(PyObject *op);
void change(PyObject *op)
{
    register PyObject *variable = op;
    Py_CLEAR(variable);
}
"""


@pytest.mark.parametrize("compiler", [one for one in COMPILERS if not one.is_cpp], ids=str)
def test_a_register_may_be_cleared_where_cpython_lets_it(compiler: Compiler, tmp_path: Path) -> None:
    if compile_text(compiler, REGISTER, tmp_path, "stock").returncode != 0:
        pytest.skip("this CPython takes the variable's address")
    result = compile_text(compiler, REGISTER, tmp_path, "directory")
    assert result.returncode == 0, result.stderr


CONVERTED = """
#include <Python.h>
struct Reference {
    PyTypeObject *type;
    operator PyTypeObject *() const { return type; }
};
void change(Reference reference, PyTypeObject *type);
void change(Reference reference, PyTypeObject *type)
{
    Py_SETREF(type, reference);
    Py_XSETREF(type, reference);
}
"""


@pytest.mark.parametrize("compiler", [one for one in COMPILERS if one.is_cpp], ids=str)
@pytest.mark.parametrize("way", ["stock", "directory"])
def test_what_is_set_may_convert_to_the_variables_type(compiler: Compiler, way: str, tmp_path: Path) -> None:
    result = compile_text(compiler, CONVERTED, tmp_path, way)
    assert result.returncode == 0, result.stderr


ATOMIC = """
#include <Python.h>
#include <stdatomic.h>
void change(_Atomic(PyObject *) *shared, PyObject *op);
void change(_Atomic(PyObject *) *shared, PyObject *op) { Py_XSETREF(*shared, op); Py_CLEAR(*shared); }
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for an instruction of x86-64")
@pytest.mark.skipif(sys.version_info < (3, 12), reason="3.11 changes variables by any type")
@pytest.mark.parametrize("compiler", [one for one in COMPILERS if not one.is_cpp], ids=str)
def test_an_atomic_variable_stays_one(compiler: Compiler, tmp_path: Path) -> None:
    source, code = tmp_path / "atomic.txt", tmp_path / "atomic.s"
    source.write_text(ATOMIC)

    def exchanges(way: str) -> int:
        result = compile_object(compiler, source, code, "-O2", "-S", *shim_flags(way), include=tmp_path)
        assert result.returncode == 0, result.stderr
        # Of the counts none is one.
        return code.read_text().count("xchgq")

    assert exchanges("directory") == exchanges("stock") == 2


TEMPLATE_ARGUMENT = """
#include <Python.h>
template <void (*count)(PyObject *)> struct Counter {
    static void by(PyObject *op) { count(op); }
};
template <PyObject *(*give)(PyObject *)> struct Giver {
    static PyObject *by(PyObject *op) { return give(op); }
};
void change(PyObject *op);
void change(PyObject *op)
{
    Counter<Py_IncRef>::by(op);
    Counter<&Py_DecRef>::by(op);
    Counter<_Py_IncRef>::by(op);
    Counter<_Py_DecRef>::by(op);
    Giver<Py_NewRef>::by(op);
    Giver<&Py_XNewRef>::by(op);
}
"""


@pytest.mark.parametrize("compiler", [one for one in DIALECTS if one.standard == "c++98"], ids=str)
@pytest.mark.parametrize("way", ["stock", "directory"])
def test_an_exported_function_may_be_a_template_argument(
    compiler: Compiler, way: str, tmp_path: Path
) -> None:
    # In C++98 only what has external linkage may be one.
    result = compile_text(compiler, TEMPLATE_ARGUMENT, tmp_path, way)
    assert result.returncode == 0, result.stderr


NAMED_BY_A_FUNCTION = """
#include <Python.h>
#include <memory>
#include <type_traits>
using Owner = std::unique_ptr<PyObject, std::integral_constant<decltype(&Py_DecRef), &Py_DecRef>>;
struct Box { Owner owner; };
Owner make_owner(PyObject *op);
template <void (*drop)(PyObject *)> struct Dropper { static void by(PyObject *op) { drop(op); } };
inline Dropper<&Py_DecRef> dropper;
"""
DEFINES_IT = "Owner make_owner(PyObject *op) { return Owner(Py_XNewRef(op)); }\n"
CALLS_IT = "int main() { Box box{make_owner(nullptr)}; return box.owner != nullptr; }\n"


@pytest.mark.parametrize("compiler", [one for one in COMPILERS if one.is_cpp], ids=str)
@pytest.mark.parametrize("way", ["stock", "directory", "forced"])
def test_a_type_that_a_function_names_is_the_same_in_all_units(
    compiler: Compiler, way: str, tmp_path: Path
) -> None:
    objects = []
    for name, text in ("defines", DEFINES_IT), ("calls", CALLS_IT):
        source = tmp_path / f"{name}.txt"
        source.write_text(NAMED_BY_A_FUNCTION + text)
        objects.append(str(tmp_path / f"{name}.o"))
        result = compile_object(
            compiler, source, Path(objects[-1]), "-O1", *shim_flags(way), include=tmp_path
        )
        assert result.returncode == 0, result.stderr
    library = tmp_path / "named.so"
    command = [compiler.command, "-shared", *objects, "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # What calls it has found what defines it.
    names = subprocess.run(["nm", "-u", str(library)], capture_output=True, text=True, check=True).stdout
    assert "make_owner" not in names


# -- what sources define before Python.h ------------------------------------------------

DEFINES = """
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <string.h>
#if PY_VERSION_HEX < 0x030D0000 && !defined(PyArg_ParseTuple)
#  error "PY_SSIZE_T_CLEAN came too late"
#endif
void *uses_them(PyObject *args, Py_ssize_t *size);
void *uses_them(PyObject *args, Py_ssize_t *size)
{
    char *bytes;
    Py_INCREF(args);
    return PyArg_ParseTuple(args, "y#", &bytes, size) ? memmem(bytes, (size_t)*size, "a", 1) : NULL;
}
"""


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("way", ["directory", "forced"])
@pytest.mark.parametrize("value", ["", " 1"], ids=["no value", "a value"])
def test_a_source_may_define_what_python_h_asks_for(
    compiler: Compiler, way: str, value: str, tmp_path: Path
) -> None:
    # With any value: what the shim defines where it is forced upon all must not be in the way.
    text = DEFINES.replace("PY_SSIZE_T_CLEAN\n", f"PY_SSIZE_T_CLEAN{value}\n", 1)
    if compiler.is_cpp or way == "forced":
        # Defined by g++ itself, and by pyconfig.h before the source can.
        text = text.replace("#define _GNU_SOURCE\n", "")
    result = compile_text(compiler, text, tmp_path, way)
    assert result.returncode == 0, result.stderr


LIMITED = """
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#ifdef PyList_GET_ITEM
#  error "Py_LIMITED_API came too late"
#endif
PyObject *take(PyObject *op);
PyObject *take(PyObject *op) { return Py_INCREF(op), Py_NewRef(op); }
"""


@pytest.mark.skipif(FREE_THREADED, reason="a free-threaded build has no such limited API")
@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
def test_a_source_may_define_the_limited_api(compiler: Compiler, tmp_path: Path) -> None:
    result = compile_text(compiler, LIMITED, tmp_path, "directory")
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(FREE_THREADED, reason="a free-threaded build has no such limited API")
@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("version", ["3", "0x03020000", "0x03040000", "0x03060000"])
@pytest.mark.parametrize("way", ["directory", "forced"])
def test_the_limited_api_may_be_an_old_one(
    compiler: Compiler, version: str, way: str, tmp_path: Path
) -> None:
    flag = f"-DPy_LIMITED_API={version}"
    if compile_text(compiler, OLD_LIMITED, tmp_path, "stock", flag).returncode != 0:
        pytest.skip("this CPython has no such limited API")
    result = compile_text(compiler, OLD_LIMITED, tmp_path, way, flag)
    assert result.returncode == 0, result.stderr


OLD_LIMITED = """
#include <Python.h>
PyObject *take(PyObject *op);
PyObject *take(PyObject *op) { Py_INCREF(op); return op; }
PyMODINIT_FUNC PyInit_old(void);
PyMODINIT_FUNC PyInit_old(void)
{
    static struct PyModuleDef definition;
    return PyModule_Create(&definition);
}
"""

# 3.15's stable ABI for both builds, as far as headers of builds with a GIL know it.
ABI3T = """
#include <Python.h>
#if !REFBUF_COUNTS
#  error "its functions are not refbuf's"
#endif
#ifdef __cplusplus
template <typename First, typename Second> PyObject *pick(PyObject *op) { return op; }
#  define PICK(op) pick<int, long>(op)
#else
#  define PICK(op) op
#endif
#define Py_SETREF(variable, op) do { Py_DECREF(variable); variable = (op); } while (0)
PyObject *take(PyObject *op);
PyObject *take(PyObject *op)
{
    Py_INCREF(PICK(op));
    Py_XDECREF(PICK(op));
    Py_SETREF(op, Py_NewRef(PICK(op)));
    return Py_XNewRef(op);
}
"""


@pytest.mark.skipif(FREE_THREADED, reason="needs headers that have the limited API")
@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("way", ["directory", "forced"])
def test_the_stable_abi_of_both_builds_goes_through_functions(
    compiler: Compiler, way: str, tmp_path: Path
) -> None:
    flags = ("-DPy_LIMITED_API=0x030b0000", "-DPy_TARGET_ABI3T=0x030b0000")
    result = compile_text(compiler, ABI3T, tmp_path, way, *flags)
    assert result.returncode == 0, result.stderr


INTERNAL = """
#define Py_BUILD_CORE_MODULE 1
#include <Python.h>
#include "internal/pycore_object.h"
#include "internal/pycore_long.h"
#include "internal/pycore_tuple.h"
#include "internal/pycore_list.h"
#include "internal/pycore_dict.h"
#include "internal/pycore_unicodeobject.h"
#ifndef Py_BUILD_CORE
#  error "Py_BUILD_CORE_MODULE came too late"
#endif
PyObject *take(PyObject *op);
PyObject *take(PyObject *op)
{
    PyInterpreterState *interpreter = _PyInterpreterState_GET();
    PyObject *variable = Py_NewRef(op);
    Py_SETREF(variable, PyTuple_New(interpreter != NULL));
    _PyObject_GC_UNTRACK(variable);
    return Py_INCREF(op), variable;
}
"""


@pytest.mark.parametrize("compiler", [one for one in COMPILERS if not one.is_cpp], ids=str)
def test_a_source_may_be_of_cpythons_core(compiler: Compiler, tmp_path: Path) -> None:
    # CPython's internal headers warn, even as system headers, where they are compiled as C11.
    quiet = ("-w",)
    stock = compile_text(compiler, INTERNAL, tmp_path, "stock", *quiet)
    if stock.returncode != 0:
        pytest.skip(f"CPython's internal headers do not compile: {stock.stderr[:500]}")
    result = compile_text(compiler, INTERNAL, tmp_path, "directory", *quiet)
    assert result.returncode == 0, result.stderr


# -- what is no extension ---------------------------------------------------------------

PROBE = """
#include <math.h>
#include <stdio.h>
int main(void) { printf("%d", (int)sqrt(4.0)); return 0; }
"""


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("way", ["forced", "both"])
@pytest.mark.parametrize("python", [False, True], ids=["without Python's headers", "with Python's headers"])
def test_a_program_without_python_compiles_links_and_runs(
    compiler: Compiler, way: str, python: bool, tmp_path: Path
) -> None:
    # It must not need libpython because a header was forced upon it.
    program = tmp_path / "probe"
    language = "c++" if compiler.is_cpp else "c"
    command = [compiler.command, "-x", language, f"-std={compiler.standard}", *WARNINGS, "-O0"]
    command += shim_flags(way)
    if python:
        command.append(f"-isystem{sysconfig.get_path('include')}")
    command += ["-", "-o", str(program), "-lm"]
    result = subprocess.run(command, input=PROBE, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert subprocess.run([str(program)], capture_output=True, text=True).stdout == "2"


@pytest.mark.parametrize("compiler", [one for one in COMPILERS if not one.is_cpp], ids=str)
@pytest.mark.parametrize("way", SHIMMED_WAYS)
@pytest.mark.parametrize("suffix", [".S", ".s"])
def test_assembler_is_left_alone(compiler: Compiler, way: str, suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"source{suffix}"
    source.write_text('\t.globl nothing\nnothing:\n\t.byte 0\n\t.section .note.GNU-stack,"",@progbits\n')
    command = [compiler.command, *shim_flags(way), f"-isystem{sysconfig.get_path('include')}"]
    command += ["-c", str(source), "-o", str(tmp_path / "source.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("way", ["directory", "both"])
def test_python_h_that_is_missing_is_still_said_to_be(compiler: Compiler, way: str, tmp_path: Path) -> None:
    # A configure script asks whether it is there; with the directory alone it is not.
    language = "c++" if compiler.is_cpp else "c"
    command = [compiler.command, "-x", language, *shim_flags(way), "-fsyntax-only", "-"]
    result = subprocess.run(command, input="#include <Python.h>\n", capture_output=True, text=True)
    assert result.returncode != 0
    assert "Python.h" in result.stderr


@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@pytest.mark.parametrize("way", ["directory", "both"])
def test_the_first_of_two_such_directories_counts(compiler: Compiler, way: str, tmp_path: Path) -> None:
    # As where the environment's flags name one, and a package's build another.
    other = tmp_path / "other"
    shutil.copytree(refbuf_include(), other)
    for header in "refbuf.h", "refbuf_shim.h":
        (other / header).write_text('#error "the second"\n')
    result = compile_text(compiler, USES_ALL, tmp_path, way, f"-I{other / 'shim'}")
    assert result.returncode == 0, result.stderr
    flags = (f"-I{other / 'shim'}", *shim_flags("directory"))
    result = compile_text(compiler, USES_ALL, tmp_path, "stock", *flags)
    assert "the second" in result.stderr


# -- a source that uses both ------------------------------------------------------------


@pytest.mark.parametrize("way", ["directory", "forced"])
def test_a_source_that_uses_both_counts_exactly(way: str, tmp_path: Path) -> None:
    compiler = COMPILERS[0]
    flags = shim_flags(way)
    units = ((compiler, "torture.c"), (compiler, "torture_unit.c"))
    build_module("torture_c", tmp_path, *units, flags=flags, include=refbuf_include())
    code = """
        import threading
        import refbuf, torture_c as torture
        assert bool(torture.import_state()[0]) == (SHIMMED_IS_CONNECTED), torture.import_state()
        made = []
        maker = threading.Thread(target=lambda: made.append([]))
        maker.start()
        maker.join()
        for thing in (made[0], []):
            before = torture.refcount(thing)
            for acquirer in torture.acquirer_names():
                for releaser in torture.releaser_names():
                    torture.acquire(acquirer, thing, 100)
                    assert torture.refcount(thing) == before + 100
                    torture.release(releaser, thing, 100)
                    assert torture.refcount(thing) == before
            torture.evaluates_once(thing)
            torture.accepts_null(thing)
            torture.accepts_any_object_type(thing)
        print("exact")
    """.replace("SHIMMED_IS_CONNECTED", str(FREE_THREADED))
    result = run_shimmed(code, tmp_path)
    assert result.stdout.strip() == "exact", result.stderr
