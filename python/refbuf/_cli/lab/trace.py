"""`python -m refbuf lab trace`: records what a workload or a program does to reference counts.

Here is what records programs. As in `run`, little is imported before a program starts: what
takes workloads is in `trace_workload`.
"""

import atexit
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from ... import UnsupportedError, __version__, workloads
from ..._live import record, recorded
from ..._refbuf import Trace
from .. import CommandError
from ..files import check_writable, save

COMMAND = "lab trace"

# What takes a value. The first two are for workloads and programs.
OPTIONS = ("--out", "--limit", "--threads", "--pairs", "--seed")
MOST_EVENTS = 1 << 24
DEFAULT_EVENTS = 1_000_000
# Threads that the summary lists; a name or a text in a trace, in bytes.
MOST_LISTED = 16
MOST_TEXT = 4096


class Options(NamedTuple):
    """What is given before the program."""

    out: str | None = None
    limit: int = DEFAULT_EVENTS


def main(arguments: Sequence[str]) -> int:
    """Records and writes; returns the exit status, unless a program raises."""
    place = _end_of_options(arguments)
    if not _is_program(arguments[place:]):
        from . import trace_workload

        return trace_workload.main(arguments)
    from ..._run.program import run as run_program
    from ..program import program_of

    options = _options(arguments[:place])
    program = program_of(COMMAND, arguments[place:])
    if options.out is None:
        raise CommandError(
            f"{COMMAND}: --out FILE must come before the program: what follows is the program's"
        )
    check_writable(COMMAND, options.out)
    if program.kind == "script" and not os.path.exists(program.what):
        # Or an earlier trace would give way to one of nothing.
        raise CommandError(f"{COMMAND}: there is no {program.what!r}")
    about = {
        "recorder": f"refbuf {__version__}",
        "command": " ".join(["python", "-m", "refbuf", *COMMAND.split(), *arguments]),
        "program": program.what,
        "python": f"{sys.implementation.name} {sys.version.split()[0]}",
    }
    # The program may go elsewhere.
    out = os.path.abspath(options.out)
    try:
        record(options.limit)
    except UnsupportedError as error:
        raise CommandError(f"{COMMAND}: {error}") from None
    # What is registered first comes last: after all that the program has registered.
    atexit.register(_finish, out, {name: _fitting(text) for name, text in about.items()}, os.getpid())
    return run_program(program)


def _end_of_options(arguments: Sequence[str]) -> int:
    """Where the workload or the program is."""
    place = 0
    while place < len(arguments):
        option, has_value, _ = arguments[place].partition("=")
        if option not in OPTIONS:
            break
        place += 1 if has_value else 2
    return place


def _is_program(arguments: Sequence[str]) -> bool:
    if not arguments:
        return False
    first = arguments[0]
    if first.startswith("-"):
        return first == "-" or first[:2] in ("-m", "-c")
    return first not in workloads.WORKLOADS and (first.endswith(".py") or os.path.exists(first))


def _options(arguments: Sequence[str]) -> Options:
    """By hand: argparse is not to be loaded before the program."""
    options, rest = Options(), list(arguments)
    while rest:
        option, has_value, value = rest.pop(0).partition("=")
        if not has_value:
            value = rest.pop(0)
        if option == "--out":
            options = options._replace(out=value)
        elif option != "--limit":
            raise CommandError(f"{COMMAND}: {option} is for workloads, and this is a program")
        elif value.isascii() and value.isdigit() and 1 <= int(value) <= MOST_EVENTS:
            options = options._replace(limit=int(value))
        else:
            raise CommandError(
                f"{COMMAND}: --limit: must be a whole number from 1 to {MOST_EVENTS}, not {value!r}"
            )
    return options


def _fitting(text: str) -> str:
    """The beginning of a text, as far as a trace has room for it."""
    return text.encode(errors="replace")[:MOST_TEXT].decode(errors="ignore")


def _finish(out: str, about: dict[str, str], process: int) -> None:
    # Not in children that the program forked.
    if os.getpid() != process:
        return
    try:
        content, unseen = recorded(about)
        save(COMMAND, out, content)
        _tell(Trace(content), unseen, len(content))
        _say(f"Written: {out}")
    except (CommandError, ValueError, MemoryError) as error:
        said = error if isinstance(error, CommandError) else f"{COMMAND}: {error or 'out of memory'}"
        _say(f"refbuf: {said}")


def _tell(trace: Trace, unseen: int, size: int) -> None:
    threads = sorted(trace.threads, key=lambda thread: -(thread[1] + thread[2]))
    for name, increments, decrements, lost, made in threads[:MOST_LISTED]:
        line = f"{name}: {increments:,} increments and {decrements:,} decrements recorded"
        line += f", {lost:,} lost (--limit)" if lost else ""
        _say(f"{line}; owner of {made:,} objects")
    if len(threads) > MOST_LISTED:
        _say(f"and {len(threads) - MOST_LISTED:,} threads that counted less")
    if unseen:
        _say(f"{unseen:,} counts lost of threads that found no memory, or are too many for a trace")
    events = sum(thread[1] + thread[2] for thread in threads)
    _say(f"{trace.objects:,} objects; {events:,} events in {size:,} bytes")


def _say(line: str) -> None:
    # Not where the program's own output goes; and print(file=None) would.
    if sys.__stderr__ is not None:
        print(line, file=sys.__stderr__, flush=True)
