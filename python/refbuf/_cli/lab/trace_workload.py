"""`python -m refbuf lab trace WORKLOAD`: records what a workload does to reference counts."""

import argparse
import platform
import shlex
from collections.abc import Sequence

from ... import __version__, workloads
from ..._refbuf import Trace, record_trace
from .. import CommandError
from ..files import check_writable, write
from ..parser import Parser
from .trace import COMMAND, DEFAULT_EVENTS, MOST_EVENTS

USAGE = """python -m refbuf lab trace WORKLOAD --out FILE [OPTIONS]
       python -m refbuf lab trace --out FILE [--limit N] PROGRAM [ARGS...]"""

DESCRIPTION = """Runs a workload or a program, counting as CPython does, and writes down which
thread took or dropped a reference to which object, in each thread's order.
docs/TRACE.md has the format; `lab simulate` replays it.

A workload works on real objects in real threads. What the threads hold at the
end they drop, and that is recorded too, so increments and decrements are as
many.

A program is a SCRIPT, -m MODULE, -c CODE, or - for standard input, run as
`python -m refbuf run` does. All that follows it is the program's. The trace is
written when it ends, and a summary to standard error. It has what the machine
code of the interpreter and of extension modules counts on objects that another
thread made; what a thread counts on its own objects it does not have. Needs
what live mode needs: see `python -m refbuf doctor`."""

EPILOG = """An object that only one thread of the trace has touched is taken for private by
`lab simulate`: record with two threads or more to see which are shared."""

MOST_THREADS = 256
MOST_PAIRS = 16_000_000
DEFAULT_THREADS = 2
DEFAULT_PAIRS = 50_000


def main(arguments: Sequence[str]) -> int:
    """Records and writes; returns the exit status."""
    options = _parser().parse_args(arguments)
    workload = options.workload
    if workload not in workloads.WORKLOADS:
        known = ", ".join(workloads.WORKLOADS)
        raise CommandError(f"{COMMAND}: {workload!r} is no script, and no workload: there are {known}")
    check_writable(COMMAND, options.out)
    command = shlex.join(["python", "-m", "refbuf", *COMMAND.split(), *arguments])
    content, pairs = record(
        workload,
        command,
        threads=options.threads,
        pairs=options.pairs,
        limit=options.limit,
        seed=options.seed,
    )
    _tell(Trace(content), pairs, len(content))
    write(COMMAND, options.out, content)
    return 0


def record(
    workload: str,
    command: str,
    *,
    threads: int = DEFAULT_THREADS,
    pairs: int = DEFAULT_PAIRS,
    limit: int = DEFAULT_EVENTS,
    seed: int = 0,
) -> tuple[bytes, list[int]]:
    """A trace of a workload, and the pairs of each thread."""
    objects = workloads.make_objects(workload)
    # A pair is two events; what is beside them is less than a batch of every kind.
    room = min(limit, 2 * pairs + 16_384)
    about = {
        "recorder": f"refbuf {__version__}",
        "command": command,
        "workload": workload,
        "pairs": str(pairs),
        "seed": str(seed),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    try:
        return record_trace(
            workload,
            objects,
            mapping=dict(enumerate(objects)) if workload == "container" else None,
            threads=threads,
            pairs=pairs,
            seed=seed,
            factory=object,
            room=room,
            about=list(about.items()),
        )
    except (RuntimeError, ValueError, MemoryError) as error:
        # Fewer threads than asked for; more events than a trace may have.
        raise CommandError(f"{COMMAND}: {error or 'out of memory'}") from None


def _tell(trace: Trace, pairs: list[int], size: int) -> None:
    events = 0
    # The first is the caller, who made the objects and counts nothing.
    for (name, increments, decrements, lost, _), done in zip(trace.threads[1:], pairs, strict=True):
        events += increments + decrements
        line = f"{name}: {done:,} pairs; {increments:,} increments and {decrements:,} decrements recorded"
        print(f"{line}, {lost:,} lost (--limit)" if lost else line)
    print(
        f"{trace.objects:,} objects, {trace.immortal:,} of them immortal; {events:,} events in {size:,} bytes"
    )


def _parser() -> Parser:
    parser = Parser(COMMAND, DESCRIPTION, EPILOG)
    parser.usage = USAGE
    add = parser.add_argument
    add("workload", metavar="WORKLOAD", help=f"one of {', '.join(workloads.WORKLOADS)}")
    add("--out", metavar="FILE", required=True, help="write the trace")
    add(
        "--threads",
        metavar="N",
        type=_whole(1, MOST_THREADS),
        default=DEFAULT_THREADS,
        help=f"threads of the workload (default: {DEFAULT_THREADS})",
    )
    add(
        "--pairs",
        metavar="N",
        type=_whole(1, MOST_PAIRS),
        default=DEFAULT_PAIRS,
        help=f"increments with their decrements, of each thread (default: {DEFAULT_PAIRS})",
    )
    add(
        "--limit",
        metavar="N",
        type=_whole(1, MOST_EVENTS),
        default=DEFAULT_EVENTS,
        help=f"events recorded of each thread, at the most; a program takes 24 bytes for each "
        f"(default: {DEFAULT_EVENTS})",
    )
    add(
        "--seed",
        metavar="N",
        type=_whole(0, 2**64 - 1),
        default=0,
        help="of the pseudo-random orders (default: 0)",
    )
    return parser


class _whole:
    """The type of an option that takes whole numbers."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def __call__(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and self.least <= int(text) <= self.most):
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {self.least} to {self.most}, not {text!r}"
            )
        return int(text)
