"""Loops of pure Python over objects that threads share.

============== ===================================================================
workload       an operation
============== ===================================================================
global         reads a global of a module
attribute      reads an attribute of an instance
class-attr     reads an attribute of a class
tuple-item     reads an item of a tuple
list-item      reads an item of a list
dict-get       gets a value of a dict
dict-in        asks whether a key is in a dict
method         calls a bound method
lock           asks a lock whether it is locked
closure        reads a variable of an enclosing function
constants      calls a function that passes constants to another
instantiate    makes an instance of a class, whose __init__ sets two attributes
dataclass      reads two fields of a dataclass with slots, and multiplies them
namedtuple     reads a field of a named tuple
lru-cache      calls a function whose result is in its functools.lru_cache
regex          matches a pattern against a short string
generator      runs a generator that yields three objects
thread-local   reads the thread's own attribute of a threading.local
============== ===================================================================

What is shared is made by the thread that calls `Workload.make`, so it is foreign to
others. What an operation makes is the thread's own.

This file imports nothing of refbuf: `runner.py` loads it in processes without refbuf.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# How often the operation stands in a loop's body, so that little of the time is the loop's.
UNROLLED = 10

_LOOP = """\
def enclose({enclosed}):
    def loop({parameters}):
        for _ in range(passes):
            {operations}
        return passes * {unrolled}
    return loop
"""
# How a loop comes by what is shared: (parameter of `enclose`, parameters of `loop`).
_ACCESS = {
    "local": ("shared", "passes, shared=shared"),
    "closure": ("shared", "passes"),
    "global": ("_", "passes"),
}


class Workload(NamedTuple):
    """One operation on something shared."""

    operation: str
    """An expression that reads `shared`. Its value is true, which shows that it did what it should."""
    make: Callable[[], Any]
    """Makes what is shared, owned by the calling thread."""
    access: str = "local"
    """What `shared` is to the loop: a local variable of each thread, or what is measured itself."""

    def loop(self, shared: Any) -> Callable[[int], int]:
        """A function that passes so often through its loop, and returns the number of operations.

        All threads run the same one, with local variables of their own.
        """
        enclosed, parameters = _ACCESS[self.access]
        text = _LOOP.format(
            enclosed=enclosed,
            parameters=parameters,
            operations=f"\n{' ' * 12}".join([self.operation] * UNROLLED),
            unrolled=UNROLLED,
        )
        names: dict[str, Any] = {"shared": shared}
        exec(text, names)
        loop: Callable[[int], int] = names["enclose"](shared)
        return loop


class _Thing:
    """An object like any other: neither immortal nor a container."""

    __slots__ = ()


class _Instance:
    def __init__(self) -> None:
        self.value = _Thing()

    def method(self) -> object:
        return self


class _Class:
    value = _Thing()


class _Pair:
    def __init__(self, left: object, right: object) -> None:
        self.left = left
        self.right = right


def _last(*constants: object) -> object:
    return constants[-1]


def _constants() -> object:
    return _last(2.5, "a literal", b"bytes", ("a", 1.5), 1_000_000)


def _generator(things: tuple[object, ...] = (_Thing(), _Thing(), _Thing())) -> Iterator[object]:
    yield from things


# What only one workload needs is imported for it alone: most processes measure another.


def _lock() -> Any:
    import threading

    lock = threading.Lock()
    lock.acquire()
    return lock


def _dataclass() -> Any:
    import dataclasses

    @dataclasses.dataclass(slots=True)
    class Box:
        width: float
        height: float

    return Box(2.5, 1.5)


def _named_tuple() -> Any:
    class Point(NamedTuple):
        x: object
        y: object

    return Point(_Thing(), _Thing())


def _cached() -> Any:
    import functools

    @functools.lru_cache
    def cached(number: int) -> object:
        return _Thing()

    cached(1)
    return cached


def _pattern() -> Any:
    import re

    return re.compile(r"(\w+)=(\d+)")


def _thread_local() -> Any:
    import threading

    class Local(threading.local):
        # Runs in each thread that comes to it.
        def __init__(self) -> None:
            self.value = _Thing()

    return Local()


WORKLOADS: dict[str, Workload] = {
    "global": Workload("shared", _Thing, access="global"),
    "attribute": Workload("shared.value", _Instance),
    "class-attr": Workload("shared.value", lambda: _Class),
    "tuple-item": Workload("shared[1]", lambda: (_Thing(), _Thing())),
    "list-item": Workload("shared[1]", lambda: [_Thing(), _Thing()]),
    "dict-get": Workload('shared.get("key")', lambda: {"key": _Thing()}),
    "dict-in": Workload('"key" in shared', lambda: {"key": _Thing()}),
    "method": Workload("shared()", lambda: _Instance().method),
    "lock": Workload("shared.locked()", _lock),
    "closure": Workload("shared", _Thing, access="closure"),
    "constants": Workload("shared()", lambda: _constants),
    "instantiate": Workload('shared(1.5, "right")', lambda: _Pair),
    "dataclass": Workload("shared.width * shared.height", _dataclass),
    "namedtuple": Workload("shared.x", _named_tuple),
    "lru-cache": Workload("shared(1)", _cached),
    "regex": Workload('shared.match("width=640")', _pattern),
    "generator": Workload("[*shared()]", lambda: _generator),
    "thread-local": Workload("shared.value", _thread_local),
}
