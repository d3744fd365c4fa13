"""What the buffers did, in a few lines at the end of the program."""

import atexit
import os
import sys

import refbuf


def print_at_exit() -> None:
    """Has it printed to standard error. What is registered first comes last, so this
    is for before the program can register anything."""
    atexit.register(_print, os.getpid())


def _print(process: int) -> None:
    # Not in children that the program forked; and print(file=None) would be to
    # standard output.
    if os.getpid() != process or sys.__stderr__ is None:
        return
    stats = refbuf.stats()
    table = {
        "hits": f"{stats.hits:,}",
        "misses": f"{stats.misses:,}",
        "share of hits": f"{stats.hit_rate:.1%}",
        "atomics": f"{stats.atomics:,}",
        "threads": f"{stats.threads:,}",
    }
    if lulls := refbuf._refbuf.live_lulls():
        table["in lulls"] = f"{lulls[2]:.1f} s"
    width = max(map(len, table.values()))
    lines = ["refbuf:", *(f"  {name:<13}  {value:>{width}}" for name, value in table.items())]
    print("\n".join(lines), file=sys.__stderr__, flush=True)
