"""`python -m refbuf run X` against `python X`: how a program is given, and what it sees."""

import py_compile
import textwrap
import zipfile

import pytest
from programs import ABOUT, live

# -- how it is given ----------------------------------------------------------


@live
@pytest.mark.parametrize("python", [(), ("-P",), ("-O", "-X", "dev"), ("-W", "error"), ("-B", "-s", "-u")])
def test_a_program_sees_what_it_sees_under_python(compare, write, python):
    write(ABOUT)
    write(ABOUT, "package/__main__.py")
    write("", "package/__init__.py")
    write(ABOUT, "package/inner.py")
    # With -P nothing of the current directory is found.
    for found, arguments in (
        (True, ("program.py",)),
        (True, ("program.py", "-m", "--stats", "a b", "")),
        (True, ("./program.py", "x")),
        (True, ("package/../program.py",)),
        (True, ("package",)),
        (True, ("./package/", "x")),
        (True, ("-c", ABOUT, "-c", "x")),
        (True, (f"-c{ABOUT}",)),
        (True, ("-", "x")),
        ("-P" not in python, ("-m", "package", "-x")),
        ("-P" not in python, ("-mpackage",)),
        ("-P" not in python, ("-m", "package.inner", "--help")),
    ):
        ended = compare(*arguments, python=python, stdin=ABOUT.encode())
        assert ("__builtins__ module" in ended.out) == found, arguments


@live
def test_isolated(compare, start, write):
    if start("-I", "-c", "import refbuf._cli.run").returncode:
        pytest.skip("refbuf is not installed where -I finds it")
    write(ABOUT)
    for arguments in ("program.py",), ("-c", ABOUT), ("-", "x"), ("-m", "program"):
        compare(*arguments, python=("-I",), stdin=ABOUT.encode())


@live
def test_links_are_followed_for_the_path_alone(compare, write, tmp_path):
    write(ABOUT, "there/program.py")
    (tmp_path / "link.py").symlink_to("there/program.py")
    (tmp_path / "chain.py").symlink_to("link.py")
    (tmp_path / "directory").symlink_to("there")
    for script in "link.py", "chain.py", "directory/program.py", str(tmp_path / "link.py"):
        assert str(tmp_path / "there") in compare(script).out


@live
def test_a_program_elsewhere(compare, write, tmp_path):
    file = write(ABOUT)
    below = tmp_path / "below"
    below.mkdir()
    compare("../program.py", cwd=below)
    compare(file, cwd="/")
    compare("-c", ABOUT, cwd="/")


@live
def test_zip_files(compare, tmp_path):
    file = tmp_path / "program.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("__main__.py", ABOUT + "import helper\nhelper.fail()\n")
        archive.writestr("helper.py", "def fail():\n    raise ValueError('in a zip file')\n")
    for script in "program.zip", file:
        assert "ValueError: in a zip file" in compare(script).err
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("other.py", "")
    assert "can't find '__main__' module" in compare("program.zip").err


@live
def test_compiled_files(compare, write, tmp_path):
    file = write(ABOUT + "raise ValueError('compiled')\n")
    py_compile.compile(str(file), cfile=str(tmp_path / "compiled.pyc"))
    (tmp_path / "other-name").write_bytes((tmp_path / "compiled.pyc").read_bytes())
    for script in "compiled.pyc", "other-name":
        assert "ValueError: compiled" in compare(script).err
    write(b"\0\0\0\0" * 8, "bad.pyc")
    assert "Bad magic number" in compare("bad.pyc").err


@live
def test_standard_input_is_the_programs(compare, write):
    write("import sys; print([line for line in sys.stdin], sys.stdin.buffer.read())")
    assert "one" in compare("program.py", stdin=b"one\ntwo").out
    # All of it is the program where it is the program.
    program = b"import sys\nprint(sys.stdin.read())\ndef fail():\n    raise ValueError\nfail()\n"
    assert "<stdin>" in compare("-", stdin=program).err
    compare("-", stdin=b"")
    compare("/dev/stdin", stdin=program)


@live
@pytest.mark.parametrize(
    "arguments",
    [
        ("missing.py",),
        ("there/missing.py", "-x"),
        ("/missing",),
        ("program.py/",),
        ("empty",),
        ("-m", "missing"),
        ("-m", "missing.module"),
        ("-m", "program.inner"),
        ("-m", "program.py"),
        ("-m", ".relative"),
        ("-m", "space"),
        ("-m", "package"),
        ("-m", "package.broken"),
        ("-m", "sys"),
        ("-m", "failing.inner"),
    ],
)
def test_what_cannot_be_run(compare, write, tmp_path, arguments):
    write("print('started')")
    (tmp_path / "empty").mkdir()
    (tmp_path / "space").mkdir()
    write("", "package/__init__.py")
    write("import nothing_like_it", "package/broken.py")
    write("1 / 0", "failing/__init__.py")
    ended = compare(*arguments)
    assert ended.returncode in (1, 2) and ended.err


# -- what it does -------------------------------------------------------------


@live
def test_its_classes_are_those_of_main(compare, write):
    code = """
        import inspect, pickle, sys
        class Mine:
            "Documented."
            def method(self): return 1
        print(pickle.loads(pickle.dumps(Mine)) is Mine, type(pickle.loads(pickle.dumps(Mine()))) is Mine)
        print(inspect.getsource(Mine.method), inspect.getmodule(Mine) is sys.modules["__main__"])
        import __main__
        print(__main__.Mine is Mine)
        """
    write(code)
    compare("program.py")
    compare("-m", "program")
    compare("-c", textwrap.dedent(code))


@live
def test_modules_beside_it_are_found(compare, write):
    write("import beside; print(beside.__file__, beside.value)")
    write("value = 1", "beside.py")
    compare("program.py")
    compare("-m", "program")
    compare("-c", "import beside; print(beside.__file__)")


@live
@pytest.mark.parametrize("name", ["argparse", "gettext", "json", "pathlib", "re", "signal", "tokenize"])
def test_modules_beside_it_replace_those_of_the_standard_library(compare, write, name):
    write(f"import {name}; print({name}.value)")
    write("value = 'mine'", f"{name}.py")
    for arguments in ("program.py",), ("-m", "program"), ("-c", "import program"), ("-",):
        assert compare(*arguments, stdin=b"import program").out == "mine\n"


@live
def test_future_imports_are_the_programs_own(compare):
    compare("-c", "def f(x: undefined.name = 1): pass")
    compare("-c", "from __future__ import annotations\ndef f(x: a.b): pass\nprint(f.__annotations__)")
