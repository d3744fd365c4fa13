#!/usr/bin/env python3
"""Hit rates of hashes of the address, on this interpreter's own heap.

For each set of real objects, with accesses skewed as zipf 1.0 or even, prints
the share of accesses that a table of 1,024 slots in pairs can serve when each
pair holds the two most wanted of the objects that map to it. Collisions are all
that lowers it, so it compares hashes and nothing else. At the end the same for
other numbers of places. docs/HASHING.md has the results and the choice.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import random
import sys
from collections.abc import Callable

SLOTS = 1024
PLACES = (1, 2, 4)
WORD = (1 << 64) - 1

#: From an address to one of so many sets of slots, a power of two.
HASHES: dict[str, Callable[[int, int], int]] = {
    "a >> 4": lambda a, sets: (a >> 4) % sets,
    "(a ^ a >> 6) >> 4": lambda a, sets: ((a ^ a >> 6) >> 4) % sets,
    "(a ^ a >> 8) >> 4": lambda a, sets: ((a ^ a >> 8) >> 4) % sets,
    "(a ^ a >> 10) >> 4": lambda a, sets: ((a ^ a >> 10) >> 4) % sets,
    "(a ^ a >> 12) >> 4": lambda a, sets: ((a ^ a >> 12) >> 4) % sets,
    "(a ^ a >> 6 ^ a >> 12) >> 4": lambda a, sets: ((a ^ a >> 6 ^ a >> 12) >> 4) % sets,
    "multiplied, upper bits": lambda a, sets: ((a * 0x9E3779B97F4A7C15) & WORD) * sets >> 64,
    "multiplied, 32 bits": lambda a, sets: ((a * 0x9E3779B1) & WORD) >> 26 & sets - 1,
    "at random (for scale)": lambda a, sets: random.Random(a).randrange(sets),
}

#: What a program has loaded: enough modules for a heap of every size class.
MODULES = (
    "asyncio",
    "json",
    "decimal",
    "email.message",
    "http.client",
    "xml.dom.minidom",
    "unittest",
    "typing",
)


class Plain:
    def __init__(self) -> None:
        self.value = 1


class Slotted:
    __slots__ = ("value", "other")


def heap_objects() -> list[object]:
    for name in MODULES:
        importlib.import_module(name)
    return gc.get_objects()


def sets(count: int, rng: random.Random) -> dict[str, list[object]]:
    heap = heap_objects()
    functions = [o for o in heap if type(o).__name__ == "function"]
    return {
        f"{count} of the heap's objects": rng.sample(heap, count),
        f"{count} functions": rng.sample(functions, min(count, len(functions))),
        f"{count} instances made in a row": [Plain() for _ in range(count)],
        f"{count} slotted instances": [Slotted() for _ in range(count)],
        f"{count} object()": [object() for _ in range(count)],
        f"{count} tuples of 3": [(n, n, n) for n in range(count)],
        f"{count} strings": [f"constant {n}" for n in range(count)],
    }


def rate(addresses: list[int], weights: list[float], to_set: Callable[[int, int], int], places: int) -> float:
    sets: dict[int, list[float]] = {}
    for address, weight in zip(addresses, weights, strict=True):
        sets.setdefault(to_set(address, SLOTS // places), []).append(weight)
    return sum(sum(sorted(wanted)[-places:]) for wanted in sets.values()) / sum(weights)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    build = "free-threaded" if not getattr(sys, "_is_gil_enabled", lambda: True)() else "with a GIL"
    print(f"CPython {sys.version.split()[0]}, {build}; {SLOTS} slots; share of accesses that can hit, in %\n")
    totals: dict[tuple[str, int], list[float]] = {(name, places): [] for name in HASHES for places in PLACES}
    for count, skewed in ((64, False), (256, False), (1000, False), (4096, True)):
        rows = sets(count, rng)
        print(f"| {count} objects, {'zipf 1.0' if skewed else 'all alike'} | " + " | ".join(rows) + " |")
        print("|---" * (len(rows) + 1) + "|")
        for name, hash_of in HASHES.items():
            pairs = []
            for objects in rows.values():
                addresses = [id(o) for o in objects]
                weights = [1 / (n + 1) if skewed else 1.0 for n in range(len(addresses))]
                random.Random(7).shuffle(weights)
                for places in PLACES:
                    totals[name, places].append(rate(addresses, weights, hash_of, places))
                pairs.append(totals[name, 2][-1])
            print(f"| `{name}` | " + " | ".join(f"{100 * r:.1f}" for r in pairs) + " |")
        print()
    header = " | ".join(f"{places} place{'s' * (places > 1)}: mean | worst" for places in PLACES)
    print(f"| hash | {header} |\n" + "|---" * (2 * len(PLACES) + 1) + "|")
    for name in HASHES:
        rates = [totals[name, places] for places in PLACES]
        cells = " | ".join(f"{100 * sum(r) / len(r):.1f} | {100 * min(r):.1f}" for r in rates)
        print(f"| `{name}` | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
