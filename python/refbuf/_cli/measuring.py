"""What the forms of `python -m refbuf bench` share: options, and files."""

from collections.abc import Callable, Collection
from typing import Any

from .._bench import machine
from . import CommandError
from .arguments import counts, number
from .files import INSTALL, write
from .parser import Parser

COMMAND = "bench"

MOST_THREADS = 4096
MOST_ROUNDS = 1000
LEAST_SECONDS, MOST_SECONDS = 1e-6, 3600.0


def add_options(
    parser: Parser,
    *,
    workloads: Collection[str],
    rounds: tuple[int, int],
    quick_seconds: int,
    minutes: str,
    picture: str,
) -> None:
    """Adds those that each form has.

    rounds: usually, and with --quick; minutes: that all runs take, in words; picture: of what.
    """
    add = parser.add_argument
    add("--quick", action="store_true", help=f"fewer and shorter rounds, within {quick_seconds} seconds")
    add("--threads", metavar="N,N", help="numbers of threads (default: 1 and powers of two up to the CPUs)")
    add("--workloads", metavar="A,B", help=f"which of {', '.join(workloads)} (default: all)")
    add(
        "--rounds",
        metavar="N",
        type=number(int, 1, MOST_ROUNDS),
        help=f"rounds to take medians of (default: {rounds[0]}, quick: {rounds[1]})",
    )
    add(
        "--seconds",
        metavar="S",
        type=number(float, LEAST_SECONDS, MOST_SECONDS),
        help=f"seconds of each single run (default: so that all take about {minutes})",
    )
    add("--json", metavar="FILE", help="write the results and all about the machine")
    add("--plot", metavar="FILE.png", help=f"write a picture of throughput{picture} (png, svg or pdf)")


def thread_counts(text: str | None) -> list[int]:
    """The numbers of threads that are asked for, or the usual ones."""
    if text is None:
        most = machine.cpus()
        return [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    return counts(COMMAND, "--threads", text, MOST_THREADS)


def write_files(
    json: str | None, as_json: Callable[[], str], plot: str | None, drawing: Callable[[], Any]
) -> None:
    """What is asked for. Each file is complete before it is opened.

    drawing: imports what draws, and returns it, to be called for the picture's bytes: only now, as an
        extension module that enables the GIL would have spoilt the runs.
    """
    if json:
        write(COMMAND, json, as_json().encode())
    if plot:
        try:
            draw = drawing()
        except ImportError as error:
            raise CommandError(f"bench: matplotlib cannot be imported ({error}): {INSTALL}") from None
        write(COMMAND, plot, draw())
