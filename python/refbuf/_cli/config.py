"""`python -m refbuf config`: what a compiler needs to know, one line each."""

import shlex
import sysconfig
from collections.abc import Callable, Sequence

from .. import __version__, get_include
from . import CommandError
from .parser import Parser

DESCRIPTION = """Prints compiler flags for extensions that include refbuf.h.

Each option prints one line; several print in the order in which they are
given. Paths are quoted for the shell where they need it. As with
python3-config, the flags are for the interpreter that runs this command."""

EPILOG = """refbuf needs nothing at link time: extensions find it when they call
refbuf_import(). A module is compiled like this:

  cc -shared -fPIC -O2 $(python -m refbuf config --cflags) mine.c \\
     -o mine$(python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')"""


def includes() -> str:
    """The -I flag of refbuf.h."""
    return _flags([_include()])


def cflags() -> str:
    """The -I flags of refbuf.h and of Python.h."""
    paths = sysconfig.get_paths()
    # The two directories of Python's are one on most systems.
    return _flags(list(dict.fromkeys([_include(), paths["include"], paths["platinclude"]])))


def _include() -> str:
    try:
        return get_include()
    except FileNotFoundError as error:
        raise CommandError(str(error)) from None


def _flags(directories: list[str]) -> str:
    return " ".join(f"-I{shlex.quote(directory)}" for directory in directories)


def main(arguments: Sequence[str]) -> int:
    """Prints what is asked for; returns the exit status."""
    parser = Parser("config", DESCRIPTION, EPILOG)
    printers: dict[str, tuple[Callable[[], str], str]] = {
        "--cflags": (cflags, "-I flags of refbuf.h and of Python.h: all that compiling needs"),
        "--includes": (includes, "the -I flag of refbuf.h alone"),
        "--version": (lambda: __version__, "the version of refbuf"),
    }
    for option, (printer, what) in printers.items():
        parser.add_argument(option, action="append_const", dest="wanted", const=printer, help=what)
    wanted: list[Callable[[], str]] | None = parser.parse_args(arguments).wanted
    if not wanted:
        raise CommandError(f"config: nothing asked for: give one or more of {', '.join(printers)}")
    # All lines are known before the first is printed.
    print("\n".join([printer() for printer in wanted]))
    return 0
