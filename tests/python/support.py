"""What tests share with the scripts that they run in processes of their own."""

import gc
import multiprocessing
import os
import queue
import sys
import sysconfig
import threading
import time

import refbuf

import countext  # built by building.py

# Whether attached threads have buffers on this build.
BUFFERED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

# For what must happen soon and is not timed: what takes longer is lost.
SOON = 15.0


def wait_until(condition, seconds=SOON):
    """Waits for the condition, and says whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


class Tracked:
    """An object that adds its name to a log whenever it is finalized."""

    __slots__ = ("__weakref__", "log", "name")

    def __init__(self, log, name="tracked"):
        self.log = log
        self.name = name

    def __del__(self):
        self.log.append(self.name)


class Plain:
    """An object that is nobody else's and is not immortal."""

    __slots__ = ("__weakref__",)


class Worker:
    """A thread that does what it is told, one thing after the other."""

    def __init__(self):
        self._jobs = queue.SimpleQueue()
        self._results = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def _run(self):
        while (job := self._jobs.get()) is not None:
            self._results.put(_attempt(*job))
            del job  # no reference of ours while we wait

    def begin(self, function, *arguments):
        """Has the thread call this, and does not wait for it."""
        self._jobs.put((function, arguments))

    def result(self):
        """Waits for what was begun."""
        value, error = self._results.get(timeout=60)
        if error is not None:
            raise error
        return value

    def do(self, function, *arguments):
        """Has the thread call this, and waits for it."""
        self.begin(function, *arguments)
        return self.result()

    def end(self):
        """Ends the thread."""
        self._jobs.put(None)
        self.thread.join(60)


def _attempt(function, arguments):
    try:
        return function(*arguments), None
    except BaseException as error:
        return None, error


def give_credits(worker, address):
    """Has the worker's buffer hold credits on the object. An increment that
    finds the registry busy does without, so once may not be enough."""
    for _ in range(30 if BUFFERED else 1):
        worker.do(countext.touch, address, 3)
        if countext.stock_count(address) > countext.count(address):
            break
        time.sleep(0.001)


def left_to_credits(worker, make):
    """Makes an object that only the worker's credits keep alive; its address."""
    thing = make()
    address = id(thing)
    give_credits(worker, address)
    return address


def assert_outlives_its_references(make_and_leave, log):
    """The object must be seen alive before it is finalized. On a machine that
    is too busy for that in one try there are others."""
    for _ in range(10):
        log.clear()
        refbuf.configure(heartbeat_ms=300)
        make_and_leave()
        alive = not log
        refbuf.configure(heartbeat_ms=10)
        if alive:
            return
    raise AssertionError("the object always died with its last reference")


_anchors = []


def hold_the_heartbeat():
    """Lets the settler, whose period must be long, beat and fall asleep with
    credits in sight: until a period is over it settles nothing."""
    worker, thing = Worker(), Plain()
    _anchors.append((worker, thing))
    give_credits(worker, id(thing))
    before = -1
    while refbuf.stats().beats != before:
        before = refbuf.stats().beats
        time.sleep(0.05)


def handed_over(worker, make):
    """Makes an object whose one reference is the worker's, without credits and
    without a thread that owns it; its address."""
    thing = make()
    address = id(thing)
    worker.do(countext.stock_incref, address)
    return address


def in_threads(count, function):
    """Calls function(0) to function(count - 1) at once, each in a thread."""
    errors = []

    def call(number):
        try:
            barrier.wait(60)
            function(number)
        except BaseException as error:
            errors.append(error)

    barrier = threading.Barrier(count)
    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def addresses(objects):
    """Their addresses, as countext.churn takes them."""
    return tuple(map(id, objects))


#: Under live mode this thread counts through a buffer as well.
INSTALLED = refbuf.installed()


def counts(objects, count=refbuf.refcount if INSTALLED else sys.getrefcount):
    """How many references there are to each."""
    return [count(thing) for thing in objects]


def at_once(condition):
    """Whether the condition is true; under live mode, whether it comes true: credits of a
    thread may hold the last reference to what it has shared, a list of these objects say."""
    return condition() or (INSTALLED and wait_until(condition))


def settled_counts(objects):
    """The interpreter's counts when no buffer holds anything, as `counts` has them."""
    there = addresses(objects)
    refbuf.flush_all()
    # Not touched once more: that might bring credits. `counts` does, by a variable and an argument.
    return [countext.stock_count(address) + 2 for address in there]


def same_pair(first, slots=1024, make=Plain):
    """A new object that has the same two places as another."""
    pair = countext.pair(first, slots)
    others = []  # their addresses are not wanted again
    while True:
        other = make()
        if countext.pair(id(other), slots) == pair:
            return other
        others.append(other)


def rivals(first, slots=1024):
    """New objects for the places of another, one too many."""
    return [same_pair(first, slots) for _ in range(min(slots, 2))]


def in_child(check):
    """Forks; runs check() in the child; raises here if it fails there."""
    child = os.fork()
    if child == 0:
        try:
            check()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return child


def assert_child_succeeds(child, seconds=30):
    """Waits for a child; it must end well, and in time."""
    ended = []

    def has_ended():
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(pid)

    if not wait_until(has_ended, seconds):
        os.kill(child, 6)  # faulthandler shows where it hangs
        os.waitpid(child, 0)
        raise AssertionError("the child hangs")
    assert ended == [0], f"the child ended with {ended[0]}"


def in_processes(method, work):
    """Runs `work(number)`, which returns the number, in a process of its own and in a pool of them."""
    context = multiprocessing.get_context(method)
    process = context.Process(target=work, args=(1,))
    process.start()
    process.join()
    assert process.exitcode == 0
    with context.Pool(2) as pool:
        assert pool.map(work, range(6)) == list(range(6))
        pool.close()
        pool.join()


def collect():
    """Collects until there is nothing to collect."""
    while gc.collect():
        pass
