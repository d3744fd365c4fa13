"""R6: immortal objects are not counted, so buffers leave them alone."""

import sys

import pytest
import refbuf

import countext
from support import BUFFERED, Worker

# Before 3.12 nothing is immortal.
pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="this interpreter has no immortal objects")

IMMORTAL = {
    "None": None,
    "True": True,
    "Ellipsis": ...,
    "small int": 7,
    "empty tuple": (),
    "empty string": "",
    "one letter": "a",
    "interned string": sys.intern("immortal_by_interning") if BUFFERED else "a",
    "type": int,
}


def use(address):
    """Every operation, and more decrements than there are references."""
    countext.incref(address, 100)
    countext.decref(address, 200_000)
    countext.incref_call(address, 100)
    countext.decref_call(address, 200_000)
    countext.xincref(address, 100)
    countext.xdecref(address, 200_000)
    countext.touch(address, 1_000)
    for _ in range(10):
        countext.new_ref(address)
        countext.xnew_ref(address)


@pytest.mark.parametrize("name", IMMORTAL)
def test_immortal_objects_are_untouched(name):
    thing = IMMORTAL[name]
    count = sys.getrefcount(thing)
    with Worker() as worker:
        refbuf.flush_all()
        before = refbuf.stats()
        use(id(thing))
        worker.do(use, id(thing))
        after = refbuf.stats()
        assert sys.getrefcount(thing) == refbuf.refcount(thing) == count
        worker.do(refbuf.flush)
    refbuf.flush_all()
    assert sys.getrefcount(thing) == count
    assert (after.hits, after.misses, after.atomics) == (before.hits, before.misses, before.atomics)
    assert after.threads <= before.threads


@pytest.mark.needs_buffering
def test_an_object_that_becomes_immortal_with_credits_is_settled_without_harm():
    """On 3.13 a string becomes immortal when it is interned."""
    text = "".join(["becomes ", "immortal ", str(id(object()))])
    with Worker() as worker:
        worker.do(countext.touch, id(text), 5)
        worker.do(countext.incref, id(text), 5)
        text = sys.intern(text)
        count = sys.getrefcount(text)
        worker.do(countext.decref, id(text), 5)
        refbuf.flush_all()
        worker.do(countext.touch, id(text), 5)
        assert sys.getrefcount(text) == count
    assert refbuf.stats().credits == 0
