"""Looks up which tariff was in force when a call was made, with sortedcontainers.

The main thread makes an index of a year's tariffs, sorted by the moments from which they are in force. The
worker threads each charge calls by it.
"""

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sortedcontainers import SortedDict

YEAR = 365 * 24 * 60  # in minutes


@dataclass(frozen=True, slots=True)
class Tariff:
    """In cents."""

    connection: int
    minute: int


def build_index(tariffs):
    """The year's tariffs by the minute of the year from which they are in force."""
    chance = random.Random(2007)
    moments = [0, *chance.sample(range(1, YEAR), tariffs - 1)]
    return SortedDict((moment, Tariff(chance.randrange(1, 20), chance.randrange(1, 9))) for moment in moments)


def make_calls(count):
    """Calls: when, and how many minutes."""
    chance = random.Random(1999)
    return [(chance.randrange(YEAR), chance.randrange(1, 60)) for _ in range(count)]


def charge(index, moment, minutes):
    _, tariff = index.peekitem(index.bisect_right(moment) - 1)
    return tariff.connection + minutes * tariff.minute


def work(index, deadline):
    """Charges the same calls again and again; returns how many, and what all together come to."""
    calls = make_calls(200)
    charged, totals = 0, set()
    while not totals or time.perf_counter() < deadline:
        totals.add(sum(charge(index, moment, minutes) for moment, minutes in calls))
        charged += len(calls)
    (check,) = totals  # the same every time
    return charged, check


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="worker threads (default: 2)")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="how long (default: 2)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()

    index = build_index(100)
    with ThreadPoolExecutor(options.threads) as pool:
        start = time.perf_counter()
        workers = [pool.submit(work, index, start + options.seconds) for _ in range(options.threads)]
        done = [worker.result() for worker in workers]
        seconds = time.perf_counter() - start

    operations = sum(operations for operations, _ in done)
    (check,) = {check for _, check in done}  # the same in every thread
    if options.json:
        result = {
            "program": "tariff_index",
            "threads": options.threads,
            "operations": operations,
            "seconds": seconds,
            "operations_per_second": operations / seconds,
            "check": check,
        }
        print(json.dumps(result))
    else:
        print(f"{operations / seconds:,.0f} calls a second, threads: {options.threads}, check: {check}")


if __name__ == "__main__":
    main()
