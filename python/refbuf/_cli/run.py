"""`python -m refbuf run`: runs a program as `python` itself does, with refbuf installed.

Here is the command line; what runs the program is in `refbuf._run`, and says why little
is imported.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import refbuf

from .._run.processes import Multiprocessing
from .._run.program import run as run_program
from . import CommandError
from .program import program_of

HELP = """\
usage: python -m refbuf run [OPTIONS] (SCRIPT | -m MODULE | -c CODE) [ARGS...]

Runs a program as python itself does, with the interpreter's reference counts
buffered. SCRIPT may be a file, a directory or zip file with a __main__.py, or -
for standard input. All that follows the program is the program's.

options:
  --stats         at exit, print what the buffers did to standard error
  --no-extensions leave extension modules alone: only the interpreter's own counts
  --perf-map      name the trampolines for perf, in /tmp/perf-PID.map, and for gdb
  --slots N       slots of each thread's buffer, a power of two up to 1024 (usually 1024)
  --heartbeat MS  milliseconds between two beats, 0.5 to 60000 (usually 10)
  -h, --help      this text

Where the processor's atomic operations are cheap, the interpreter runs its own
instructions as long as one thread at a time runs. REFBUF_LULLS=0 in the environment
has it count through the buffers all the time, REFBUF_LULLS=1 has it so on others, too.

Options of python's own come before -m refbuf: python -X dev -m refbuf run app.py

Processes that the program starts with multiprocessing are buffered too, whatever
the start method. Others are not, those that it starts with sys.executable among
them: put -m refbuf run into their command lines.

Unlike under python, sys.orig_argv is the whole command line; the stack below the
program holds a few frames of refbuf and runpy, which count for the recursion limit;
modules of the standard library that refbuf imports are loaded before the program
starts; and a terminal as - is read to its end, without a prompt.
"""


class Options(NamedTuple):
    """What is given before the program."""

    stats: bool = False
    extensions: bool = True
    perf_map: bool = False
    slots: int | None = None
    heartbeat_ms: float | None = None

    def for_children(self) -> list[str]:
        """The options of processes that the program starts."""
        given = [] if self.extensions else ["--no-extensions"]
        if self.perf_map:
            given.append("--perf-map")
        if self.slots is not None:
            given.append(f"--slots={self.slots}")
        if self.heartbeat_ms is not None:
            given.append(f"--heartbeat={self.heartbeat_ms!r}")
        return given


def main(arguments: Sequence[str]) -> int:
    """Runs the program; returns the exit status, unless the program raises."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    options, rest = _options(arguments)
    program = program_of("run", rest)
    _install(options)
    if options.stats:
        from .._run import stats

        stats.print_at_exit()
    sys.meta_path.insert(0, Multiprocessing(options.for_children()))
    return run_program(program)


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
        elif option == "--perf-map" and not has_value:
            options = options._replace(perf_map=True)
        elif option in ("--stats", "--no-extensions", "--perf-map"):
            raise CommandError(f"run: {option} takes no value")
        else:
            raise CommandError(f"run: unknown option {option!r}: --help lists those there are")
    return options, rest


def _install(options: Options) -> None:
    try:
        refbuf.configure(slots=options.slots, heartbeat_ms=options.heartbeat_ms)
    except ValueError as error:
        # As it is called here.
        text = str(error).replace("heartbeat_ms", "--heartbeat")
        raise CommandError(f"run: {text}") from None
    try:
        refbuf.install(extensions=options.extensions, perf_map=options.perf_map)
    except refbuf.UnsupportedError as error:
        raise CommandError(str(error)) from None
