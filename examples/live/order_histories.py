"""Finds the orders whose history is as it should be, with automata-lib.

The main thread makes an automaton of the rules: what may happen to an order, and in which sequence. The
worker threads run the histories of orders through it.
"""

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

from automata.fa.dfa import DFA
from automata.fa.nfa import NFA

# What happens to an order: created, paid, packed, shipped, delivered, returned, refunded, cancelled.
RULES = "c(x|p(ks)*(xf|ksd(rf)?))"


def build_automaton():
    return DFA.from_nfa(NFA.from_regex(RULES))


def make_histories(count):
    """Most are as they should be; in the others two events have changed places, or one is missing."""
    chance = random.Random(2007)
    histories = []
    for _ in range(count):
        shipped = "cp" + "ks" * chance.randrange(1, 9)
        events = list(chance.choice(("cx", shipped + "d", shipped + "d", shipped + "drf", shipped + "xf")))
        damage = chance.random()
        if damage < 0.1:
            place = chance.randrange(len(events) - 1)
            events[place : place + 2] = events[place + 1], events[place]
        elif damage < 0.2:
            del events[chance.randrange(len(events))]
        histories.append("".join(events))
    return histories


def work(automaton, histories, deadline):
    """Judges all histories, again and again; returns how many, and the sum of the good ones' numbers."""
    judged, sums = 0, set()
    while not sums or time.perf_counter() < deadline:
        sums.add(sum(number for number, events in enumerate(histories) if automaton.accepts_input(events)))
        judged += len(histories)
    (check,) = sums  # the same every time
    return judged, check


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="worker threads (default: 2)")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="how long (default: 2)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()

    automaton, histories = build_automaton(), make_histories(100)
    with ThreadPoolExecutor(options.threads) as pool:
        start = time.perf_counter()
        workers = [
            pool.submit(work, automaton, histories, start + options.seconds) for _ in range(options.threads)
        ]
        done = [worker.result() for worker in workers]
        seconds = time.perf_counter() - start

    operations = sum(operations for operations, _ in done)
    (check,) = {check for _, check in done}  # the same in every thread
    if options.json:
        result = {
            "program": "order_histories",
            "threads": options.threads,
            "operations": operations,
            "seconds": seconds,
            "operations_per_second": operations / seconds,
            "check": check,
        }
        print(json.dumps(result))
    else:
        print(f"{operations / seconds:,.0f} histories a second, threads: {options.threads}, check: {check}")


if __name__ == "__main__":
    main()
