"""Any sequence of operations, against a model: exact counts, exact deaths."""

import gc
import os

import hypothesis.strategies as some
import refbuf
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import countext
from support import Tracked, Worker, same_pair, wait_until

UPS = (countext.incref, countext.incref_call, countext.stock_incref)
DOWNS = (countext.decref, countext.decref_call, countext.stock_decref)

THREADS = 3
NUMBERS = some.integers(0, 63)
AMOUNTS = some.integers(1, 12)


class Counts(RuleBasedStateMachine):
    """Objects that nothing but references of the model's keep alive: an object
    is an address, and how many references there should be to it."""

    @initialize()
    def start(self):
        refbuf.configure(heartbeat_ms=2)
        refbuf.flush_all()
        self.log = []
        self.made = 0
        self.living = {}  # name -> [address, references]
        self.workers = [Worker() for _ in range(THREADS)]

    def teardown(self):
        for _, (address, references) in self.living.items():
            countext.stock_decref(address, references)
        self.living = {}
        for worker in self.workers:
            worker.end()
        refbuf.flush_all()
        refbuf.configure(heartbeat_ms=10)
        assert wait_until(lambda: len(self.log) == self.made)
        assert sorted(self.log) == list(range(self.made))

    def worker(self, number):
        return self.workers[number % THREADS]

    def one(self, number):
        return list(self.living)[number % len(self.living)]

    def adopt(self, name, thing):
        """One reference to the object becomes the model's."""
        countext.incref(id(thing))
        self.living[name] = [id(thing), 1]

    @precondition(lambda self: len(self.living) < 6)
    @rule(thread=NUMBERS)
    def make(self, thread):
        """By a worker, which then owns it, or by the main thread."""
        name = self.made
        self.made += 1

        def make():
            self.adopt(name, Tracked(self.log, name))

        if thread % 2:
            self.worker(thread).do(make)
        else:
            make()

    @precondition(lambda self: 0 < len(self.living) < 6)
    @rule(number=NUMBERS)
    def make_one_for_the_same_places(self, number):
        address, _ = self.living[self.one(number)]
        name = self.made
        self.made += 1
        thing = same_pair(address, refbuf.stats().slots, lambda: Tracked([], name))
        thing.log = self.log
        self.adopt(name, thing)

    @precondition(lambda self: self.living)
    @rule(number=NUMBERS, thread=NUMBERS, up=some.sampled_from(UPS), amount=AMOUNTS)
    def increment(self, number, thread, up, amount):
        entry = self.living[self.one(number)]
        self.worker(thread).do(up, entry[0], amount)
        entry[1] += amount

    @precondition(lambda self: self.living)
    @rule(number=NUMBERS, thread=NUMBERS, down=some.sampled_from(DOWNS), amount=AMOUNTS)
    def decrement(self, number, thread, down, amount):
        name = self.one(number)
        address, references = self.living[name]
        amount = min(amount, references)
        if amount == references:
            del self.living[name]
        else:
            self.living[name][1] -= amount
        self.worker(thread).do(down, address, amount)

    @precondition(lambda self: self.living)
    @rule(number=NUMBERS, thread=NUMBERS, times=AMOUNTS)
    def touch(self, number, thread, times):
        self.worker(thread).do(countext.touch, self.living[self.one(number)][0], times)

    @precondition(lambda self: self.living)
    @rule(number=NUMBERS)
    def count_in_the_main_thread(self, number):
        entry = self.living[self.one(number)]
        countext.incref(entry[0], 2)
        countext.decref_call(entry[0])
        entry[1] += 1

    @rule(thread=NUMBERS)
    def flush(self, thread):
        self.worker(thread).do(refbuf.flush)

    @rule()
    def flush_all(self):
        refbuf.flush_all()
        for address, references in self.living.values():
            assert self.comes_to(countext.stock_count, address, references)

    @rule(thread=NUMBERS)
    def collect(self, thread):
        self.worker(thread).do(gc.collect)

    @rule(thread=NUMBERS)
    def end_a_thread(self, thread):
        self.worker(thread).end()
        self.workers[thread % THREADS] = Worker()

    @invariant()
    def counts_are_the_models(self):
        for address, references in self.living.values():
            assert self.comes_to(countext.count, address, references)

    @invariant()
    def nothing_died_but_what_the_model_says(self):
        assert not set(self.log) & set(self.living)
        log = list(self.log)  # Another thread may add to it.
        assert len(set(log)) == len(log)

    @invariant()
    def what_is_dropped_dies_soon(self):
        dead = self.made - len(self.living)

        def all_are_dead():
            self.owners_look()
            return len(self.log) == dead

        assert wait_until(all_are_dead), (self.log, self.living)

    def comes_to(self, count, address, references):
        """Whether a count is that, once what waits for the object's owner is
        done: until then the interpreter's queue has a reference of its own."""

        def is_that():
            self.owners_look()
            return count(address) == references

        return wait_until(is_that)

    def owners_look(self):
        """The interpreter leaves it to an object's owner to subtract what others
        dropped; a thread that waits does not look."""
        for worker in self.workers:
            worker.do(int)


TestCounts = Counts.TestCase
TestCounts.settings = settings(
    max_examples=int(os.environ.get("REFBUF_TEST_EXAMPLES", "60")),
    stateful_step_count=40,
    deadline=None,
    # Waiting for what never happens makes shrinking endless.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
