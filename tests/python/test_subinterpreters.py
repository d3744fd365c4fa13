"""Sub-interpreters are left on CPython's own path: refbuf says so when it is
imported there, and buffers no object of theirs."""

import pytest
from building import compile_extension

SETTING = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import refbuf, countext
from support import (Plain, Worker, addresses, assert_child_succeeds, counts, in_child,
                     in_threads, settled_counts)

def create():
    try:
        return interpreters.create(KIND)
    except TypeError:
        return interpreters.create(isolated=KIND == "isolated")

def run(code):
    '''Runs code in the one sub-interpreter; an exception there is one here.'''
    if hasattr(interpreters, "exec"):
        failed = interpreters.exec(inside, code)
        assert failed is None, failed.formatted
    else:
        interpreters.run_string(inside, code)

def main_is_well():
    assert settled_counts(objects) == before
    in_threads(3, lambda number: countext.churn(addresses(objects), 2_000, number))
    worker.do(countext.churn, addresses(objects), 1_000, 1)
    assert counts(objects, refbuf.refcount) == before
    assert settled_counts(objects) == before

def main_is_well_alone():
    '''After the sub-interpreter's end; before it, 3.13 itself cannot fork.'''
    interpreters.destroy(inside)
    main_is_well()
    assert_child_succeeds(in_child(bool))
    main_is_well()

inside = create()
objects = [Plain() for _ in range(50)]
before = counts(objects)
worker = Worker()
worker.do(countext.churn, addresses(objects), 1_000, 1)
"""


REFUSED = """
for _ in range(3):
    try:
        import {module}
    except ImportError as error:
        assert "interpreter" in str(error), error
    else:
        raise AssertionError("it was imported")
"""


@pytest.fixture(params=["legacy", "isolated"])
def run_with_subinterpreter(run_python, request):
    def run(code, **options):
        return run_python(code, first=f"KIND = {request.param!r}" + SETTING, **options)

    return run


def test_refbuf_refuses_to_be_imported_in_a_subinterpreter(run_with_subinterpreter):
    run_with_subinterpreter(
        f"""
        run({REFUSED.format(module="refbuf")!r})
        main_is_well()
        main_is_well_alone()
        """
    )


def test_an_extension_that_needs_refbuf_is_refused_in_a_subinterpreter(run_with_subinterpreter):
    run_with_subinterpreter(
        f"""
        run({REFUSED.format(module="countext")!r})
        main_is_well()
        main_is_well_alone()
        """
    )


# In the sub-interpreter: objects that threads share, counted by an extension
# which found refbuf in the main interpreter.
COUNTS_INSIDE = """
import gc, sys, threading
import countext_tolerant as countext
assert countext.refused

class Thing:
    def __del__(self):
        log.append(1)

log = []
objects = [Thing() for _ in range(100)]
there = tuple(map(id, objects))
before = [sys.getrefcount(thing) for thing in objects]

def count(number):
    for turn in range(10):
        countext.churn(there, 1_000, 10 * number + turn)
        countext.flush()
    countext.flush_all()

threads = [threading.Thread(target=count, args=(number,)) for number in range(3)]
try:
    for thread in threads:
        thread.start()
except RuntimeError as error:
    # 3.11 has no threads in an isolated one.
    assert "not supported" in str(error) and sys.version_info < (3, 12), error
    threads = []
count(3)
for thread in threads:
    thread.join()
assert [sys.getrefcount(thing) for thing in objects] == before
assert [countext.count(id(thing)) + 1 for thing in objects] == before
objects.clear()
gc.collect()
assert len(log) == 100, len(log)
"""


def test_objects_of_a_subinterpreter_are_counted_as_the_interpreter_does(
    tmp_path, environment, run_with_subinterpreter
):
    compile_extension("countext_tolerant", tmp_path, "-DCOUNTEXT_TOLERANT")
    path = f"{tmp_path}:{environment['PYTHONPATH']}"
    run_with_subinterpreter(
        f"""
        import countext_tolerant
        assert not countext_tolerant.refused
        sums = refbuf.stats()
        for _ in range(3):
            run({COUNTS_INSIDE!r})
        after = refbuf.stats()
        assert (after.acquires, after.take_ins) == (sums.acquires, sums.take_ins)
        main_is_well()
        main_is_well_alone()
        """,
        env={"PYTHONPATH": path},
    )


def test_a_subinterpreter_may_end_while_other_threads_count(run_with_subinterpreter):
    run_with_subinterpreter(
        """
        import threading, time
        def count(number):
            while not stop:
                countext.churn(addresses(objects), 500, number)
                time.sleep(0.001)  # busy threads hold up any new interpreter

        stop = False
        threads = [threading.Thread(target=count, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(5):
            run("import gc; things = [[] for _ in range(1000)]; gc.collect()")
            interpreters.destroy(inside)
            inside = create()
        stop = True
        for thread in threads:
            thread.join()
        main_is_well_alone()
        """
    )
