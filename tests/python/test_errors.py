"""Misuse gives one clear sentence as a typed exception, and changes nothing."""

import os
import sys
import time

import pytest
import refbuf
from refbuf import workloads

import countext
from support import Plain, Worker, addresses, counts, settled_counts

NONSENSE = [
    {"slots": 0},
    {"slots": 3},
    {"slots": 1000},
    {"slots": 2048},
    {"slots": 2**40},
    {"slots": -16},
    {"slots": 2**80},
    {"heartbeat_ms": 0},
    {"heartbeat_ms": -1},
    {"heartbeat_ms": 1e9},
    {"heartbeat_ms": float("nan")},
    {"heartbeat_ms": float("inf")},
    {"first_batch": 0},
    {"first_batch": 3},
    {"first_batch": 2**20},
    {"first_batch": -1},
    {"largest_batch": 0},
    {"largest_batch": 100},
    {"largest_batch": 2**33},
    {"first_batch": 64, "largest_batch": 8},
    {"slots": 16, "heartbeat_ms": 0},
    {"reserve": 0},
    {"reserve": 2**24 + 1},
    {"reserve": -4},
    {"account_slots": 0},
    {"account_slots": 256},
    {"account_slots": 48},
    {"reserve": 4, "account_slots": 3},
]


def works_and_is_exact():
    objects = [Plain() for _ in range(20)]
    before = counts(objects)
    with Worker() as worker:
        worker.do(countext.churn, addresses(objects), 1_000, 1)
    workloads.run("random", "refbuf", objects, threads=2, pairs=1_000)
    assert settled_counts(objects) == before


@pytest.mark.parametrize("choices", NONSENSE, ids=str)
def test_nonsense_for_configure_is_a_value_error_that_changes_nothing(choices):
    slots = refbuf.stats().slots
    with pytest.raises(ValueError, match="|".join(choices)) as caught:
        refbuf.configure(**choices)
    assert "\n" not in str(caught.value)
    assert refbuf.stats().slots == slots
    assert refbuf._refbuf.build_info()["heartbeat_ms"] == 10
    works_and_is_exact()


@pytest.mark.parametrize(
    "choices", [{"slots": "16"}, {"heartbeat_ms": "fast"}, {"first_batch": 1.5}, {"beat": 1}]
)
def test_a_wrong_type_or_name_for_configure_is_a_type_error(choices):
    with pytest.raises(TypeError):
        refbuf.configure(**choices)


@pytest.mark.needs_buffering
def test_configure_after_first_use_is_a_runtime_error_but_the_heartbeat_may_change(run_python):
    run_python(
        """
        import refbuf, countext
        from support import Plain, Worker, give_credits

        refbuf.configure(slots=16, first_batch=4, largest_batch=64)
        refbuf.configure(slots=32)
        assert refbuf.stats().slots == 32
        thing = Plain()
        with Worker() as worker:
            give_credits(worker, id(thing))
        fixed = {"slots": 64}, {"first_batch": 2}, {"largest_batch": 8}, {"slots": 64, "heartbeat_ms": 5}
        for choices in fixed:
            try:
                refbuf.configure(**choices)
            except RuntimeError as error:
                assert "configure" in str(error), error
            else:
                raise AssertionError(f"{choices} was accepted")
        assert refbuf.stats().slots == 32
        assert refbuf._refbuf.build_info()["heartbeat_ms"] == 10
        refbuf.configure(heartbeat_ms=5)
        assert refbuf._refbuf.build_info()["heartbeat_ms"] == 5
        """
    )


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("nonsense",), {}, ValueError, "unknown workload.*nonsense.*shared"),
        (("shared", "nonsense"), {}, ValueError, "unknown variant.*nonsense.*stock"),
        (("shared",), {"threads": 0}, ValueError, "threads"),
        (("shared",), {"threads": -1}, ValueError, "threads"),
        (("shared",), {"threads": 10**6}, ValueError, "threads"),
        (("shared",), {"threads": 2**70}, ValueError, "threads"),
        (("shared",), {"pairs": -1}, ValueError, "pairs"),
        (("shared",), {"pairs": None}, ValueError, "pairs.*seconds"),
        (("shared",), {"seconds": 1.0}, ValueError, "pairs.*seconds"),
        (("shared",), {"pairs": None, "seconds": 0.0}, ValueError, "seconds"),
        (("shared",), {"pairs": None, "seconds": float("nan")}, ValueError, "seconds"),
        (("shared",), {"seed": -1}, ValueError, "seed"),
        (("shared",), {"keep": True}, ValueError, "keep"),
        (("shared", "refbuf", []), {}, ValueError, "objects"),
        (("shared", "refbuf", 7), {}, TypeError, "iterable"),
        (("private",), {"factory": 7}, TypeError, "factory"),
        (("shared",), {"pairs": 1.5}, TypeError, "float"),
        (("shared",), {"work_ns": -1}, ValueError, "work_ns"),
        (("shared",), {"work_ns": float("nan")}, ValueError, "work_ns"),
        (("shared",), {"work_ns": 1e9}, ValueError, "work_ns"),
        (("shared",), {"work_ns": "much"}, TypeError, "work_ns"),
        (("shared",), {"work_ns": "5"}, TypeError, "work_ns"),
        (("shared",), {"work_ns": 10**400}, ValueError, "work_ns"),
        (("private", "detached"), {"factory": 7}, TypeError, "factory"),
    ],
)
def test_misuse_of_workloads_is_refused_before_anything_starts(arguments, options, error, message):
    with pytest.raises(error, match=message) as caught:
        workloads.run(*arguments, **{"threads": 1, "pairs": 10, **options})
    assert "\n" not in str(caught.value)
    works_and_is_exact()


@pytest.mark.parametrize("variant", ["nonsense", "detached", "arc"])
def test_touch_is_for_variants_of_attached_threads(variant):
    with pytest.raises(ValueError, match=variant):
        workloads.touch(object(), 1, variant)


def test_objects_for_an_unknown_workload_are_refused():
    with pytest.raises(ValueError, match="unknown workload"):
        workloads.make_objects("nonsense")


@pytest.mark.parametrize("variant", ["refbuf", "detached", "arc"])
def test_what_a_factory_raises_reaches_the_caller(variant):
    made = []

    def fail_sometimes():
        made.append(None)
        if len(made) > 30:
            raise LookupError("no more objects")
        return Plain()

    with pytest.raises(LookupError, match="no more objects"):
        workloads.run("private", variant, threads=4, pairs=1_000, factory=fail_sometimes)
    works_and_is_exact()


def test_a_run_for_a_time_ends_at_once_where_a_factory_raises():
    def fail():
        raise LookupError("no objects")

    started = time.monotonic()
    with pytest.raises(LookupError, match="no objects"):
        workloads.run("private", "refbuf", threads=2, seconds=10.0, factory=fail)
    assert time.monotonic() - started < 5
    works_and_is_exact()


# Threads are refused from here on: as a user that has all it may have.
FEW_THREADS = """
import os, resource
import refbuf, countext
from refbuf import workloads
from support import BUFFERED, Plain, Worker, addresses, counts, settled_counts

workers = [Worker() for _ in range(2)]
if os.getuid() == 0:
    os.setuid(65534)

def allow_threads(more):
    '''So many more than there are; all that are allowed if None.'''
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    now = len(os.listdir("/proc/self/task")) if os.getuid() == 65534 else 0
    resource.setrlimit(resource.RLIMIT_NPROC, (hard if more is None else now + more, hard))

objects = [Plain() for _ in range(50)]
before = counts(objects)

def works_and_is_exact():
    for number, worker in enumerate(workers):
        worker.do(countext.churn, addresses(objects), 1_000, number)
    assert counts(objects, refbuf.refcount) == before
    assert settled_counts(objects) == before
"""


def test_more_threads_than_the_system_allows_is_a_runtime_error(run_python):
    run_python(
        """
        for variant in workloads.VARIANTS:
            for workload in "random", "handoff":
                allow_threads(3)
                try:
                    workloads.run(workload, variant, objects, threads=64, pairs=1_000)
                except RuntimeError as error:
                    assert "threads" in str(error) and "64" in str(error), error
                else:
                    raise AssertionError("all threads were there")
                works_and_is_exact()
                allow_threads(None)
                workloads.run(workload, variant, objects, threads=8, pairs=1_000)
                works_and_is_exact()
        """,
        first=FEW_THREADS,
    )


@pytest.mark.needs_buffering
def test_where_the_system_gives_no_settler_counts_are_the_interpreters_own(run_python):
    """And a flush lets refbuf try again."""
    run_python(
        """
        allow_threads(0)
        works_and_is_exact()
        for address in addresses(objects):
            workers[0].do(countext.incref, address, 3)
        assert refbuf.stats().acquires == refbuf.stats().credits == 0
        assert counts(objects) == [count + 3 for count in before]
        for address in addresses(objects):
            workers[1].do(countext.decref, address, 3)
        allow_threads(None)
        refbuf.flush()
        workers[:] = Worker(), Worker()  # the others have learnt that it does not pay
        works_and_is_exact()
        works_and_is_exact()
        assert refbuf.stats().acquires > 0
        """,
        first=FEW_THREADS,
    )


def test_an_import_without_a_spare_thread_says_so(run_python):
    """The check of the layout at import looks from a thread."""
    run_python(
        """
        import collections.abc, operator, os, pathlib, resource, sys, sysconfig, typing
        free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
        if os.getuid() == 0:
            os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
        try:
            import refbuf
        except ImportError as error:
            assert "thread" in str(error), error
        else:
            assert not free_threaded  # nothing to check there
        """
    )


def test_the_address_space_may_be_too_small_for_the_threads(run_python):
    run_python(
        """
        import resource
        import refbuf
        from refbuf import workloads
        from support import Plain, counts, settled_counts

        objects = [Plain() for _ in range(50)]
        before = counts(objects)
        workloads.run("random", "refbuf", objects, threads=2, pairs=1_000)
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * 4096
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + 900 * 2**20, hard))
        try:
            workloads.run("shared", "refbuf", objects, threads=4_000, pairs=10)
        except (RuntimeError, MemoryError) as error:
            assert "thread" in str(error) or isinstance(error, MemoryError), error
        else:
            raise AssertionError("all threads were there")
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        workloads.run("random", "refbuf", objects, threads=4, pairs=1_000)
        assert settled_counts(objects) == before
        """
    )


def test_the_limits_above_are_of_this_system():
    assert sys.platform == "linux" and os.path.isdir("/proc/self/task")
