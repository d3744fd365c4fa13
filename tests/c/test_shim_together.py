"""Extensions compiled with the shim, and others, in one process: references that they hand to
each other, the interpreter's exit, and sub-interpreters."""

from __future__ import annotations

import queue
import random
import sys
import sysconfig
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import refbuf

from c_build import SHIM_MODULES, load, run_shimmed

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
NAMES = [module.name for module in SHIM_MODULES]

THREADS = 4


class Thing:
    """An object that can be watched."""


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Lets the heartbeat, and threads that merge their objects' counts, do their part."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        refbuf.flush_all()
        time.sleep(0.001)
    return True


def in_threads(body: Callable[[int], None], count: int = THREADS) -> None:
    """Calls body(0) to body(count - 1), each in a thread; the first failure is ours."""
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(body, number) for number in range(count)]:
            done.result()


@pytest.fixture
def three(shim_folder: Path) -> tuple[ModuleType, ...]:
    """Two extensions with the shim, one in C and one in C++, and one without."""
    modules = []
    for name in ("shim_c", "shim_cpp", "stock_c"):
        if name not in sys.modules:
            (path,) = shim_folder.glob(f"{name}.*.so")
            load(name, path)
        modules.append(sys.modules[name])
    return tuple(modules)


# -- references that travel --------------------------------------------------------------------


def test_each_drops_what_another_took(three: tuple[ModuleType, ...], thing: object) -> None:
    before = refbuf.refcount(thing)
    for taker in three:
        for dropper in three:
            numbers = [taker.make(thing) for _ in range(300)]
            assert refbuf.refcount(thing) == before + 300
            for number in numbers:
                dropper.drop(number)
            assert refbuf.refcount(thing) == before
            capsules = [taker.wrap(thing) for _ in range(300)]
            assert refbuf.refcount(thing) == before + 300
            given = [dropper.unwrap(capsule) for capsule in capsules]
            assert refbuf.refcount(thing) == before + 600
            del capsules, given
            assert refbuf.refcount(thing) == before


@pytest.mark.parametrize("owner", ["main thread", "other thread"])
def test_references_travel_between_extensions_and_threads(
    owner: str,
    three: tuple[ModuleType, ...],
    made_elsewhere: Callable[[Callable[[], object]], object],
) -> None:
    make = lambda: [Thing() for _ in range(50)]  # noqa: E731
    things = make() if owner == "main thread" else made_elsewhere(make)
    before = [refbuf.refcount(thing) for thing in things]
    mail: list[queue.SimpleQueue[object]] = [queue.SimpleQueue() for _ in range(THREADS)]

    def send_and_drop(me: int) -> None:
        chooser = random.Random(me)
        for step in range(2000):
            module = three[(me + step) % 3]
            sent = module.make if step % 2 else module.wrap
            mail[chooser.randrange(THREADS)].put(sent(things[chooser.randrange(50)]))
            if not mail[me].empty():
                got = mail[me].get()
                if isinstance(got, int):
                    three[step % 3].drop(got)
                else:
                    three[step % 3].unwrap(got)

    in_threads(send_and_drop)
    for box in mail:
        while not box.empty():
            got = box.get()
            if isinstance(got, int):
                three[0].drop(got)
            del got
    assert wait_until(lambda: [refbuf.refcount(thing) for thing in things] == before)


def test_objects_passed_on_are_finalized_exactly_once(three: tuple[ModuleType, ...]) -> None:
    count = 1000
    mail: queue.SimpleQueue[int] = queue.SimpleQueue()
    finalized: list[int] = []
    watches: list[weakref.ref[Thing]] = []

    def produce_or_consume(me: int) -> None:
        for number in range(count):
            if me % 2:
                three[number % 3].drop(mail.get())
                continue
            thing = Thing()
            name = me * count + number
            watches.append(weakref.ref(thing, lambda _, name=name: finalized.append(name)))
            mail.put(three[(number // 3) % 3].make(thing))

    in_threads(produce_or_consume, 4)
    assert wait_until(lambda: len(finalized) >= 2 * count)
    assert Counter(finalized) == Counter([*range(count), *range(2 * count, 3 * count)])
    assert all(watch() is None for watch in watches)


def test_a_variable_that_all_threads_replace_finalizes_each_value_once(
    three: tuple[ModuleType, ...],
) -> None:
    # A lock of Python's around it: Py_XSETREF is no atomic exchange, here or in CPython.
    finalized: list[int] = []

    class Value:
        def __init__(self, name: int) -> None:
            self.name = name

        def __del__(self) -> None:
            finalized.append(self.name)

    turns: queue.SimpleQueue[None] = queue.SimpleQueue()
    turns.put(None)

    def replace(me: int) -> None:
        for number in range(300):
            value = Value(1000 * me + number)
            turns.get()
            three[number % 2].keep(value)
            turns.put(None)

    in_threads(replace)
    for module in three:
        module.forget()
    assert wait_until(lambda: len(finalized) >= 300 * THREADS)
    assert Counter(finalized) == Counter(1000 * me + number for me in range(THREADS) for number in range(300))


# -- the interpreter's exit ------------------------------------------------------------------------

HOLDERS = """
import threading

# In a namespace of its own: whatever is leaked must not keep this one, and all that is in it.
space = {}
exec('''
import os
class Noisy:
    def __init__(self, name):
        self.name = name
    def __del__(self, write=os.write):
        write(1, self.name + b" ")
''', space)
Noisy = space.pop("Noisy")

def from_thread(make):
    made = []
    maker = threading.Thread(target=lambda: made.append(make()))
    maker.start()
    maker.join()
    return made.pop()

# Importing refbuf begins a thread; where a process has had one, 3.13 lets modules and types live for ever.
from_thread(list)
"""


#: What a program leaves to its exit.
LEFT = {
    "by the module's state": "torture.hold(Noisy(b'state'))",
    "by an object that Python knows": "capsule = torture.wrap(Noisy(b'capsule'))",
    "by a static variable": "torture.keep(Noisy(b'static'))",
    "by nobody": "number = torture.make(Noisy(b'leaked'))",
    "by many": (
        "many = [torture.wrap(from_thread(list)) for _ in range(100)]\ntorture.keep(many[0])\n"
        "numbers = [torture.make(torture) for _ in range(10)]"
    ),
}


@pytest.fixture(scope="module", params=LEFT)
def left(request: pytest.FixtureRequest, shim_folder: Path) -> tuple[str, list[str]]:
    """Code that leaves something, and what is finalized of that by an extension without the shim."""
    code = f"{HOLDERS}\nimport TORTURE as torture\n{LEFT[request.param]}\n"
    result = run_shimmed(code.replace("TORTURE", "stock_c"), shim_folder)
    assert (result.stderr, result.returncode) == ("", 0)
    return code, result.stdout.split()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "stock_c"])
def test_exit_finalizes_what_it_finalizes_without_the_shim(
    left: tuple[str, list[str]], name: str, shim_folder: Path
) -> None:
    code, finalized = left
    result = run_shimmed(code.replace("TORTURE", name), shim_folder)
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout.split() == finalized


@pytest.mark.parametrize("name", NAMES)
def test_exit_with_an_object_that_an_ended_thread_made(name: str, shim_folder: Path) -> None:
    code = f"""
import {name} as torture
torture.hold(from_thread(lambda: Noisy(b"state")))
capsules = [torture.wrap(from_thread(lambda: Noisy(b"capsule"))) for _ in range(20)]
"""
    result = run_shimmed(HOLDERS + code, shim_folder)
    assert (result.stderr, result.returncode) == ("", 0)
    assert Counter(result.stdout.split())["capsule"] == 20


@pytest.mark.parametrize("name", NAMES)
def test_exit_while_daemon_threads_count(name: str, shim_folder: Path) -> None:
    code = f"""
import time
import {name} as torture, stock_c
things = [[] for _ in range(20)] + from_thread(lambda: [[] for _ in range(20)])
spare = things * 100
names = [name for name, takes, drops in torture.table()]
begun = threading.Semaphore(0)

def count(number):
    held = []
    while True:
        for name in names:
            for thing in things:
                torture.go(name, thing, 3, True)
                held.append(torture.wrap(thing))
        begun.release()
        del held[::2]

for number in range(3):
    threading.Thread(target=count, args=(number,), daemon=True).start()
for _ in range(3):
    begun.acquire()
torture.keep(things)
torture.hold(Noisy(b"state"))
print("ends", flush=True)
"""
    result = run_shimmed(HOLDERS + code, shim_folder)
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout.split()[0] == "ends"
    # The module may be a daemon thread's for ever, but nothing is finalized twice.
    assert result.stdout.split()[1:] in ([], ["state"])


# -- sub-interpreters --------------------------------------------------------------------------

SUBINTERPRETER = """
import sys, threading
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

def create():
    try:
        return interpreters.create(KIND)
    except TypeError:
        return interpreters.create(isolated=KIND == "isolated")

def run(code):
    '''Runs code in the sub-interpreter; an exception there is one here.'''
    code = f"import sys; sys.path[:0] = {sys.path[:1]!r}\\n" + code
    if hasattr(interpreters, "exec"):
        failed = interpreters.exec(inside, code)
        assert failed is None, failed.formatted
    else:
        interpreters.run_string(inside, code)

def make_foreign():
    made, ready = [], threading.Event()
    def own():
        made.append([])
        ready.set()
        leave.wait(60)
    threading.Thread(target=own, daemon=True).start()
    ready.wait(60)
    return made.pop()

def main_counts_exactly():
    '''And how many of its counts went through a buffer.'''
    import refbuf
    hits, counted = refbuf.stats().hits, 0
    before = [refbuf.refcount(thing) for thing in things]
    for name, takes, drops in shim.table():
        for index in range(len(things)):
            counted += shim.go(name, things[index], 20, True)
    refbuf.flush_all()
    assert [refbuf.refcount(thing) for thing in things] == before
    return refbuf.stats().hits - hits

leave = threading.Event()
things = [[], make_foreign()]
spare = things * 200
inside = create()
"""

# In the sub-interpreter: objects that threads share.
INSIDE = """
import gc, threading
import {name} as shim

class Thing:
    def __del__(self):
        log.append(1)

log = []
things = [Thing() for _ in range(10)]
spare = things * 400
before = [sys.getrefcount(thing) for thing in things]

def count():
    for name, takes, drops in shim.table():
        for index in range(len(things)):
            shim.go(name, things[index], 5, True)

threads = [threading.Thread(target=count) for _ in range(3)]
try:
    for thread in threads:
        thread.start()
except RuntimeError as error:
    # 3.11 has no threads in an isolated one.
    assert "not supported" in str(error) and sys.version_info < (3, 12), error
    threads = []
count()
for thread in threads:
    thread.join()
gc.collect()
assert [sys.getrefcount(thing) for thing in things] == before
assert "refbuf" not in sys.modules
numbers = [shim.make(thing) for thing in things]
spare.clear()
things.clear()
thing = None
gc.collect()
assert log == []
for number in numbers:
    shim.drop(number)
gc.collect()
assert len(log) == 10, len(log)
"""


@pytest.mark.parametrize("kind", ["legacy", "isolated"])
@pytest.mark.parametrize("first", ["main", "inside"])
def test_a_subinterpreter_counts_as_cpython_does(kind: str, first: str, shim_folder: Path) -> None:
    inside = INSIDE.format(name="shim_c")
    code = f"""
KIND = {kind!r}
{SUBINTERPRETER}
if {first == "inside"}:
    # Nobody has refbuf yet, and it cannot be imported there. (From 3.13 on CPython initializes
    # extensions in the main interpreter first.)
    run({inside!r})
    run({inside!r})
import shim_c as shim
assert ("refbuf" in sys.modules) == {FREE_THREADED}
assert (main_counts_exactly() > 0) == {FREE_THREADED}
import refbuf
sums = refbuf.stats()
run({inside!r})
after = refbuf.stats()
assert (after.acquires, after.take_ins) == (sums.acquires, sums.take_ins)
assert (main_counts_exactly() > 0) == {FREE_THREADED}
interpreters.destroy(inside)
assert (main_counts_exactly() > 0) == {FREE_THREADED}
leave.set()
print("exact")
"""
    result = run_shimmed(code, shim_folder)
    assert (result.stdout.strip(), result.stderr, result.returncode) == ("exact", "", 0)


@pytest.mark.parametrize("kind", ["legacy", "isolated"])
def test_where_refbuf_is_required_a_subinterpreter_has_the_extension_only_if_refbuf_was_reached(
    kind: str, shim_folder: Path
) -> None:
    refused = """
try:
    import shim_c
except ImportError as error:
    assert "interpreter" in str(error), error
else:
    # From 3.13 on CPython initializes it in the main interpreter first, which has refbuf.
    assert sys.version_info >= (3, 13)
"""
    code = f"""
KIND = {kind!r}
{SUBINTERPRETER}
run({refused!r})
import shim_c as shim
assert (main_counts_exactly() > 0) == {FREE_THREADED}
interpreters.destroy(inside)
assert (main_counts_exactly() > 0) == {FREE_THREADED}
leave.set()
print("exact")
"""
    result = run_shimmed(code, shim_folder, require="1")
    assert (result.stdout.strip(), result.stderr, result.returncode) == ("exact", "", 0)
