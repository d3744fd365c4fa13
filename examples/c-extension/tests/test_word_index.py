"""What is found is what a model in Python finds; counts are exact, and everything is
finalized once, whoever took the references and dropped them.
"""

import functools
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import refbuf
from word_index import WordIndex

SOON = 15.0


class Thing:
    """Finalized into a log."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def __del__(self):
        self.log.append(self.name)


class Model:
    """What a WordIndex does, in Python."""

    def __init__(self, keep):
        self.keep, self.words = keep, {}

    def add(self, number, text, thing):
        for word in set(text.split()):
            self.words.setdefault(word, {})[number] = thing

    def search(self, queries, best):
        return [self.search_one(query, best) for query in queries]

    def search_one(self, query, best):
        things, words = {}, {}
        for word in set(query.split()):
            kept = self.words.get(word, {})
            for number in sorted(kept, reverse=True)[: self.keep]:
                things[number] = kept[number]
                words[number] = words.get(number, 0) + 1
        ranked = sorted(things, key=lambda number: (words[number], number), reverse=True)
        return [things[number] for number in ranked[:best]]


# Some are in nearly every text.
WORDS = [b"word%d" % number for number in range(60)]


def some_text(choice, most=12):
    words = [WORDS[int(len(WORDS) * choice.random() ** 3)] for _ in range(choice.randrange(most))]
    return choice.choice([b" ", b"\n", b"\t  "]).join(words)


def the_same(found, expected):
    """The objects themselves."""
    return [[id(thing) for thing in things] for things in found] == [
        [id(thing) for thing in things] for things in expected
    ]


def wait_until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def in_threads(count, function):
    """The function of 0, 1, ..., each in a thread, all at once; what each returned."""
    barrier, results, errors = threading.Barrier(count), [None] * count, []

    def run(number):
        try:
            barrier.wait()
            results[number] = function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def assert_nothing_is_left():
    gc.collect()
    refbuf.flush_all()
    stats = refbuf.stats()
    assert (stats.credits, stats.accounts) == (0, 0)


@pytest.fixture(params=[1 << 16, 4], ids=["usual reserve", "reserve of 4"], autouse=True)
def reserve(request):
    refbuf.configure(reserve=request.param)
    yield request.param
    refbuf.configure(reserve=1 << 16)


# -- results -------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "keep"), [(1, 3), (4, 1), (4, 20), (8, 1000)])
def test_what_is_found_is_what_the_model_finds(threads, keep):
    choice = random.Random(threads * keep)
    model = Model(keep)
    with WordIndex(threads=threads, keep=keep) as index:
        for _ in range(3):
            for _ in range(200):
                text, thing = some_text(choice), [len(model.words)]
                model.add(index.add(text, thing), text, thing)
            index.join()
            queries = [some_text(choice, 5) for _ in range(40)]
            for best in 1, 7, 10_000:
                assert the_same(index.search(queries, best=best), model.search(queries, best))


def test_an_addition_is_numbered_and_ten_are_found_unless_told_otherwise():
    with WordIndex() as index:
        assert [index.add(b"a", number) for number in range(200)] == list(range(200))
        index.join()
        assert index.search([b"a"]) == [list(range(199, 189, -1))]
        assert index.search([b"a"], best=1000) == [list(range(199, 99, -1))]


def test_words_are_bytes_between_white_space():
    with WordIndex(threads=1) as index:
        for text in b"", b" \t\n\r\v\f ", b"a\0b", b"A", b"\xff\xfe", bytearray(b"a a a"), memoryview(b"x a"):
            index.add(text, bytes(text))
        index.join()
        queries = [b"", b" ", b"a", b"A", b"a\0b", b"a\0c", b"\xff\xfe", bytearray(b"x"), b"x a a", b"none"]
        assert index.search(queries) == [
            [],
            [],
            [b"x a", b"a a a"],
            [b"A"],
            [b"a\0b"],
            [],
            [b"\xff\xfe"],
            [b"x a"],
            [b"x a", b"a a a"],
            [],
        ]
        assert index.search([]) == []
        assert index.search(iter([b"A"])) == [[b"A"]]


def test_far_more_words_than_an_index_begins_with():
    texts = [
        b" ".join(b"%d" % number for number in range(start, start + 100)) for start in range(0, 20_000, 50)
    ]
    model = Model(2)
    with WordIndex(keep=2) as index:
        for text in texts:
            model.add(index.add(text, text), text, text)
        index.join()
        queries = [b"%d" % number for number in range(0, 20_100, 7)]
        assert the_same(index.search(queries), model.search(queries, 10))


def test_many_threads_use_one_index_at_once():
    things = [[number] for number in range(50)]
    before = [sys.getrefcount(thing) for thing in things]
    index = WordIndex(threads=4, keep=10)

    def use(seed):
        choice = random.Random(seed)
        added = []
        for _ in range(100):
            text, thing = some_text(choice), choice.choice(things)
            added.append((index.add(text, thing), text, thing))
            if choice.random() < 0.2:
                for found in index.search([some_text(choice, 4) for _ in range(5)], best=3):
                    assert len(found) <= 3 and all(things[thing[0]] is thing for thing in found)
            if choice.random() < 0.02:
                index.join()
        return added

    added = [addition for additions in in_threads(8, use) for addition in additions]
    assert sorted(number for number, _, _ in added) == list(range(800))
    index.join()
    model = Model(10)
    for addition in added:
        model.add(*addition)
    assert the_same(index.search(WORDS, best=20), model.search(WORDS, 20))
    index.close()
    del added, addition, model
    assert_nothing_is_left()
    assert [sys.getrefcount(thing) for thing in things] == before


# -- references ------------------------------------------------------------------


def test_counts_are_exact_when_all_is_over():
    log = []
    things = [Thing(log, number) for number in range(100)]
    before = [sys.getrefcount(thing) for thing in things]
    choice = random.Random(0)
    index = WordIndex(threads=4, keep=50)
    for _ in range(5):
        for thing in things:
            index.add(some_text(choice), thing)
        found = index.search(WORDS, best=30)
    index.join()
    assert any(index.search(WORDS))
    del found, index, thing
    assert_nothing_is_left()
    assert [sys.getrefcount(thing) for thing in things] == before
    assert log == []
    del things
    gc.collect()
    assert sorted(log) == list(range(100))


@pytest.mark.parametrize("end", ["close", "forget"])
def test_the_last_reference_goes_with_a_thread_that_never_was_attached(end):
    """Nobody flushes: the settler's work."""
    log = []
    index = WordIndex(threads=4, keep=5)
    for number in range(300):
        index.add(b"popular every%d word%d" % (number % 3, number % 10), Thing(log, number))
    index.join()
    # Each of the ten words keeps five.
    assert wait_until(lambda: sorted(log) == list(range(250))), log
    found = index.search([b"popular"])
    if end == "close":
        index.close()
    del index
    assert wait_until(lambda: sorted(log) == list(range(295))), log
    assert [thing.name for thing in found[0]] == list(range(299, 294, -1))
    del found
    assert wait_until(lambda: sorted(log) == list(range(300))), log


def test_what_waits_in_the_queue_at_the_end_is_dropped():
    log = []
    text = b" ".join(b"%d" % number for number in range(5_000))
    index = WordIndex(threads=1)
    for number in range(100):
        index.add(text, Thing(log, number))
    index.close()
    assert wait_until(lambda: sorted(log) == list(range(100)))
    assert_nothing_is_left()


def test_an_object_in_many_indexes_at_once():
    log = []
    thing = Thing(log, "shared")
    before = sys.getrefcount(thing)

    def use(seed):
        choice = random.Random(seed)
        with WordIndex(threads=2, keep=4) as index:
            for _ in range(50):
                index.add(some_text(choice), thing)
            index.search(WORDS)

    in_threads(8, use)
    assert_nothing_is_left()
    assert sys.getrefcount(thing) == before
    assert log == []


def test_objects_of_all_kinds_may_be_added():
    kinds = [None, True, 1, "text", (), int, len, Ellipsis]
    before = sys.getrefcount(None)
    with WordIndex() as index:
        for _ in range(50):
            for number, kind in enumerate(kinds):
                index.add(b"all %d" % number, kind)
        index.join()
        assert index.search([b"%d" % number for number in range(len(kinds))], best=1) == [
            [kind] for kind in kinds
        ]
    assert_nothing_is_left()
    if sys.version_info >= (3, 12):
        assert sys.getrefcount(None) == before


def test_an_index_may_be_in_an_index():
    log = []
    outer, inner = WordIndex(threads=2, keep=1), WordIndex(threads=2)
    inner.add(b"deep", Thing(log, "inner"))
    inner.join()
    outer.add(b"a", inner)
    outer.join()
    del inner
    outer.add(b"a", None)
    # A thread of the outer one has dropped it, and the settler frees it.
    assert wait_until(lambda: log == ["inner"])
    outer.add(b"itself", outer)
    outer.join()
    outer.close()
    del outer
    assert_nothing_is_left()


def test_the_collector_may_run_meanwhile():
    log, stop = [], threading.Event()

    def collect():
        while not stop.is_set():
            gc.collect()
            # On free-threaded builds nobody else gets to run without.
            time.sleep(0.002)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for name in range(30):
            index = WordIndex(threads=2, keep=3)
            # In cycles, that only the collector ends.
            for _ in range(5):
                cycle = [Thing(log, name)]
                cycle.append(cycle)
                index.add(b"a b c d", cycle)
            index.search([b"a b", b"c"])
            del cycle
            index.close()
    finally:
        stop.set()
        collector.join()
    del index
    assert_nothing_is_left()
    assert wait_until(lambda: sorted(log) == sorted(list(range(30)) * 5))


# -- errors ------------------------------------------------------------------------


def attempts():
    with WordIndex(threads=1) as index:
        make, add, search = WordIndex, index.add, index.search
        yield from (
            (ValueError, "threads is a whole number from 1 to 256, not 0", make, 0),
            (ValueError, "threads is a whole number from 1 to 256, not 257", make, 257),
            (ValueError, "threads is a whole number from 1 to 256, not -1", make, -1),
            (ValueError, "keep is a whole number from 1 to 65536, not 0", make, 1, 0),
            (ValueError, f"keep is a whole number from 1 to 65536, not {2**80}", make, 1, 2**80),
            (TypeError, "'str' object cannot be interpreted as an integer", make, "4"),
            (TypeError, "'float' object cannot be interpreted as an integer", make, 4.0),
            (TypeError, "WordIndex() takes at most 2 arguments (3 given)", make, 1, 2, 3),
            (TypeError, "a bytes-like object is required, not 'str'", add, "text", None),
            (TypeError, "a bytes-like object is required, not 'NoneType'", add, None, None),
            (TypeError, "add() takes exactly 2 arguments (1 given)", add, b"text"),
            (
                BufferError,
                "memoryview: underlying buffer is not C-contiguous",
                add,
                memoryview(b"text")[::2],
                1,
            ),
            (
                TypeError,
                "search() takes several queries, such as [b'one', b'or two'], not bytes",
                search,
                b"text",
            ),
            (
                TypeError,
                "search() takes several queries, such as [b'one', b'or two'], not str",
                search,
                "text",
            ),
            (TypeError, "'int' object is not iterable", search, 5),
            (TypeError, "a bytes-like object is required, not 'str'", search, [b"text", "text"]),
            (ValueError, "best is a whole number from 1 to", search, [b"text"], 0),
            (ZeroDivisionError, "division", search, (1 // number for number in [0])),
        )


def test_bad_arguments_raise_an_error_that_says_what_is_wrong():
    count = 0
    for kind, message, function, *arguments in attempts():
        with pytest.raises(kind) as error:
            function(*arguments)
        assert message in str(error.value)
        count += 1
    assert count == 18
    with pytest.raises(TypeError):
        type("Derived", (WordIndex,), {})
    assert_nothing_is_left()


def test_a_closed_index_says_so():
    log = []
    index = WordIndex()
    index.add(b"a", Thing(log, "kept"))
    index.close()
    index.close()
    refused = Thing(log, "refused")
    before = sys.getrefcount(refused)
    with index:
        for use in (
            functools.partial(index.add, b"a", refused),
            functools.partial(index.search, [b"a"]),
            functools.partial(index.search, []),
            index.join,
        ):
            with pytest.raises(RuntimeError, match=r"^this WordIndex is closed$"):
                use()
    assert_nothing_is_left()
    assert sys.getrefcount(refused) == before
    assert log == ["kept"]


def use_until_closed(index, things, log):
    while True:
        thing = Thing(log, None)
        things.append(None)
        index.add(b"a b c", thing)
        index.search([b"a", b"b c", b"c"])
        index.join()


def test_an_index_may_be_closed_while_others_use_it():
    log, things = [], []
    for delay in range(10):
        index = WordIndex(threads=3)

        def use_or_close(number, index=index, delay=delay):
            if number < 2:
                time.sleep(0.002 * delay)
                index.close()
            else:
                with pytest.raises(RuntimeError, match=r"^this WordIndex is closed$"):
                    use_until_closed(index, things, log)

        in_threads(6, use_or_close)
    del index, use_or_close
    assert_nothing_is_left()
    assert wait_until(lambda: len(log) == len(things))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("wait_for", ["an answer", "additions"])
def test_whoever_waits_can_be_interrupted(wait_for):
    def interrupt(_number, _frame):
        raise Interrupted

    text = b" ".join(b"%d" % number for number in range(20_000))
    log, made, work, waiting = [], 0, 50, False
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        # More work, until it takes long enough.
        while not waiting:
            with WordIndex(threads=1) as index:
                for _ in range(work):
                    index.add(text, Thing(log, made))
                    made += 1
                try:
                    waiting = True
                    signal.setitimer(signal.ITIMER_REAL, 0.001)
                    if wait_for == "an answer":
                        index.search([text] * 5)
                    else:
                        index.join()
                    waiting = False
                    time.sleep(SOON)
                except Interrupted:
                    work *= 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    del index
    assert_nothing_is_left()
    assert wait_until(lambda: sorted(log) == list(range(made)))


# -- processes -----------------------------------------------------------------------


def run_python(reserve, code):
    """In an interpreter of its own, which must end in time, well and silent."""
    first = f"""
import gc, os, resource, sys, threading, time
import refbuf
from word_index import WordIndex
refbuf.configure(reserve={reserve})
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", first + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_sides_of_a_fork_go_on():
    log = []
    index = WordIndex(threads=4, keep=10)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            index.add(b"busy loud", [])
            index.search([b"busy", b"loud"])

    index.add(b"forked", Thing(log, "forked"))
    index.join()
    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        works = False
        try:
            works = works_in_a_child(index)
        finally:
            os._exit(0 if works else 1)
    stop.set()
    for thread in threads:
        thread.join()
    assert [thing.name for thing in index.search([b"forked"])[0]] == ["forked"]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    index.close()
    assert wait_until(lambda: log == ["forked"])
    assert_nothing_is_left()


def works_in_a_child(index):
    for use in (
        functools.partial(index.add, b"a", None),
        functools.partial(index.search, [b"a"]),
        index.join,
    ):
        with pytest.raises(RuntimeError, match=r"parent process.*make another WordIndex here"):
            use()
    index.close()  # There is nothing to wait for.
    log = []
    with WordIndex(threads=2, keep=1) as another:
        for name in range(10):
            another.add(b"a b", Thing(log, name))
        another.join()
        assert [thing.name for thing in another.search([b"b a"])[0]] == [9]
    return wait_until(lambda: sorted(log) == list(range(10)))


def test_a_child_ends_as_other_processes_do(reserve):
    run_python(
        reserve,
        """
        index = WordIndex()
        for number in range(1000):
            index.add(b"a b c", [number])
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            index.join()
        else:
            with index:
                pass
        """,
    )


@pytest.mark.parametrize("kept", ["by a module", "by a module for ever", "by itself", "by a frame"])
def test_an_index_may_be_busy_when_the_interpreter_ends(reserve, kept):
    keep = {
        "by a module": "",
        "by a module for ever": "sys.modules['kept for ever'] = index; sys.kept = index",
        "by itself": "index.add(b'itself', index)",
        "by a frame": "threading.Thread(target=hold, args=(index,), daemon=True).start(); del index",
    }[kept]
    for run in range(4):
        run_python(
            reserve,
            f"""
            def hold(index):
                while True:
                    index.search([b"popular 3", b"popular 4"])

            index = WordIndex(threads=4, keep=10)
            text = b" ".join(b"%d" % number for number in range(2000)) + b" popular"
            for number in range(200):
                index.add(text, [number])
            {keep}
            time.sleep({run} * 0.02)
            """,
        )


def test_an_index_may_be_closed_while_the_interpreter_ends(reserve):
    """By a finalizer that runs late, and by what runs at exit."""
    for at_exit in "atexit.register(index.close)", "sys.late = Late(index)", "late = Late(index)":
        run_python(
            reserve,
            f"""
            import atexit

            class Late:
                def __init__(self, index):
                    self.index = index

                def __del__(self):
                    self.index.close()

            index = WordIndex(threads=4, keep=10)
            for number in range(5_000):
                index.add(b"a b c d e f g h", [number])
            {at_exit}
            """,
        )


def test_threads_that_the_system_does_not_give_are_a_runtime_error(reserve):
    run_python(
        reserve,
        """
        WordIndex(threads=1).close()
        if os.getuid() == 0:
            os.setuid(65534)
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]

        def threads():
            return len(os.listdir("/proc/self/task"))

        before = threads()
        for more in 0, 1, 3:
            # The limit is the user's.
            resource.setrlimit(resource.RLIMIT_NPROC, (before + more if os.getuid() == 65534 else 0, hard))
            try:
                WordIndex(threads=64)
            except RuntimeError as error:
                assert str(error).startswith("the system gave WordIndex "), error
                assert " threads of the 64 that it asked for: " in str(error), error
            else:
                raise AssertionError("all threads were there")
            # One that was joined may stay in the list for a moment.
            deadline = time.monotonic() + 10
            while threads() > before:
                assert time.monotonic() < deadline, (threads(), before)
                time.sleep(0.001)
        resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
        with WordIndex(threads=64) as index:
            index.add(b"a", "found")
            index.join()
            assert index.search([b"a"]) == [["found"]]
        refbuf.flush_all()
        assert refbuf.stats().accounts == refbuf.stats().credits == 0
        """,
    )
