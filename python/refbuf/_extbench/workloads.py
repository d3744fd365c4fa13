"""What threads call in packages of others, on objects that they share.

============== ====================================================================
workload       an operation
============== ====================================================================
lru-get        looks up a value in a cache (lru-dict)
lru-values     lists the 32 values of a cache (lru-dict)
cytoolz-get    gets 32 values from a tuple, by a list of their indices
cytoolz-pluck  takes the first item of each of 64 tuples
msgpack-list   packs a list of 64 numbers
msgpack-dict   packs a dict of 32 strings and numbers
============== ====================================================================

What is shared is made by the thread that calls `make`, so it is foreign to others; what an
operation makes is the thread's own. Nothing that is shared is changed: lru-dict has no locks,
and moves what is looked up to the front, where the one entry of lru-get is already.

This file imports nothing of refbuf: `program.py` loads it in processes without refbuf.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple


class Use(NamedTuple):
    """One operation of a package on something shared."""

    package: str
    """Its name in `packages.PACKAGES`."""
    operation: str
    """An expression that reads `shared`. Its value is true."""
    make: Callable[[], Any]
    """Makes what is shared, and imports the package."""


class _Thing:
    """An object like any other: neither immortal nor a container."""

    __slots__ = ()


def _cache(size: int) -> Any:
    from lru import LRU

    cache = LRU(size)
    for number in range(size):
        cache[number] = _Thing()
    return cache


def _get() -> Any:
    from cytoolz import get

    return partial(get, list(range(32)), tuple(_Thing() for _ in range(32)))


def _pluck() -> Any:
    from cytoolz import pluck

    return pluck, [(_Thing(), number) for number in range(64)]


def _pack(made: Any) -> Any:
    from msgpack import packb

    return partial(packb, made)


WORKLOADS: dict[str, Use] = {
    "lru-get": Use("lru-dict", "shared[0]", lambda: _cache(1)),
    "lru-values": Use("lru-dict", "shared()", lambda: _cache(32).values),
    "cytoolz-get": Use("cytoolz", "shared()", _get),
    "cytoolz-pluck": Use("cytoolz", "[*shared[0](0, shared[1])]", _pluck),
    # Neither small integers nor strings of the source: those are immortal.
    "msgpack-list": Use("msgpack", "shared()", lambda: _pack([number + 0.5 for number in range(64)])),
    "msgpack-dict": Use(
        "msgpack", "shared()", lambda: _pack({f"key {number}": number + 0.5 for number in range(32)})
    ),
}
