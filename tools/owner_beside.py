"""What a pair costs a thread while the object's owner counts the same object.

The owner's counts are plain stores to the line in which other threads look for
the owner's name, so a hit in a table is no longer all that a pair costs them.

    .venv-ft/bin/python tools/owner_beside.py
"""

import argparse
import threading
import time
from statistics import median

from refbuf.workloads import touch

ROUNDS = 9
PAIRS = 2_000_000
# Of the owner, between two looks whether the other thread is done.
AT_A_TIME = 10_000


class Thing:
    """Something to count."""


def pair_ns(variant: str, shared: object, beside: object | None) -> float:
    """Nanoseconds of a thread's pair on `shared`, while its owner counts `beside`."""
    taken: list[float] = []

    def work() -> None:
        began = time.perf_counter()
        touch(shared, PAIRS, variant)
        taken.append((time.perf_counter() - began) / PAIRS * 1e9)

    thread = threading.Thread(target=work)
    thread.start()
    while beside is not None and thread.is_alive():
        touch(beside, AT_A_TIME, "stock")
    thread.join()
    return taken[0]


def main() -> None:
    """Prints a table; the cases take turns."""
    shared, other = Thing(), Thing()
    owners = {"waits": None, "counts another object": other, "counts the same object": shared}
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for variant in "stock", "refbuf":
            for what, beside in owners.items():
                found.setdefault((variant, what), []).append(pair_ns(variant, shared, beside))
    for (variant, what), times in found.items():
        print(f"{variant:6}  the owner {what:24} {median(times):7.2f} ns a pair")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    main()
