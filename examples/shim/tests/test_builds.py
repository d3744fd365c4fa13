"""Each way to build an extension whose source stays as it is: with the shim, it counts through refbuf.

    python -P -m pytest examples/shim/tests     by an interpreter that has refbuf

What the builds need is in requirements.txt, and is installed into an environment of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import refbuf

HERE = Path(__file__).resolve().parent.parent
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

WAYS = ("setuptools", "meson-python", "scikit-build-core", "cython", "pybind11", "nanobind")

# What a user sees: the same with the shim and without.
USE = """
import sys, threading
import codebook

class Value:
    pass

assert ("refbuf" in sys.modules) == {expected}
values = [Value() for _ in range(3)]
before = [sys.getrefcount(value) for value in values]
book = codebook.Codebook(values)
codes = bytes([0, 2, 2, 1]) * 25

def decode():
    for _ in range(200):
        assert [values.index(value) for value in book.decode(codes)] == list(codes)
    assert book.find(codes, values[1]) == 3
    assert book.find(bytes([0, 2]), values[1]) == -1

threads = [threading.Thread(target=decode) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""

# Each of the two threads takes 20,000 references to objects that the main thread made.
THROUGH_BUFFERS = """
assert refbuf.stats().hits > 30_000, refbuf.stats()
refbuf.flush_all()
"""

EXACT = """
del book
assert [sys.getrefcount(value) for value in values] == before
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has what builds need, and refbuf."""
    folder = tmp_path_factory.mktemp("build")
    run([sys.executable, "-m", "venv", folder])
    made = folder / "bin" / "python"
    run([made, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "-r", HERE / "requirements.txt"])
    packages = run([made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    # Behind its own: of what is there, refbuf alone is missing.
    (Path(packages) / "refbuf.pth").write_text(f"{Path(refbuf.__file__).parent.parent}\n")
    return made


def run(command: list[object], **changes: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("CFLAGS", "PYTHONPATH")}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment | changes
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def build(python: Path, source: Path, folder: Path, **changes: str) -> Path:
    """Installs a copy of the source, which stays as it is."""
    copy, target = folder / "source", folder / "installed"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    options = ["--quiet", "--no-build-isolation", "--no-deps", "--no-cache-dir", "--target", target]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    run([python, "-m", "pip", "install", *options, copy], PATH=path, **changes)
    return target


def module_of(target: Path) -> bytes:
    (module,) = target.rglob("codebook*.so")
    return module.read_bytes()


def use(python: Path, target: Path, *, shim: bool) -> None:
    expected = shim and FREE_THREADED
    code = USE.format(expected=expected)
    if expected:
        code += "import refbuf" + THROUGH_BUFFERS
    run([python, "-P", "-c", code + EXACT], PYTHONPATH=str(target), REFBUF_REQUIRE=str(int(expected)))


@pytest.mark.parametrize("way", WAYS)
def test_an_extension_counts_through_refbuf(way: str, python: Path, tmp_path: Path) -> None:
    target = build(python, HERE / way, tmp_path)
    assert b"refbuf._C_API" in module_of(target)
    use(python, target, shim=True)


def test_the_examples_in_c_have_one_source() -> None:
    """Each is complete for whoever copies its folder."""
    sources = {(HERE / way / "codebook.c").read_text() for way in WAYS[:3]}
    assert len(sources) == 1


def test_the_same_source_without_the_shim_does_not(python: Path, tmp_path: Path) -> None:
    source = tmp_path / "stock"
    shutil.copytree(HERE / "setuptools", source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    setup = (source / "setup.py").read_text()
    changed = setup.replace("include_dirs=[refbuf.get_shimdir()]", "")
    assert changed != setup
    (source / "setup.py").write_text(changed)
    target = build(python, source, tmp_path)
    assert b"refbuf._C_API" not in module_of(target)
    use(python, target, shim=False)

    # From outside, as other people's packages are built.
    again = tmp_path / "again"
    again.mkdir()
    flags = f"-O2 -DNDEBUG -I{refbuf.get_shimdir()}"
    target = build(python, source, again, CFLAGS=flags)
    assert b"refbuf._C_API" in module_of(target)
    use(python, target, shim=True)


def test_the_header_may_be_forced_upon_a_source(python: Path, tmp_path: Path) -> None:
    source = tmp_path / "stock"
    shutil.copytree(HERE / "setuptools", source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    setup = source / "setup.py"
    setup.write_text(setup.read_text().replace("include_dirs=[refbuf.get_shimdir()]", ""))
    flags = f"-O2 -DNDEBUG -include {refbuf.get_include()}/refbuf_shim.h"
    target = build(python, source, tmp_path, CFLAGS=flags)
    assert b"refbuf._C_API" in module_of(target)
    use(python, target, shim=True)


def test_meson_takes_the_directory_from_the_compilers_name(python: Path, tmp_path: Path) -> None:
    """What CFLAGS says, Meson puts behind Python's own directory."""
    source = tmp_path / "stock"
    shutil.copytree(HERE / "meson-python", source, ignore=shutil.ignore_patterns("build"))
    recipe = source / "meson.build"
    kept = [line for line in recipe.read_text().splitlines() if "shim" not in line]
    assert len(kept) == len(recipe.read_text().splitlines()) - 2
    recipe.write_text("\n".join(kept) + "\n")
    compiler = os.environ.get("CC", "cc")
    target = build(python, source, tmp_path, CC=f"{compiler} -I{refbuf.get_shimdir()}")
    assert b"refbuf._C_API" in module_of(target)
    use(python, target, shim=True)


def build_by_cmake(python: Path, source: Path, folder: Path) -> Path:
    """By CMake alone, which is told where refbuf is as docs/EXTENSIONS.md says."""
    found = run([sys.executable, "-m", "refbuf", "config", "--cmakedir"]).strip()
    target = folder / "installed"
    options = ["-G", "Ninja", f"-Drefbuf_DIR={found}", f"-DPython_EXECUTABLE={python}"]
    commands = [
        ["-S", source, "-B", folder / "build", *options, f"-DCMAKE_INSTALL_PREFIX={target}"],
        ["--build", folder / "build"],
        ["--install", folder / "build"],
    ]
    for command in commands:
        run([python.parent / "cmake", *command], PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    return target


def test_cmake_is_told_where_refbuf_is(python: Path, tmp_path: Path) -> None:
    target = build_by_cmake(python, HERE / "scikit-build-core", tmp_path)
    assert b"refbuf._C_API" in module_of(target)
    use(python, target, shim=True)


RECIPE = """\
cmake_minimum_required(VERSION 3.25)
project(word_index LANGUAGES C)
find_package(Threads REQUIRED)
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
find_package(refbuf 0.1 CONFIG REQUIRED)
python_add_library(word_index MODULE WITH_SOABI engine.c word_index.c words.c)
target_link_libraries(word_index PRIVATE refbuf::headers Threads::Threads)
install(TARGETS word_index DESTINATION .)
"""


def test_cmake_finds_the_headers_for_a_source_that_includes_them(python: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(HERE.parent / "c-extension", source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    (source / "CMakeLists.txt").write_text(RECIPE)
    target = build_by_cmake(python, source, tmp_path)
    code = """
import sys, word_index
assert "refbuf" in sys.modules
thing = object()
before = sys.getrefcount(thing)
with word_index.WordIndex() as index:
    assert index.add(b"a word", thing) == 0
    index.join()
    ((found,),) = index.search([b"word"])
    assert found is thing
del found
import refbuf
refbuf.flush_all()
assert sys.getrefcount(thing) == before
"""
    run([python, "-P", "-c", code], PYTHONPATH=str(target))


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="pkg-config is not installed")
@pytest.mark.parametrize(("name", "directory"), [("refbuf", ""), ("refbuf-shim", "shim")])
def test_pkg_config_finds_the_headers(name: str, directory: str) -> None:
    found = run(["pkg-config", "--cflags", name], PKG_CONFIG_PATH=refbuf.get_pkgconfig_dir()).strip()
    assert found.startswith("-I")
    assert Path(found[2:]).samefile(Path(refbuf.get_include()) / directory)
    assert run(["pkg-config", "--modversion", name], PKG_CONFIG_PATH=refbuf.get_pkgconfig_dir()).strip() == (
        refbuf.__version__
    )
