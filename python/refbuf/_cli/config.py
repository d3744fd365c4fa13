"""`python -m refbuf config`: what a compiler needs to know, one line each."""

import argparse
import shlex
from collections.abc import Callable, Sequence

from .. import __version__, get_cflags, get_cmake_dir, get_include, get_pkgconfig_dir, get_shimdir
from . import CommandError
from .parser import Parser

DESCRIPTION = """Prints compiler flags for extensions that include refbuf.h, and for
extensions that count through refbuf without a change to their source.

Each option prints one line; several print in the order in which they are
given. Flags are quoted for the shell where they need it. As with
python3-config, they are for the interpreter that runs this command."""

EPILOG = """refbuf needs nothing at link time: extensions find it when they call
refbuf_import(). A module is compiled like this:

  cc -shared -fPIC -O2 $(python -m refbuf config --cflags) mine.c \\
     -o mine$(python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')

Other people's extensions find refbuf themselves if they are compiled with
the shim. What CFLAGS says replaces the interpreter's own flags, so restate them:

  CFLAGS="-O2 -DNDEBUG -I$(python -m refbuf config --shimdir)" CXXFLAGS="$CFLAGS" \\
     python -m pip install --no-binary :all: --no-cache-dir THE-PACKAGE"""


def main(arguments: Sequence[str]) -> int:
    """Prints what is asked for; returns the exit status."""
    parser = Parser("config", DESCRIPTION, EPILOG)
    printers: dict[str, tuple[Callable[[argparse.Namespace], str], str]] = {
        "--cflags": (
            lambda given: shlex.join(get_cflags(shim=given.shim)),
            "-I flags of refbuf.h and of Python.h: all that compiling needs",
        ),
        "--includes": (lambda given: shlex.join([f"-I{get_include()}"]), "the -I flag of refbuf.h alone"),
        "--shimdir": (
            lambda given: get_shimdir(),
            "the directory whose Python.h has CPython's macros count through refbuf",
        ),
        "--cmakedir": (
            lambda given: get_cmake_dir(),
            "the directory of refbuf-config.cmake: what CMake wants as refbuf_DIR",
        ),
        "--pkgconfigdir": (
            lambda given: get_pkgconfig_dir(),
            "the directory of refbuf.pc and refbuf-shim.pc: for PKG_CONFIG_PATH",
        ),
        "--version": (lambda given: __version__, "the version of refbuf"),
    }
    for option, (printer, what) in printers.items():
        parser.add_argument(option, action="append_const", dest="wanted", const=printer, help=what)
    parser.add_argument("--shim", action="store_true", help="--cflags: with the directory of --shimdir first")
    given = parser.parse_args(arguments)
    if given.shim and printers["--cflags"][0] not in (given.wanted or ()):
        raise CommandError("config: --shim goes with --cflags")
    if not given.wanted:
        raise CommandError(f"config: nothing asked for: give one or more of {', '.join(printers)}")
    try:
        # All lines are known before the first is printed.
        lines = [printer(given) for printer in given.wanted]
    except FileNotFoundError as error:
        raise CommandError(str(error)) from None
    print("\n".join(lines))
    return 0
