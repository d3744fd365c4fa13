"""Each function and macro of refbuf.h does what its CPython namesake does.

Counts are those of RefBuf_RefCount: the program's references, without credits.
"""

from __future__ import annotations

import sysconfig
import weakref
from collections.abc import Callable
from types import ModuleType

import pytest
import refbuf

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

#: Around the sizes at which batches of credits grow.
AMOUNTS = (1, 2, 3, 17, 1000)


def test_every_way_to_acquire_and_every_way_to_release_agree(torture: ModuleType, thing: object) -> None:
    before = torture.refcount(thing)
    for acquirer in torture.acquirer_names():
        for releaser in torture.releaser_names():
            for amount in AMOUNTS:
                torture.acquire(acquirer, thing, amount)
                assert torture.refcount(thing) == before + amount, (acquirer, amount)
                torture.release(releaser, thing, amount)
                assert torture.refcount(thing) == before, (acquirer, releaser, amount)


def test_the_count_in_c_is_the_count_in_python(torture: ModuleType, thing: object) -> None:
    base = refbuf.refcount(thing)
    for acquirer in torture.acquirer_names():
        torture.acquire(acquirer, thing, 5)
    taken = 5 * len(torture.acquirer_names())
    assert refbuf.refcount(thing) == base + taken
    torture.release("RefBuf_DECREF", thing, taken)
    assert refbuf.refcount(thing) == base


def test_flushing_changes_no_count(torture: ModuleType, thing: object) -> None:
    before = torture.refcount(thing)
    for flush in (torture.flush, torture.flush_all):
        torture.acquire("RefBuf_INCREF", thing, 100)
        flush()
        assert torture.refcount(thing) == before + 100
        torture.release("RefBuf_DECREF", thing, 100)
        flush()
        assert torture.refcount(thing) == before


def test_an_immortal_object_is_left_alone(torture: ModuleType) -> None:
    if not FREE_THREADED and torture.refcount(None) < 1 << 30:
        pytest.skip("this CPython has no immortal objects")
    before = torture.refcount(None)
    atomics = torture.stats()["atomics"]
    for acquirer in torture.acquirer_names():
        torture.acquire(acquirer, None, 1000)
    for releaser in torture.releaser_names():
        torture.release(releaser, None, 2000)
    assert torture.refcount(None) == before
    # 8,000 increments: others, such as the settler, make a few at the most.
    assert torture.stats()["atomics"] - atomics < 1000


def test_each_argument_is_evaluated_once(torture: ModuleType, thing: object) -> None:
    torture.evaluates_once(thing)


def test_the_x_forms_take_null(torture: ModuleType, thing: object) -> None:
    torture.accepts_null(thing)


def test_pointers_to_other_object_structs_are_taken(
    torture: ModuleType, made_elsewhere: Callable[[Callable[[], object]], object]
) -> None:
    torture.accepts_any_object_type([])
    torture.accepts_any_object_type(made_elsewhere(list))


def test_a_macro_is_one_statement(torture: ModuleType, thing: object) -> None:
    torture.is_one_statement(thing)


def test_cpp_handles_count_exactly(torture_cpp: ModuleType, thing: object) -> None:
    torture_cpp.serves_cpp_handles(thing)


def test_clear_empties_the_variable_before_the_finalizer_runs(torture: ModuleType) -> None:
    seen = []

    class Watcher:
        def __del__(self) -> None:
            seen.append(torture.slot_get())

    torture.slot_set(Watcher())
    assert seen == []
    torture.slot_clear()
    assert seen == [None]
    torture.slot_clear()


def test_setref_stores_the_new_value_before_the_finalizer_runs(torture: ModuleType) -> None:
    seen = []

    class Watcher:
        def __del__(self) -> None:
            seen.append(torture.slot_get())

    torture.slot_set(Watcher())
    torture.slot_set("new")
    assert seen == ["new"]
    torture.slot_clear()


def test_clearing_what_is_empty_writes_nothing(torture: ModuleType) -> None:
    torture.clear_writes_nothing_for_nothing()


def test_a_finalizer_may_use_the_slot_that_drops_it(torture: ModuleType) -> None:
    class Stubborn:
        lives = 3

        def __del__(self) -> None:
            if Stubborn.lives:
                Stubborn.lives -= 1
                torture.slot_set(Stubborn())
                torture.flush_all()

    torture.slot_set(Stubborn())
    while torture.slot_get() is not None:
        torture.slot_clear()
    assert Stubborn.lives == 0


def test_the_last_release_finalizes_at_once_in_the_owning_thread(torture: ModuleType) -> None:
    class Mortal:
        pass

    for releaser in torture.releaser_names():
        mortal = Mortal()
        dead = []
        watch = weakref.ref(mortal, dead.append)
        torture.acquire("RefBuf_INCREF", mortal, 1)
        del mortal
        assert watch() is not None
        torture.release(releaser, watch(), 1)
        assert watch() is None and dead == [watch], releaser


@pytest.mark.skipif(not FREE_THREADED, reason="a GIL build does not buffer attached threads")
def test_foreign_objects_are_served_by_the_buffer(
    torture: ModuleType, made_elsewhere: Callable[[Callable[[], object]], object]
) -> None:
    thing = made_elsewhere(lambda: [object()])
    # The batches of credits grow to their largest first.
    torture.acquire("RefBuf_INCREF", thing, 10_000)
    torture.release("RefBuf_DECREF", thing, 10_000)
    before = torture.stats()
    for _ in range(100):
        torture.acquire("RefBuf_INCREF", thing, 50)
        torture.release("RefBuf_DECREF", thing, 50)
    after = torture.stats()
    assert after["hits"] - before["hits"] > 9_000
    assert after["atomics"] - before["atomics"] < 1_000


def test_own_objects_never_reach_the_buffer(torture: ModuleType) -> None:
    thing = [object()]
    before = torture.stats()
    for _ in range(100):
        torture.acquire("RefBuf_INCREF", thing, 50)
        torture.release("RefBuf_DECREF", thing, 50)
    assert torture.stats()["hits"] - before["hits"] < 1_000
