"""No credits come in on an object that is being deallocated and whose type would not see them."""

import dyingext
import pytest
import refbuf

import countext
from support import Worker, give_credits, handed_over, wait_until

pytestmark = pytest.mark.needs_buffering


def touch(address):
    countext.touch(address, 20)


@pytest.mark.parametrize("worker_has_a_buffer", [False, True])
def test_a_finalizer_of_an_object_that_is_not_collected_runs_once_and_at_once(worker_has_a_buffer):
    finalized = []

    def finalize(address):
        touch(address)
        finalized.append(address)

    anchor = object()
    with Worker() as worker:
        if worker_has_a_buffer:
            give_credits(worker, id(anchor))
        for number in range(100):
            address = handed_over(worker, lambda: dyingext.finalized(finalize))
            worker.do(countext.decref, address)
            assert len(finalized) == number + 1
        refbuf.flush_all()
        assert len(finalized) == 100


@pytest.mark.parametrize("make", [dyingext.freed, dyingext.collected])
def test_memory_that_an_extension_frees_at_once_has_no_credits(make):
    with Worker() as worker:
        for _ in range(100):
            address = handed_over(worker, lambda: make(touch))
            worker.do(countext.decref, address)
            # Under live mode it may have credits before it is merged, and die by the heartbeat.
            assert wait_until(lambda: dyingext.left() >= 0)
            assert dyingext.left() == 0
            dyingext.forget()


@pytest.mark.parametrize("make", [dyingext.finalized, dyingext.old])
def test_an_object_whose_finalizer_might_run_again_is_counted_as_the_interpreter_does(make):
    thing = make(touch)
    before = countext.stock_count(id(thing))
    with Worker() as worker:
        worker.do(countext.touch, id(thing), 20)
        assert countext.stock_count(id(thing)) == before


@pytest.mark.parametrize("make", [
    lambda: "".join(["a string", " that nobody else has"]),
    lambda: float("1.5"),
    lambda: tuple("not tracked"),
    list,
    lambda: dyingext.collected(touch),
], ids=["str", "float", "tuple", "list", "extension"])  # fmt: skip
def test_other_objects_that_nobody_owns_are_buffered(make):
    with Worker() as worker:
        address = handed_over(worker, make)
        worker.do(countext.stock_incref, address)  # two: the last is never kept
        give_credits(worker, address)
        assert countext.stock_count(address) > countext.count(address)
        worker.do(refbuf.flush)
        assert wait_until(lambda: countext.stock_count(address) == countext.count(address))
        worker.do(countext.stock_decref, address, 2)
