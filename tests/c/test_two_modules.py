"""Two extension modules in one process, one in C and one in C++, in many threads."""

from __future__ import annotations

import gc
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable
from types import ModuleType

import pytest
import refbuf

THREADS = 4


class Thing:
    """An object that can be watched."""


def in_threads(bodies: list[Callable[[], None]]) -> None:
    """Run all at the same time; the first failure is ours."""
    start = threading.Barrier(len(bodies))
    failures: list[BaseException] = []

    def run(body: Callable[[], None]) -> None:
        try:
            start.wait()
            body()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Lets the heartbeat, and threads that merge their objects' counts, do their part."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        refbuf.flush_all()
        time.sleep(0.001)
    return True


def test_each_module_has_its_own_import_state(torture_c: ModuleType, torture_cpp: ModuleType) -> None:
    states = [module.import_state() for module in (torture_c, torture_cpp)]
    for connected, here, in_unit in states:
        assert connected == 1
        assert here == in_unit
    assert states[0][1] != states[1][1]


def test_a_module_drops_what_the_other_took(
    torture_c: ModuleType, torture_cpp: ModuleType, thing: object
) -> None:
    before = refbuf.refcount(thing)
    for taker, dropper in ((torture_c, torture_cpp), (torture_cpp, torture_c)):
        taker.acquire("RefBuf_INCREF", thing, 300)
        assert dropper.refcount(thing) == taker.refcount(thing)
        dropper.release("RefBuf_DECREF", thing, 300)
        assert refbuf.refcount(thing) == before


def changed(things: list[object], before: list[int]) -> dict[int, int]:
    """By how much which counts differ: two long lists would be compared for minutes."""
    counts = [refbuf.refcount(thing) for thing in things]
    return {
        index: now - then for index, (now, then) in enumerate(zip(counts, before, strict=True)) if now != then
    }


def test_churn_in_both_modules_and_many_threads_leaves_exact_counts(
    torture_c: ModuleType, torture_cpp: ModuleType, made_elsewhere: Callable[[Callable[[], object]], object]
) -> None:
    # More objects than the default table has slots, so that they collide.
    things = [Thing() for _ in range(1500)] + made_elsewhere(lambda: [Thing() for _ in range(1500)])
    # The list of the other thread is gone, and its references wait for that thread to
    # merge them, or for a collection, which must not come later.
    gc.collect()
    before = [refbuf.refcount(thing) for thing in things]
    modules = (torture_c, torture_cpp)
    in_threads(
        [
            lambda seed=seed: modules[seed % 2].churn(things, seed, 100_000)  # type: ignore[misc]
            for seed in range(THREADS)
        ]
    )
    assert changed(things, before) == {}
    refbuf.flush_all()
    assert changed(things, before) == {}


@pytest.mark.parametrize("owner", ["main thread", "other thread"])
def test_references_travel_between_modules_and_threads(
    owner: str,
    torture_c: ModuleType,
    torture_cpp: ModuleType,
    made_elsewhere: Callable[[Callable[[], object]], object],
) -> None:
    modules = (torture_c, torture_cpp)
    make = lambda: [Thing() for _ in range(50)]  # noqa: E731
    things = make() if owner == "main thread" else made_elsewhere(make)
    before = [refbuf.refcount(thing) for thing in things]
    mail: list[queue.SimpleQueue[int | None]] = [queue.SimpleQueue() for _ in range(THREADS)]

    def send_and_drop(me: int) -> None:
        chooser = random.Random(me)
        inbox = mail[me]
        for step in range(2000):
            module = modules[(me + step) % 2]
            mail[chooser.randrange(THREADS)].put(module.make(chooser.choice(things)))
            if not inbox.empty():
                modules[step % 2].drop(inbox.get())

    in_threads([lambda me=me: send_and_drop(me) for me in range(THREADS)])  # type: ignore[misc]
    for box in mail:
        while not box.empty():
            torture_c.drop(box.get())
    assert wait_until(lambda: [refbuf.refcount(thing) for thing in things] == before)


def test_objects_passed_on_are_finalized_exactly_once(torture_c: ModuleType, torture_cpp: ModuleType) -> None:
    count = 2000
    mail: queue.SimpleQueue[int] = queue.SimpleQueue()
    finalized: list[int] = []
    watches: list[weakref.ref[Thing]] = []

    def produce() -> None:
        for number in range(count):
            thing = Thing()
            watches.append(weakref.ref(thing, lambda _, number=number: finalized.append(number)))
            mail.put(torture_c.make(thing))

    def consume() -> None:
        for _ in range(count):
            torture_cpp.drop(mail.get())

    in_threads([produce, consume])
    assert wait_until(lambda: len(finalized) >= count)
    assert sorted(finalized) == list(range(count))
    assert all(watch() is None for watch in watches)
