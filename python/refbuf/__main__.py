"""`python -m refbuf`: finds the command and hands it the rest of the line.

A command is a module of `refbuf._cli` with a function `main(arguments) -> int`.
Only the one that is asked for is imported: one that runs a program should not
load what another one draws tables with.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__

COMMANDS = {
    "bench": "measures what shared objects cost, with refbuf and without",
    "config": "prints compiler flags for extensions that include refbuf.h",
    "doctor": "says whether live mode can be used here, and if not, why",
    "lab": "compares the ways to count that were discussed in 2007: traces, simulation",
    "run": "runs a program as python does, its reference counts buffered",
}

USAGE = """usage: python -m refbuf COMMAND [OPTIONS]

Buffered reference counts for free-threaded CPython.

commands:
{commands}

options:
  -h, --help     this text; after a command, that command's options
  --version      the version of refbuf
"""

USAGE_ERROR = 2
# What shells report for a process ended by SIGINT.
INTERRUPTED = 130
# And for one ended by SIGPIPE.
BROKEN_PIPE = 141


def usage() -> str:
    """The help text."""
    return USAGE.format(commands="\n".join(f"  {name:<14} {what}" for name, what in COMMANDS.items()))


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns the exit status."""
    from ._cli import CommandError

    command, *rest = arguments or [""]
    if command in ("-h", "--help"):
        print(usage(), end="")
        return 0
    if command == "--version":
        print(__version__)
        return 0
    try:
        if command not in COMMANDS:
            problem = f"unknown command {command!r}" if command else "no command given"
            raise CommandError(f"{problem}: there are {', '.join(COMMANDS)}; --help says what they do")
        status: int = import_module(f"refbuf._cli.{command}").main(rest)
        if sys.stdout is not None and "refbuf._run.program" not in sys.modules:
            sys.stdout.flush()
        return status
    except CommandError as error:
        print(f"refbuf: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        if "refbuf._run.program" in sys.modules:
            raise  # the program's, as below
        # Whoever read has seen enough; nothing more is to be flushed there at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        if "refbuf._run.program" in sys.modules:
            raise  # the program's: the process ends as under python
        print("refbuf: interrupted", file=sys.stderr)
        return INTERRUPTED


# A status of 0 falls off the end: with python -i, an exit would be shown.
if __name__ == "__main__" and (status := main(sys.argv[1:])):
    sys.exit(status)
