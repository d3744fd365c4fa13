"""How long after its last reference an object is finalized, where detached threads have counted it.

As the benchmark's, which is of attached threads: two threads without a thread state in the
calls have just taken and dropped references through the object's account, so that their
buffers hold credits on the account, and sleep. The delay runs from just before the last
reference is dropped to the weak reference's callback.

    .venv-gil/bin/python tools/detached_reclaim.py
"""

import argparse
import ctypes
import queue
import threading
import time
import weakref
from statistics import median, quantiles

from refbuf import _refbuf

# Of a thread, on each object.
PAIRS = 50
LOST_SECONDS = 30.0

# With the GIL or a thread state, and without: ctypes gives it up around calls into the latter.
ATTACHED, DETACHED = ctypes.PyDLL(_refbuf.__file__), ctypes.CDLL(_refbuf.__file__)
ATTACHED.RefBuf_Enroll.argtypes = [ctypes.py_object]
ATTACHED.RefBuf_Enroll.restype = ctypes.c_void_p
for function in (DETACHED.RefBuf_AccountIncRef, DETACHED.RefBuf_AccountDecRef):
    function.argtypes = [ctypes.c_void_p]
    function.restype = None


class Thing:
    """Something to count."""


def count(given: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
    """A thread's life: counts on an account, then sleeps until the next."""
    while account := given.get():
        for _ in range(PAIRS):
            DETACHED.RefBuf_AccountIncRef(account)
            DETACHED.RefBuf_AccountDecRef(account)
        done.put(None)


def delay_ms(threads: list[queue.SimpleQueue], done: queue.SimpleQueue, wait: float) -> float:
    """For one object, whose last reference is dropped so many seconds after it was counted."""
    finalized: queue.SimpleQueue = queue.SimpleQueue()
    thing = Thing()
    reference = weakref.ref(thing, lambda _: finalized.put(time.perf_counter()))
    account = ATTACHED.RefBuf_Enroll(thing)
    for given in threads:
        given.put(account)
        done.get()
    time.sleep(wait)
    del thing
    dropped = time.perf_counter()
    DETACHED.RefBuf_AccountDecRef(account)
    gone = finalized.get(timeout=LOST_SECONDS)
    del reference
    return (gone - dropped) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=200, metavar="N", help="objects (default: 200)")
    options = parser.parse_args()
    done: queue.SimpleQueue = queue.SimpleQueue()
    threads: list[queue.SimpleQueue] = [queue.SimpleQueue(), queue.SimpleQueue()]
    for given in threads:
        threading.Thread(target=count, args=(given, done), daemon=True).start()
    beat = _refbuf.build_info()["heartbeat_ms"]
    delays = [
        delay_ms(threads, done, number / options.samples * beat / 1000) for number in range(options.samples)
    ]
    p99 = quantiles(delays, n=100, method="inclusive")[98]
    print(
        f"median {median(delays):.1f} ms, 99th percentile {p99:.1f} ms ({p99 / beat:.2f} heartbeats of "
        f"{beat:g} ms), longest {max(delays):.1f} ms"
    )
    for given in threads:
        given.put(None)


if __name__ == "__main__":
    main()
