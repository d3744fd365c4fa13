"""`python -m refbuf run`: runs a program as `python` itself does, with refbuf installed.

What a program can see is as under `python`, but for what HELP lists. Modules,
directories and zip files go through the function of runpy that `python` calls for
them; scripts and code are compiled here, as there is no such function for them.

Exceptions that the program does not handle leave through all of our frames, so that
the interpreter does what it does at its end: exit statuses, death by SIGINT, -i. Only
then are our frames taken out of the traceback, see `_show_without_us`.

Little is imported here: what is loaded before the program starts, its own modules of
the same names cannot replace.
"""

import atexit
import builtins
import codecs
import io
import marshal
import os
import re
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, ModuleSpec, SourceFileLoader, SourcelessFileLoader
from importlib.util import MAGIC_NUMBER
from types import CodeType, ModuleType, TracebackType
from typing import NamedTuple

import refbuf

from . import CommandError

HELP = """\
usage: python -m refbuf run [OPTIONS] (SCRIPT | -m MODULE | -c CODE) [ARGS...]

Runs a program as python itself does, with the interpreter's reference counts
buffered. SCRIPT may be a file, a directory or zip file with a __main__.py, or -
for standard input. All that follows the program is the program's.

options:
  --stats         at exit, print what the buffers did to standard error
  --no-extensions leave extension modules alone: only the interpreter's own counts
  --slots N       slots of each thread's buffer, a power of two
  --heartbeat MS  milliseconds between two beats
  -h, --help      this text

Options of python's own come before -m refbuf: python -X dev -m refbuf run app.py

Processes that the program starts with multiprocessing are buffered too, whatever
the start method. Others are not, those that it starts with sys.executable among
them: put -m refbuf run into their command lines.

Unlike under python, sys.orig_argv is the whole command line; the stack below the
program holds a few frames of refbuf and runpy, which count for the recursion limit;
modules of the standard library that refbuf imports are loaded before the program
starts; and a terminal as - is read to its end, without a prompt.
"""

CANNOT_OPEN = 2
# Of a .pyc: the magic number, flags, and eight bytes that identify the source.
PYC_HEADER = 16
# How a source file names its encoding, in one of its first two lines.
CODING = re.compile(rb"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
# What `python` takes away from __main__ when a file has run to its end.
OF_FILES = ("__file__", "__cached__")
# Modules that no multiprocessing starts a fresh interpreter without.
STARTERS = frozenset({"multiprocessing.popen_spawn_posix", "multiprocessing.forkserver"})
# How the code of those interpreters begins; that of the resource tracker does not.
STARTED = ("from multiprocessing.spawn import", "from multiprocessing.forkserver import")


class Options(NamedTuple):
    """What is given before the program."""

    stats: bool = False
    extensions: bool = True
    slots: int | None = None
    heartbeat_ms: float | None = None

    def for_children(self) -> list[str]:
        """The options of processes that the program starts."""
        given = [] if self.extensions else ["--no-extensions"]
        if self.slots is not None:
            given.append(f"--slots={self.slots}")
        if self.heartbeat_ms is not None:
            given.append(f"--heartbeat={self.heartbeat_ms!r}")
        return given


class Program(NamedTuple):
    """What follows the options: how it is given, what, and sys.argv."""

    kind: str
    what: str
    argv: list[str]


def main(arguments: Sequence[str]) -> int:
    """Runs the program; returns the exit status, unless the program raises."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    options, rest = _options(arguments)
    program = _program(rest)
    _install(options)
    if options.stats:
        # Before the program can register anything: what is first comes last.
        atexit.register(_print_stats, os.getpid())
    sys.meta_path.insert(0, _Multiprocessing(options.for_children()))
    return _run(program)


# -- the command line ---------------------------------------------------------


def _options(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """The options, and what follows. By hand: argparse would look for ours
    among the program's."""
    options, rest = Options(), list(arguments)
    while rest and rest[0].startswith("--"):
        option, has_value, value = rest.pop(0).partition("=")
        if option in ("--slots", "--heartbeat"):
            if not has_value and not rest:
                raise CommandError(f"run: {option} takes a value")
            value = value if has_value else rest.pop(0)
            try:
                if option == "--slots":
                    options = options._replace(slots=int(value))
                else:
                    options = options._replace(heartbeat_ms=float(value))
            except ValueError:
                raise CommandError(f"run: {option} takes a number, not {value!r}") from None
        elif option == "--stats" and not has_value:
            options = options._replace(stats=True)
        elif option == "--no-extensions" and not has_value:
            options = options._replace(extensions=False)
        else:
            raise CommandError(f"run: unknown option {option!r}: --help lists those there are")
    return options, rest


def _program(arguments: list[str]) -> Program:
    if not arguments:
        raise CommandError("run: no program given: a script, -m MODULE or -c CODE")
    first, *rest = arguments
    kind = first[:2]
    if kind in ("-c", "-m"):
        # As python takes them: -m MODULE or -mMODULE.
        if not first[2:] and not rest:
            raise CommandError(f"run: {kind} takes a value")
        what = first[2:] or rest.pop(0)
        return Program(kind, what, [kind, *rest])
    if first.startswith("-") and first != "-":
        raise CommandError(
            f"run: unknown option {first!r}: --help lists those there are; python's own come before -m refbuf"
        )
    return Program("stdin" if first == "-" else "script", first, [first, *rest])


# -- refbuf -------------------------------------------------------------------


def _install(options: Options) -> None:
    try:
        refbuf.configure(slots=options.slots, heartbeat_ms=options.heartbeat_ms)
    except ValueError as error:
        raise CommandError(f"run: {error}") from None
    try:
        refbuf.install(extensions=options.extensions)
    except refbuf.UnsupportedError as error:
        raise CommandError(str(error)) from None


def _print_stats(process: int) -> None:
    # Not in children that the program forked; and print(file=None) would be to
    # standard output.
    if os.getpid() != process or sys.__stderr__ is None:
        return
    stats = refbuf.stats()
    table = {
        "hits": f"{stats.hits:,}",
        "misses": f"{stats.misses:,}",
        "share of hits": f"{stats.hit_rate:.1%}",
        "atomics": f"{stats.atomics:,}",
        "threads": f"{stats.threads:,}",
    }
    width = max(map(len, table.values()))
    lines = ["refbuf:", *(f"  {name:<13}  {value:>{width}}" for name, value in table.items())]
    print("\n".join(lines), file=sys.__stderr__, flush=True)


class _Multiprocessing:
    """Has multiprocessing start its processes with `run`.

    A finder, as multiprocessing is not to be loaded for programs without it: that
    is slow, and takes a place in the order of what runs at exit. It finds nothing
    itself, and is there to see what starts processes just before it is loaded.
    """

    def __init__(self, options: list[str]) -> None:
        self._run = ["-m", "refbuf", "run", *options]
        self._done = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Called for every module that is imported first."""
        if name in STARTERS and not self._done:
            self._done = True
            self._wrap()
        return None

    def _wrap(self) -> None:
        from multiprocessing import util

        spawn = util.spawnv_passfds

        def spawnv_passfds(path: bytes, args: Sequence[str | bytes], passfds: Sequence[int]) -> int:
            # The options before -c are the interpreter's, what follows is for sys.argv.
            place = args.index("-c") if "-c" in args else len(args)
            code = args[place + 1] if place + 1 < len(args) else ""
            if isinstance(code, str) and code.startswith(STARTED):
                args = [*args[:place], *self._run, *args[place:]]
            return spawn(path, args, passfds)

        util.spawnv_passfds = spawnv_passfds


# -- the program ---------------------------------------------------------------


def _run(program: Program) -> int:
    """Runs the program, and leaves as `python` does."""
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
            _show_without_us(error, module)
        raise


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
    return _run_file(_compile(source, "<stdin>"), module)


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
            source = file.read()
    except OSError as error:
        problem = f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}"
        print(f"{sys.orig_argv[0]}: {problem}", file=sys.stderr)
        return CANNOT_OPEN
    compiled = path.endswith(".pyc") or source[:4] == MAGIC_NUMBER
    loader = SourcelessFileLoader if compiled else SourceFileLoader
    vars(module).update(__file__=path, __cached__=None, __loader__=loader("__main__", path))
    return _run_file(_compiled(source) if compiled else _compile(source, path), module)


def _run_file(code: CodeType, module: ModuleType) -> int:
    exec(code, vars(module))
    _forget_file(module)
    return 0


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


def _compiled(data: bytes) -> CodeType:
    """The code in a .pyc file."""
    if data[:4] != MAGIC_NUMBER:
        raise RuntimeError("Bad magic number in .pyc file")
    code = marshal.loads(data[PYC_HEADER:])
    if not isinstance(code, CodeType):
        raise RuntimeError("Bad code object in .pyc file")
    return code


def _compile(source: bytes, path: str) -> CodeType:
    problem = _decoding_problem(source, path)
    if problem is not None:
        raise SyntaxError(problem)
    return compile(source, path, "exec", dont_inherit=True)


def _decoding_problem(source: bytes, path: str) -> str | None:
    """What `python` says of a file that it cannot decode: compile() has other words."""
    named = [match[1].decode() for line in source.split(b"\n", 2)[:2] if (match := CODING.match(line))]
    try:
        if named and codecs.lookup(named[0]).name == "utf-8":
            return None
        source.decode(*named)
    except (LookupError, UnicodeError) as error:
        if named or not isinstance(error, UnicodeDecodeError):
            return f"encoding problem: {named[0]}"
        line = source.count(b"\n", 0, error.start) + 1
        return (
            f"Non-UTF-8 code starting with '\\x{source[error.start]:02x}' in file {path}"
            f" on line {line}, but no encoding declared; see https://peps.python.org/pep-0263/ for details"
        )
    return None


# -- tracebacks ---------------------------------------------------------------


def _show_without_us(error: BaseException, module: ModuleType) -> None:
    """Has the error shown as if nothing had called the program.

    Each frame that the error still leaves adds itself to its traceback, up to the
    first of all. So this is undone by the hook that shows it, which is once only.
    """
    ours = _show_without_us.__code__.co_filename
    theirs = error.__traceback__
    while theirs is not None and theirs.tb_frame.f_code.co_filename == ours:
        theirs = theirs.tb_next
    hook = sys.excepthook

    def show(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        sys.excepthook = hook
        if value is not error:
            hook(kind, value, traceback)
            return
        error.__traceback__ = sys.last_traceback = theirs
        try:
            hook(kind, error, theirs)
        except SystemExit:
            raise
        except BaseException as another:
            # As python, but without this frame.
            another.__traceback__ = another.__traceback__ and another.__traceback__.tb_next
            print("Error in sys.excepthook:", file=sys.stderr)
            sys.__excepthook__(type(another), another, another.__traceback__)
            print("\nOriginal exception was:", file=sys.stderr)
            sys.__excepthook__(kind, error, theirs)
        _forget_file(module)

    sys.excepthook = show
