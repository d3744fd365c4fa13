"""The program: as `__main__`, with its path, run in the way in which it is given.

Modules, directories and zip files go through the function of runpy that `python` calls
for them; scripts and code are compiled here, as there is no such function for them.
"""

import builtins
import io
import os
import runpy
import sys
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from types import CodeType, ModuleType
from typing import NamedTuple

from .source import compile_source, is_compiled, load_compiled
from .tracebacks import show_without_us

CANNOT_OPEN = 2
# What `python` takes away from __main__ when a file has run to its end.
OF_FILES = ("__file__", "__cached__")


class Program(NamedTuple):
    """What follows the options.

    kind: -c, -m, stdin or script.
    what: the code, the module's name, the script's path; - for standard input.
    argv: what sys.argv is to be.
    """

    kind: str
    what: str
    argv: list[str]


def run(program: Program) -> int:
    """Runs the program, and leaves as `python` does: returns the exit status, or raises
    what the program raises."""
    module = _new_main()
    sys.argv[:] = program.argv
    # That of -m refbuf: the current directory, where there is one.
    if program.kind != "-m" and not sys.flags.safe_path and sys.path[:1] == [_current_directory()]:
        del sys.path[0]
    try:
        if program.kind == "-m":
            return _run_module(program.what)
        if program.kind == "-c":
            return _run_code(program.what, module)
        if program.kind == "stdin":
            return _run_stdin(module)
        return _run_script(program.what, module)
    except BaseException as error:
        # With -i, SystemExit is an exception like others.
        if not isinstance(error, SystemExit) or sys.flags.inspect:
            show_without_us(error, lambda: _forget_file(module))
        raise


# -- the ways in which it is given ----------------------------------------------


def _run_module(name: str, *, is_argument: bool = True) -> int:
    """-m, and what is found first on sys.path as `__main__`."""
    sys.audit("cpython.run_module", name)
    # What python's C code calls, for its frames in tracebacks and all it says.
    runpy._run_module_as_main(name, is_argument)  # type: ignore[attr-defined]
    return 0


def _run_code(text: str, module: ModuleType) -> int:
    sys.audit("cpython.run_command", text)
    _prepend_path("")
    if sys.version_info >= (3, 14):
        from textwrap import dedent

        text = dedent(text)
    text += "\n"
    try:
        source = text.encode()
    except UnicodeEncodeError:
        print("Unable to decode the command from the command line:", file=sys.stderr)
        raise
    code = compile(source, "<string>", "exec", dont_inherit=True)
    # Where tracebacks show lines of -c, which they do since 3.13.
    import linecache

    register = getattr(linecache, "_register_code", None)
    if register is not None:
        register(code, text, "<string>")
    exec(code, vars(module))
    return 0


def _run_stdin(module: ModuleType) -> int:
    sys.audit("cpython.run_stdin")
    _prepend_path("")
    source = b""
    if sys.stdin is not None:
        with open(0, "rb", closefd=False) as file:
            source = file.read()
    vars(module).update(__file__="<stdin>", __cached__=None)
    return _run_file(compile_source(source, "<stdin>"), module)


def _run_script(script: str, module: ModuleType) -> int:
    # Not normalized: python does not either.
    path = os.path.join(_current_directory() or "", script)
    if _is_container(path):
        # Even with -P.
        sys.path.insert(0, path)
        return _run_module("__main__", is_argument=False)
    _prepend_path(os.path.dirname(os.path.realpath(path) if os.path.isabs(path) else path))
    sys.audit("cpython.run_file", path)
    try:
        with io.open_code(path) as file:
            content = file.read()
    except OSError as error:
        problem = f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}"
        print(f"{sys.orig_argv[0]}: {problem}", file=sys.stderr)
        return CANNOT_OPEN
    compiled = is_compiled(path, content)
    loader = SourcelessFileLoader if compiled else SourceFileLoader
    vars(module).update(__file__=path, __cached__=None, __loader__=loader("__main__", path))
    return _run_file(load_compiled(content) if compiled else compile_source(content, path), module)


def _run_file(code: CodeType, module: ModuleType) -> int:
    exec(code, vars(module))
    _forget_file(module)
    return 0


# -- where it runs ----------------------------------------------------------------


def _new_main() -> ModuleType:
    """The module `__main__` as it is before a program runs."""
    module = ModuleType("__main__")
    names = vars(module)
    names["__loader__"] = BuiltinImporter
    if sys.version_info < (3, 14):
        names["__annotations__"] = {}
    names["__builtins__"] = builtins
    sys.modules["__main__"] = module
    return module


def _forget_file(module: ModuleType) -> None:
    if vars(module).get("__spec__") is None:
        for name in OF_FILES:
            vars(module).pop(name, None)


def _prepend_path(place: str) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, place)


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _is_container(path: str) -> bool:
    """Whether modules can be imported from it: a directory or a zip file."""
    for hook in sys.path_hooks:
        try:
            hook(path)
        except ImportError:
            continue
        return True
    return False
