"""`python -m refbuf lab`: the ways to count that were discussed in 2007, side by side.

A subcommand is a module of this package with a function `main(arguments) -> int`.
Only the one that is asked for is imported.
"""

from collections.abc import Sequence
from importlib import import_module

from .. import CommandError

SUBCOMMANDS = {
    "run": "measures programs on cells that each scheme counts",
    "report": "the claims of 2007 beside what is measured here, into docs/LAB.md",
    "trace": "records what a workload or a program does to reference counts",
    "simulate": "replays a trace through each scheme, on a model of caches",
}

USAGE = """usage: python -m refbuf lab SUBCOMMAND [OPTIONS]

The ways to count references that were discussed in 2007, and what has come of them.

subcommands:
{subcommands}

options:
  -h, --help     this text; after a subcommand, that subcommand's options
"""


def main(arguments: Sequence[str]) -> int:
    """Runs a subcommand; returns the exit status."""
    name, *rest = arguments or [""]
    if name in ("-h", "--help"):
        subcommands = "\n".join(f"  {name:<14} {what}" for name, what in SUBCOMMANDS.items())
        print(USAGE.format(subcommands=subcommands), end="")
        return 0
    if name not in SUBCOMMANDS:
        problem = f"unknown subcommand {name!r}" if name else "no subcommand given"
        raise CommandError(f"lab: {problem}: there are {', '.join(SUBCOMMANDS)}; --help says what they do")
    status: int = import_module(f"{__name__}.{name}").main(rest)
    return status
