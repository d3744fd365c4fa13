"""Prices orders by rules that are parsed once, with simpleeval.

The rules are a shop's: texts that its staff edits, and that no programmer has to. The main thread
parses them; each worker thread has an evaluator of its own, and all of them walk the same trees.
"""

import argparse
import ast
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from simpleeval import SimpleEval

# When a rule applies, and what it adds to the price in cents.
RULES = {
    "many pieces": ("pieces >= 10", "-subtotal // 20"),
    "regular customer": ("years >= 2", "-min(subtotal * years // 200, 2500)"),
    "postage": ("subtotal < 5000", "490"),
    "abroad": ("zone != 'home'", "max(1500, weight // 4)"),
    "express": ("express and weight < 8000", "990"),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, with what its texts were parsed to."""

    name: str
    condition: ast.expr
    change: ast.expr


def parse_rules(texts):
    return tuple(
        Rule(name, SimpleEval.parse(condition), SimpleEval.parse(change))
        for name, (condition, change) in texts.items()
    )


def make_orders(count):
    """Orders as they come in: JSON."""
    chance = random.Random(2007)
    orders = [
        {
            "pieces": chance.choice((1, 1, 2, 3, 5, 12, 60)),
            "subtotal": chance.randrange(500, 60_000),
            "weight": chance.randrange(50, 15_000),
            "years": chance.randrange(6),
            "express": chance.random() < 0.3,
            "zone": chance.choice(("home", "home", "abroad")),
        }
        for _ in range(count)
    ]
    return [json.dumps(order) for order in orders]


def price(evaluator, rules, order):
    """The order's price in cents."""
    evaluator.names = order = json.loads(order)
    total = order["subtotal"]
    for rule in rules:
        if evaluator.eval(rule.name, previously_parsed=rule.condition):
            total += evaluator.eval(rule.name, previously_parsed=rule.change)
    return total


def work(rules, orders, deadline):
    """Prices all orders, again and again; returns how often, and the sum of the prices."""
    evaluator = SimpleEval(functions={"min": min, "max": max})
    rounds, sums = 0, set()
    while not rounds or time.perf_counter() < deadline:
        sums.add(sum(price(evaluator, rules, order) for order in orders))
        rounds += 1
    (check,) = sums  # the same every time
    return rounds, check


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="how long (default: 2)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()

    rules, orders = parse_rules(RULES), make_orders(100)
    with ThreadPoolExecutor(options.threads) as pool:
        start = time.perf_counter()
        deadline = start + options.seconds
        results = [pool.submit(work, rules, orders, deadline) for _ in range(options.threads)]
        results = [result.result() for result in results]
        seconds = time.perf_counter() - start

    (check,) = {check for _, check in results}  # the same in every thread
    operations = len(orders) * sum(rounds for rounds, _ in results)
    result = {
        "program": "order_rules",
        "threads": options.threads,
        "operations": operations,
        "seconds": seconds,
        "operations_per_second": operations / seconds,
        "check": check,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{operations / seconds:,.0f} orders priced a second, threads: {options.threads}, check: {check}")


if __name__ == "__main__":
    main()
