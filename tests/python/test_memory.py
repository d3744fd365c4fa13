"""R5 and R4: buffers have a fixed size, and go with their threads."""

import threading

import pytest
import refbuf
from refbuf import workloads

import countext
from support import Plain, Tracked, Worker, addresses, counts, give_credits, settled_counts, wait_until

LIMIT = 32 * 1024

# A buffer for each of so many threads would be 48 MiB.
SHORT_THREADS = 3_000
ALLOWED_GROWTH = 8 * 1024 * 1024


def resident_bytes():
    """Memory of this process that is in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_buffer_takes_at_most_32_kib():
    sums = refbuf.stats()
    assert 0 < sums.buffer_bytes <= LIMIT
    assert 2 <= sums.slots <= 1024
    assert countext.stats()["buffer_bytes"] == sums.buffer_bytes


@pytest.mark.needs_buffering
def test_every_thread_has_one_buffer_until_it_ends():
    thing = Plain()
    assert wait_until(lambda: refbuf.stats().orphans == 0)
    before = refbuf.stats().threads
    workers = [Worker() for _ in range(100)]
    for worker in workers:
        give_credits(worker, id(thing))
    for worker in workers:
        worker.do(countext.touch, id(thing), 100)
    assert refbuf.stats().threads == before + 100
    for worker in workers:
        worker.end()
    assert wait_until(lambda: refbuf.stats().orphans == 0)
    assert refbuf.stats().threads == before


def short_threads(count, objects):
    there = addresses(objects)
    for number in range(count):
        thread = threading.Thread(target=countext.churn, args=(there, 100, number))
        thread.start()
        thread.join()


def test_thousands_of_short_threads_leave_no_memory_behind():
    objects = [Plain() for _ in range(100)]
    before = counts(objects)
    short_threads(300, objects)
    wait_until(lambda: refbuf.stats().orphans == 0)
    warm = resident_bytes()
    short_threads(SHORT_THREADS, objects)
    assert wait_until(lambda: refbuf.stats().orphans == 0), "orphans are not settled"
    assert resident_bytes() - warm < ALLOWED_GROWTH
    assert settled_counts(objects) == before


def test_thousands_of_short_native_threads_leave_no_memory_behind():
    objects = [Plain() for _ in range(100)]
    before = counts(objects)
    workloads.run("random", "refbuf", objects, threads=64, pairs=100)
    warm = resident_bytes()
    for _ in range(SHORT_THREADS // 64):
        workloads.run("random", "refbuf", objects, threads=64, pairs=100)
    assert wait_until(lambda: refbuf.stats().orphans == 0)
    assert resident_bytes() - warm < ALLOWED_GROWTH
    assert settled_counts(objects) == before


@pytest.mark.needs_buffering
def test_credits_of_an_ended_thread_come_back_without_a_flush():
    objects = [Plain() for _ in range(20)]
    before = counts(objects)
    with Worker() as worker:
        worker.do(countext.churn, addresses(objects), 500, 1)
    assert wait_until(lambda: counts(objects) == before)
    assert refbuf.stats().orphans == 0


@pytest.mark.needs_buffering
def test_flush_settles_the_calling_thread_only():
    mine, others = Plain(), Plain()
    before = counts([mine, others])
    refbuf.configure(heartbeat_ms=1000)
    with Worker() as one, Worker() as other:
        give_credits(one, id(mine))
        give_credits(other, id(others))
        held = counts([mine, others])
        assert held[0] > before[0] and held[1] > before[1]
        one.do(refbuf.flush)
        assert counts([mine, others]) == [before[0], held[1]]
        other.do(countext.flush)
        assert counts([mine, others]) == before


@pytest.mark.needs_buffering
def test_a_buffer_that_is_used_again_starts_empty():
    """The next thread gets the buffer of one that has ended: nothing of its
    credits, and none of its hits."""
    log = []
    for _ in range(50):
        with Worker() as worker:
            thing = Tracked(log)
            worker.do(countext.touch, id(thing), 50)
            del thing
        refbuf.flush_all()
    assert len(log) == 50
    assert refbuf.stats().credits == 0
