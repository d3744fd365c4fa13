"""Extensions compiled with the shim find refbuf by themselves, or do without it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from c_build import (
    HERE,
    NEVER_GONE,
    SHIM_MODULES,
    C,
    Compiler,
    ShimModule,
    build_module,
    compile_object,
    refbuf_include,
    run_shimmed,
    shim_flags,
)

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
SHIMMED = [module.name for module in SHIM_MODULES if module.way != "stock"]
KNOWING = {module.name for module in SHIM_MODULES if module.knows_refbuf}

assert C is not None

only_free_threaded = pytest.mark.skipif(
    not FREE_THREADED, reason="a GIL build does not buffer attached threads"
)

#: For child processes: every position, on objects of the main thread, of another that lives, and of
#: one that has ended; then in threads. Not by refbuf.refcount: refbuf may not be there.
EXACT = """
import gc, threading
from concurrent.futures import ThreadPoolExecutor

class Made:
    pass

def made_by(leave):
    made, ready = [], threading.Event()
    def own():
        made.append(Made())
        ready.set()
        leave.wait(60)
    maker = threading.Thread(target=own, daemon=True)
    maker.start()
    ready.wait(60)
    if leave.is_set():
        maker.join()
    return made.pop()

def counts(things):
    # Settled first, where there is refbuf: the interpreter sees credits too.
    flush_all = getattr(sys.modules.get("refbuf"), "__dict__", {}).get("flush_all")
    if flush_all is not None:
        flush_all()
    return [sys.getrefcount(thing) for thing in things]

def exact(*modules):
    stay, gone = threading.Event(), threading.Event()
    gone.set()
    things = [Made(), made_by(stay), made_by(gone)]
    spare = things * 200
    gc.collect()
    before = counts(things)
    for module in modules:
        for name, takes, drops in module.table():
            for index in range(3):  # no variable for the object: it would be a reference
                module.go(name, things[index], 20, True)
            assert counts(things) == before, (module, name, before, counts(things))
    def visit(turn):
        for module in modules:
            for name, takes, drops in module.table():
                for thing in things:
                    module.go(name, thing, 5, True)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(visit, range(3)))
    gc.collect()
    after = counts(things)
    assert after == before, (before, after)
    stay.set()

def has_refbuf():
    return sys.modules.get("refbuf") is not None
"""


def assert_prints(result: subprocess.CompletedProcess[str], expected: str) -> None:
    """The child did what it should, and had nothing to complain of."""
    assert (result.stdout.strip(), result.stderr, result.returncode) == (expected, "", 0)


# -- each way of being initialized ----------------------------------------------------------


@pytest.mark.parametrize("name", SHIMMED)
@pytest.mark.parametrize("require", [None, "", "0", "1"])
def test_importing_an_extension_reaches_refbuf(name: str, require: str | None, shim_folder: Path) -> None:
    code = f"""
        assert "refbuf" not in sys.modules
        import {name}
        print("refbuf" in sys.modules)
    """
    # Where nothing is buffered it is not needed.
    expected = name in KNOWING or require == "1"
    assert_prints(run_shimmed(code, shim_folder, require=require), str(expected))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    assert C is not None
    unit, path = folder / "library.o", folder / "library.so"
    result = compile_object(
        C, HERE / "shim_library.c", unit, "-O2", "-DNDEBUG", *shim_flags("directory"), include=HERE
    )
    assert result.returncode == 0, result.stderr
    subprocess.run([C.command, "-shared", str(unit), "-o", str(path)], check=True)
    return path


LIBRARY = (
    EXACT
    + """
import ctypes, time
library = ctypes.PyDLL(PATH)
for function in "library_count", "library_take", "library_drop", "library_count_behind_others":
    getattr(library, function).argtypes = [ctypes.py_object, ctypes.c_int]
stay = threading.Event()
mine, foreign = Made(), made_by(stay)

def reached():
    until = time.monotonic() + 20
    while "refbuf" not in sys.modules and time.monotonic() < until:
        time.sleep(0.001)
    return has_refbuf()

def count(thing, times):
    before = counts([thing])
    assert library.library_count(thing, times) == times
    assert counts([thing]) == before
"""
)


@only_free_threaded
def test_a_library_that_is_no_module_reaches_refbuf_when_it_counts(library: Path, tmp_path: Path) -> None:
    code = """
count(mine, 1000)
for _ in range(1000):
    pass
assert not has_refbuf()  # its own objects need none
count(foreign, 1)
assert reached()
count(foreign, 1000)
before = sys.modules["refbuf"].stats().hits
count(foreign, 1000)
assert sys.modules["refbuf"].stats().hits - before > 1000
stay.set()
print("reached")
"""
    assert_prints(run_shimmed(LIBRARY.replace("PATH", repr(str(library))) + code, tmp_path), "reached")


@only_free_threaded
def test_a_library_does_not_ask_where_it_takes_a_reference(library: Path, tmp_path: Path) -> None:
    """An increment waits for nobody: not for the lock of the queue that asking needs either."""
    code = """
library.library_take(foreign, 100)
for _ in range(1000):
    pass
assert not has_refbuf()
library.library_drop(foreign, 100)
assert reached()
stay.set()
print("reached")
"""
    assert_prints(run_shimmed(LIBRARY.replace("PATH", repr(str(library))) + code, tmp_path), "reached")


@only_free_threaded
def test_a_library_that_found_no_room_to_ask_asks_again(library: Path, tmp_path: Path) -> None:
    code = """
assert 0 < library.library_count_behind_others(foreign, 1) < 1_000_000
for _ in range(1000):
    pass
assert not has_refbuf()
count(foreign, 1)
assert reached()
stay.set()
print("reached")
"""
    assert_prints(run_shimmed(LIBRARY.replace("PATH", repr(str(library))) + code, tmp_path), "reached")


@only_free_threaded
def test_a_library_that_counts_in_other_threads_reaches_refbuf_in_the_main_thread(
    library: Path, tmp_path: Path
) -> None:
    code = """
class Finder:
    # Who imports refbuf.
    threads = []
    def find_spec(name, path=None, target=None):
        if name == "refbuf":
            Finder.threads.append(threading.current_thread())
sys.meta_path.insert(0, Finder)

def body():
    for _ in range(100):
        count(mine, 100)
threads = [threading.Thread(target=body) for _ in range(4)]
for thread in threads:
    thread.start()
assert reached()
for thread in threads:
    thread.join()
assert Finder.threads == [threading.main_thread()], Finder.threads
stay.set()
print("reached")
"""
    # Counts are compared in one thread; others have references of their own while they run.
    code = code.replace("count(mine, 100)", "library.library_count(mine, 100)")
    assert_prints(run_shimmed(LIBRARY.replace("PATH", repr(str(library))) + code, tmp_path), "reached")


def test_a_library_counts_exactly_without_refbuf(library: Path, tmp_path: Path) -> None:
    code = """
sys.modules["refbuf"] = None
for _ in range(100):
    count(mine, 100)
    count(foreign, 100)
assert not has_refbuf()
stay.set()
print("exact")
"""
    assert_prints(run_shimmed(LIBRARY.replace("PATH", repr(str(library))) + code, tmp_path), "exact")


@only_free_threaded
def test_where_refbuf_is_required_a_library_tells_the_hook_and_not_the_main_thread(
    library: Path, tmp_path: Path
) -> None:
    # Whatever the main thread is at has nothing to do with the library.
    code = """
sys.modules["refbuf"] = None
heard = []
sys.unraisablehook = lambda it: heard.append(it.exc_type)
worker = threading.Thread(target=library.library_count, args=(foreign, 1))
worker.start()
until = time.monotonic() + 20
while not heard and time.monotonic() < until:
    pass
worker.join()
count(foreign, 100)
assert heard == [ModuleNotFoundError], heard  # once
stay.set()
print("exact")
"""
    program = LIBRARY.replace("PATH", repr(str(library))) + code
    assert_prints(run_shimmed(program, tmp_path, require="1"), "exact")


# -- without refbuf ---------------------------------------------------------------------------

#: What stands in refbuf's place: Python code for it, or for what is run before.
BLOCKED = "sys.modules['refbuf'] = None\n"
IMPOSTORS = {
    "an ImportError": "raise ImportError('no refbuf today')",
    "a RuntimeError": "raise RuntimeError('odd')",
    "an exception class": "raise LookupError",
    "a MemoryError": "raise MemoryError",
    "a SyntaxError": "def (",
    "no capsule": "",
    "another object for the capsule": "_C_API = 7",
    "an attribute that fails": "def __getattr__(name): raise RuntimeError(name)",
    "no module": "import sys; sys.modules['refbuf'] = object()",
    "an exception that has no text": (
        "class Odd(Exception):\n    def __str__(self): raise ValueError('no text')\nraise Odd"
    ),
}

IMPORT_OR_SAY_WHY = """
try:
    import {name} as torture
except ImportError as error:
    assert type(error) in (ImportError, ModuleNotFoundError), error
    assert "refbuf" in str(error), error
    print("refused")
else:
    exact(torture)
    assert {connected} == has_refbuf()
    print("exact")
"""


def impostor(text: str, folder: Path) -> Path:
    """A folder in which refbuf is something else."""
    place = folder / "impostor"
    place.mkdir()
    (place / "refbuf.py").write_text(text)
    return place


@pytest.mark.parametrize("name", SHIMMED)
def test_without_refbuf_counts_are_exact(name: str, shim_folder: Path) -> None:
    code = BLOCKED + EXACT + IMPORT_OR_SAY_WHY.format(name=name, connected=False)
    assert_prints(run_shimmed(code, shim_folder), "exact")


@pytest.mark.parametrize("require", ["", "0", "1"])
def test_where_refbuf_is_not_installed(require: str, shim_folder: Path) -> None:
    code = EXACT + IMPORT_OR_SAY_WHY.format(name="shim_c", connected=False)
    result = run_shimmed(code, shim_folder, "-S", require=require)  # without site-packages
    assert_prints(result, "refused" if require == "1" else "exact")


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_whatever_stands_in_refbufs_place_counts_are_exact(
    kind: str, shim_folder: Path, tmp_path: Path
) -> None:
    path = impostor(IMPOSTORS[kind], tmp_path)
    code = EXACT + IMPORT_OR_SAY_WHY.format(name="shim_c", connected="has_refbuf()")
    assert_prints(run_shimmed(code, shim_folder, path=path), "exact")


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_where_refbuf_is_required_whatever_stands_in_its_place_is_an_import_error(
    kind: str, shim_folder: Path, tmp_path: Path
) -> None:
    path = impostor(IMPOSTORS[kind], tmp_path)
    code = EXACT + IMPORT_OR_SAY_WHY.format(name="shim_c", connected="has_refbuf()")
    assert_prints(run_shimmed(code, shim_folder, require="1", path=path), "refused")


@pytest.fixture(scope="module")
def requiring_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a module that requires refbuf unless the environment says otherwise."""
    folder = tmp_path_factory.mktemp("requiring")
    flags = ("-DREFBUF_REQUIRE=1", *NEVER_GONE)
    ShimModule("shim_requiring", Compiler("gcc", "gnu17"), "directory", flags).build(folder)
    return folder


@pytest.mark.parametrize("require", [None, "", "0", "1"])
def test_an_extension_may_be_compiled_to_require_refbuf(require: str | None, requiring_folder: Path) -> None:
    code = EXACT + IMPORT_OR_SAY_WHY.format(name="shim_requiring", connected="has_refbuf()")
    result = run_shimmed(code, requiring_folder, "-S", require=require)  # without site-packages
    assert_prints(result, "exact" if require == "0" else "refused")
    assert_prints(run_shimmed(code, requiring_folder, require=require), "exact")


@pytest.mark.parametrize("name", SHIMMED)
def test_where_refbuf_is_required_and_missing_no_extension_is_imported(name: str, shim_folder: Path) -> None:
    code = f"""
        import os
        sys.modules["refbuf"] = None
        for attempt in range(3):
            try:
                import {name}
            except ImportError as error:
                assert "refbuf" in str(error)
            else:
                raise SystemExit("it was imported")
        os.environ["REFBUF_REQUIRE"] = "0"
        import {name}
        del sys.modules["refbuf"], sys.modules[{name!r}]
        os.environ["REFBUF_REQUIRE"] = "1"
        import {name}
        assert {name}.table()
        print("refbuf" in sys.modules)
    """
    assert_prints(run_shimmed(code, shim_folder, require="1"), "True")


@pytest.mark.parametrize("require", [None, "0", "1"])
@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "SystemExit(7)", "GeneratorExit"])
def test_what_is_no_error_is_passed_on(
    require: str | None, kind: str, shim_folder: Path, tmp_path: Path
) -> None:
    path = impostor(f"raise {kind}", tmp_path)
    code = """
        try:
            import shim_c
        except BaseException as raised:
            print(type(raised).__name__)
            del sys.path[0]
            import shim_c
        else:
            print("imported")
    """
    asks = FREE_THREADED or require == "1"
    expected = kind.partition("(")[0] if asks else "imported"
    assert_prints(run_shimmed(code, shim_folder, require=require, path=path), expected)


# -- another ABI version ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an extension that was compiled with a shim of another version."""
    folder = tmp_path_factory.mktemp("other_version")
    include = folder / "include"
    shutil.copytree(refbuf_include(), include)
    header = (include / "refbuf.h").read_text()
    (line,) = re.findall(r"^#define REFBUF_ABI_VERSION .*$", header, re.MULTILINE)
    (include / "refbuf.h").write_text(header.replace(line, "#define REFBUF_ABI_VERSION 99u"))
    assert C is not None
    flags = ("-DSHIM_MODULE=shim_other", f"-I{HERE}", *NEVER_GONE)
    units = ((C, "shim_torture.c"), (C, "shim_unit.c"))
    build_module("shim_other", folder, *units, flags=flags, include=include / "shim")
    return folder


@pytest.mark.parametrize("require", [None, "0", "1"])
def test_another_version_of_refbuf_is_not_used(require: str | None, other_version: Path) -> None:
    code = """
try:
    import shim_other
except ImportError as error:
    assert "ABI version 99" in str(error) and "rebuild" in str(error)
    print("refused")
else:
    import refbuf
    exact(shim_other)
    assert refbuf.stats().hits == 0
    print("exact")
"""
    result = run_shimmed(EXACT + code, other_version, require=require)
    assert_prints(result, "refused" if require == "1" else "exact")


@only_free_threaded
def test_extensions_of_both_versions_count_the_same_objects(other_version: Path, shim_folder: Path) -> None:
    code = """
import shim_other, shim_c, shim_cpp, refbuf
exact(shim_other, shim_c, shim_cpp)
assert refbuf.stats().hits > 0
print("exact")
"""
    assert_prints(run_shimmed(EXACT + code, other_version, path=shim_folder), "exact")


# -- late, and all at once --------------------------------------------------------------------


@only_free_threaded
def test_refbuf_may_come_when_the_extension_has_counted_already(shim_folder: Path) -> None:
    code = """
sys.modules["refbuf"] = None
import shim_c
stay = threading.Event()
things = [Made(), made_by(stay)]
before = counts(things)
exact(shim_c)
held = [shim_c.make(thing) for thing in things for _ in range(100)]
del sys.modules["refbuf"]
import refbuf
exact(shim_c)
assert refbuf.stats().hits == 0  # it has asked once, and does not again
del sys.modules["shim_c"]
import shim_c  # the same library, initialized again
for number in held[::-1]:
    shim_c.drop(number)
assert counts(things) == before, (before, counts(things))
exact(shim_c)
assert refbuf.stats().hits > 0
stay.set()
print("exact")
"""
    assert_prints(run_shimmed(EXACT + code, shim_folder), "exact")


@pytest.mark.parametrize("blocked", [False, True], ids=["with refbuf", "without refbuf"])
def test_many_threads_may_import_at_once(blocked: bool, shim_folder: Path) -> None:
    code = f"""
import importlib
names = {SHIMMED!r}
shared = Made()
spare = [shared] * 200
before = sys.getrefcount(shared)
start = threading.Barrier(8)

def body(number):
    start.wait(60)
    for turn in range(len(names)):
        module = importlib.import_module(names[(number + turn) % len(names)])
        for name, takes, drops in module.table():
            module.go(name, shared, 10, True)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(body, range(8)))
if has_refbuf():
    sys.modules["refbuf"].flush_all()
gc.collect()
assert sys.getrefcount(shared) == before, (before, sys.getrefcount(shared))
exact(*(sys.modules[name] for name in names))
print(has_refbuf())
"""
    code = (BLOCKED if blocked else "") + EXACT + code
    assert_prints(run_shimmed(code, shim_folder), str(bool(KNOWING) and not blocked))
