"""Values of options, checked: bad ones are one sentence."""

import argparse
from collections.abc import Callable, Sequence

from . import CommandError


def number(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    """For argparse: a number within bounds."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:g} to {most:g}, not {text}")
        return value

    return convert


def names(
    command: str, what: str, text: str | None, known: Sequence[str], *, as_given: bool = False
) -> tuple[str, ...]:
    """The names in a list with commas, in the order of `known` or of the list; all if there is none."""
    if text is None:
        return tuple(known)
    given = [name.strip() for name in text.split(",")]
    for name in given:
        if name not in known:
            raise CommandError(f"{command}: unknown {what} {name!r}: there are {', '.join(known)}")
    return tuple(dict.fromkeys(given)) if as_given else tuple(name for name in known if name in given)


def counts(command: str, option: str, text: str, most: int) -> list[int]:
    """Whole numbers from 1, with commas between."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= most for part in parts):
        raise CommandError(
            f"{command}: {option} takes whole numbers from 1 to {most} with commas between, not {text!r}"
        )
    return [int(part) for part in parts]
