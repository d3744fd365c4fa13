"""Command lines of all commands but `run`, whose options are not argparse's."""

import argparse
from typing import NoReturn

from . import CommandError


class Parser(argparse.ArgumentParser):
    """Reports bad usage in one sentence, without the usage lines before it."""

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        self.command = command
        super().__init__(
            prog=f"python -m refbuf {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # An abbreviation would change its meaning with the next option.
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{self.command}: {message}")
