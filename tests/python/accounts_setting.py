"""What programs of the tests of accounts' life begin with."""

SETTING = """
import atexit, gc, os, sys, threading, time
import refbuf, accountext, countext
from support import (Plain, Tracked, Worker, addresses, assert_child_succeeds, counts, in_child,
                     in_threads, settled_counts, wait_until)

log = []
objects = [Tracked(log, number) for number in range(10)]
before = counts(objects)
accounts = tuple(accountext.enroll(thing) for thing in objects)

def works_and_is_exact():
    '''Threads may count, and each account has one reference.'''
    in_threads(3, lambda number: accountext.churn(accounts, 2_000, number))
    accountext.churn(accounts, 2_000, 5, 2)
    assert counts(objects, refbuf.refcount) == [count + 1 for count in before]

def everything_is_given_up():
    for account in accounts:
        accountext.decref(account)
    assert wait_until(lambda: counts(objects) == before), (counts(objects), before, refbuf.stats())
    objects.clear()
    assert wait_until(lambda: sorted(log) == list(range(10))), (log, refbuf.stats())
    assert refbuf.stats().credits == refbuf.stats().accounts == 0

def on_exit_daemons_stay_detached(number):
    '''So many, where CPython would crash if they came back; see accountext.c.'''
    if sys.version_info[:2] == (3, 13):
        # All of them: on a busy machine one may take its time to come there.
        atexit.register(lambda: wait_until(lambda: accountext.stay_detached() == number))

class Saying(Plain):
    '''An object that prints when it is finalized.'''
    __slots__ = ("what",)
    def __init__(self, what):
        self.what = what
    def __del__(self, write=os.write):  # os may be gone by then
        write(1, f"{self.what}\\n".encode())
"""
