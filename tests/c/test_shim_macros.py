"""Sources that know nothing of refbuf, compiled with the shim: each name by which CPython
counts, in each place where C and C++ allow it, takes and drops exactly what CPython's does.

The same sources are compiled without the shim too, and must pass the same tests: that is
how we know what CPython's names do.
"""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import refbuf

from c_build import SHIM_MODULES, ShimModule, run_shimmed

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
SHIMMED = [module.name for module in SHIM_MODULES if module.way != "stock"]


class Watched:
    """An object with a finalizer."""

    def __init__(self, finalize: Callable[[], None]) -> None:
        self.finalize = finalize

    def __del__(self) -> None:
        self.finalize()


def test_each_position_takes_and_drops_what_it_says(shim_torture: ModuleType, thing: object) -> None:
    spare = [thing] * 200  # a position may drop what is not its own
    before = refbuf.refcount(thing)
    for name, takes, drops in shim_torture.table():
        shim_torture.go(name, thing, 3, False)
        assert refbuf.refcount(thing) == before + 3 * (takes - drops), name
        for _ in range(3 * (drops - takes)):
            shim_torture.make(thing)
        for _ in range(3 * (takes - drops)):
            shim_torture.drop(id(thing))
        assert refbuf.refcount(thing) == before, name
    assert len(spare) == 200


def test_a_position_visited_often_leaves_the_count_as_it_was(shim_torture: ModuleType, thing: object) -> None:
    spare = [thing] * 200
    before = refbuf.refcount(thing)
    for name, _, _ in shim_torture.table():
        shim_torture.go(name, thing, 2000, True)
        assert refbuf.refcount(thing) == before, name
    refbuf.flush_all()
    assert refbuf.refcount(thing) == before
    assert len(spare) == 200


def test_positions_in_many_threads_leave_the_count_as_it_was(shim_torture: ModuleType) -> None:
    things = [object() for _ in range(10)]
    spare = things * 400
    before = [refbuf.refcount(thing) for thing in things]

    def visit_all() -> None:
        for name, _, _ in shim_torture.table():
            for thing in things:
                shim_torture.go(name, thing, 20, True)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(visit_all) for _ in range(4)]:
            done.result()
    refbuf.flush_all()
    assert [refbuf.refcount(thing) for thing in things] == before
    assert len(spare) == 4000


#: In a process of its own, so that no table stands aside for what others did, and no beat
#: comes between. Whatever a position counts past the buffer is missing from the hits.
THROUGH_THE_BUFFER = """
import threading
import refbuf
import {name} as torture

refbuf.configure(heartbeat_ms=60_000)
made, leave = [], threading.Event()
ready = threading.Event()

def own():
    made.append([object()])
    ready.set()
    leave.wait()

owner = threading.Thread(target=own)
owner.start()
ready.wait()
thing = made.pop()
spare = [thing] * 200
torture.go("newref", thing, 5000, True)  # batches of credits have their full size
wrong = {{}}
for name, takes, drops in torture.table():
    for attempt in range(5):
        before = refbuf.stats()
        counted = torture.go(name, thing, 100, True)
        after = refbuf.stats()
        if after.hits - before.hits == counted:
            break
    else:
        wrong[name] = (counted, after.hits - before.hits)
leave.set()
owner.join()
print(wrong)
"""


@pytest.mark.skipif(not FREE_THREADED, reason="a GIL build does not buffer attached threads")
@pytest.mark.parametrize("name", SHIMMED)
def test_each_count_of_each_position_goes_through_the_buffer(name: str, shim_folder: Path) -> None:
    result = run_shimmed(THROUGH_THE_BUFFER.format(name=name), shim_folder)
    assert result.stdout.strip() == "{}", result.stdout + result.stderr


@pytest.mark.skipif(not FREE_THREADED, reason="a GIL build does not buffer attached threads")
def test_without_the_shim_no_count_goes_through_the_buffer(shim_folder: Path) -> None:
    code = """
        import refbuf, stock_c
        import threading
        made = []
        maker = threading.Thread(target=lambda: made.append([object()]))
        maker.start()
        maker.join()
        spare = made * 200
        for name, takes, drops in stock_c.table():
            stock_c.go(name, made[0], 100, True)
        print(refbuf.stats().hits)
    """
    result = run_shimmed(code, shim_folder)
    assert result.stdout.strip() == "0", result.stdout + result.stderr


def test_clear_empties_the_variable_before_the_finalizer_runs(shim_torture: ModuleType) -> None:
    seen: list[object] = []
    shim_torture.keep(Watched(lambda: seen.append(shim_torture.give())))
    assert seen == []
    shim_torture.forget()
    assert seen == [0]  # what it gives when there is nothing


def test_xsetref_stores_the_new_value_before_the_finalizer_runs(shim_torture: ModuleType) -> None:
    seen: list[object] = []
    shim_torture.keep(Watched(lambda: seen.append(shim_torture.give())))
    shim_torture.keep("new")
    assert seen == ["new"]
    shim_torture.forget()


def test_the_last_reference_finalizes_at_once_in_the_owning_thread(shim_torture: ModuleType) -> None:
    finalized: list[int] = []
    number = shim_torture.make(Watched(lambda: finalized.append(1)))
    assert finalized == []
    shim_torture.drop(number)
    assert finalized == [1]


#: What CPython exports to count with, and the shim has no use for.
EXPORTED = {"Py_NewRef", "Py_XNewRef", "_Py_IncRef", "_Py_DecRef"}
#: These it calls where refbuf is missing.
WITHOUT_REFBUF = {"Py_IncRef", "Py_DecRef"}


@pytest.mark.parametrize("module", SHIM_MODULES, ids=str)
def test_cpythons_functions_are_referred_to_only_where_cpython_counts(
    module: ShimModule, shim_folder: Path
) -> None:
    (path,) = shim_folder.glob(f"{module.name}.*.so")
    listed = subprocess.run(["nm", "-D", "-u", str(path)], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    if module.knows_refbuf:
        assert not names & EXPORTED
    else:
        assert names >= EXPORTED | WITHOUT_REFBUF
