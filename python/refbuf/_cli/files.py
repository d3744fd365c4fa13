"""Files that commands write: refused before the work, complete when they are opened."""

import errno
import os
from importlib.util import find_spec

from . import CommandError

PICTURES = ("png", "svg", "pdf")
INSTALL = "python -m pip install --prefer-binary rich matplotlib"


def check_writable(command: str, path: str | None) -> None:
    """Opens the file and leaves it as it was, or not there: the command may be interrupted."""
    if path is None:
        return
    there = os.path.lexists(path)
    try:
        if os.path.isfile(path) or not there:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
            if not there:
                os.unlink(path)
        elif os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise CommandError(f"{command}: cannot write {path!r}: {error.strerror}") from None


def check_installed(command: str, plot: str | None) -> None:
    """What draws tables, and pictures if there is to be one. Found, not imported."""
    needed = ["rich", "matplotlib"] if plot else ["rich"]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise CommandError(f"{command}: {' and '.join(missing)} must be installed first: {INSTALL}")


def picture_kind(command: str, path: str | None) -> str:
    """What to draw, by the file's suffix."""
    suffix = os.path.splitext(path or f".{PICTURES[0]}")[1].lstrip(".").lower()
    if path is not None and suffix not in PICTURES:
        raise CommandError(f"{command}: --plot writes png, svg or pdf: {path!r} ends in none of them")
    return suffix


def write(command: str, path: str, content: bytes) -> None:
    """All of it at once, and says so."""
    save(command, path, content)
    print(f"Written: {path}")


def save(command: str, path: str, content: bytes) -> None:
    """All of it at once."""
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise CommandError(f"{command}: cannot write {path!r}: {error.strerror}") from None


def read(command: str, path: str, most: int) -> bytes:
    """The whole file, if it has no more bytes than that."""
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise CommandError(f"{command}: cannot read {path!r}: {error.strerror}") from None
    if len(content) > most:
        raise CommandError(f"{command}: {path!r} has more than {most} bytes, more than any trace")
    return content
