"""Errors of the program, shown as if nothing had called it."""

import os.path
import sys
from collections.abc import Callable
from types import TracebackType


def show_without_us(error: BaseException, then: Callable[[], None]) -> None:
    """Has the error shown without our frames, and something done when it has been.

    error: what the program has raised, caught by the first of our frames.

    Each frame that the error still leaves adds itself to its traceback, up to the
    first of all. So this is undone by the hook that shows it, which is once only.
    """
    theirs = error.__traceback__
    while theirs is not None and _is_ours(theirs):
        theirs = theirs.tb_next
    hook = sys.excepthook

    def show(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        sys.excepthook = hook
        if value is not error:
            hook(kind, value, traceback)
            return
        error.__traceback__ = sys.last_traceback = theirs
        try:
            hook(kind, error, theirs)
        except SystemExit:
            raise
        except BaseException as another:
            # As python, but without this frame.
            another.__traceback__ = another.__traceback__ and another.__traceback__.tb_next
            print("Error in sys.excepthook:", file=sys.stderr)
            sys.__excepthook__(type(another), another, another.__traceback__)
            print("\nOriginal exception was:", file=sys.stderr)
            sys.__excepthook__(kind, error, theirs)
        then()

    sys.excepthook = show


def _is_ours(entry: TracebackType) -> bool:
    return os.path.dirname(entry.tb_frame.f_code.co_filename) == OURS


# As code has it: __file__ may have been changed since.
OURS = os.path.dirname(_is_ours.__code__.co_filename)
