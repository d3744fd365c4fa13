"""The program in a command line, as `python` takes it: a script, -m MODULE, -c CODE, or -."""

from collections.abc import Sequence

from .._run.program import Program
from . import CommandError


def program_of(command: str, arguments: Sequence[str]) -> Program:
    """What a command that runs a program is given behind its own options."""
    if not arguments:
        raise CommandError(f"{command}: no program given: a script, -m MODULE or -c CODE")
    first, *rest = arguments
    kind = first[:2]
    if kind in ("-c", "-m"):
        # As python takes them: -m MODULE or -mMODULE.
        if not first[2:] and not rest:
            raise CommandError(f"{command}: {kind} takes a value")
        what = first[2:] or rest.pop(0)
        return Program(kind, what, [kind, *rest])
    if first.startswith("-") and first != "-":
        raise CommandError(
            f"{command}: unknown option {first!r}: --help lists those there are; "
            "python's own come before -m refbuf"
        )
    return Program("stdin" if first == "-" else "script", first, [first, *rest])
