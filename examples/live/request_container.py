"""Serves requests from one dependency container, with modern-di.

The main thread describes how a shop's parts are made of each other. The worker threads have the container
make a checkout for each request; prices, taxes and the like are the same objects for all.
"""

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from modern_di import Container, Group, Scope, providers


@dataclass(frozen=True)
class Settings:
    tax_percent: int = 19
    postage: int = 490
    free_from: int = 5_000
    discount_percent: int = 3
    discount_from: int = 3_000


class Catalogue:
    """What is sold, and at which price in cents."""

    def __init__(self) -> None:
        chance = random.Random(2007)
        self.prices = {f"item {number}": chance.randrange(100, 3_000) for number in range(50)}


class Discounts:
    def __init__(self, settings: Settings) -> None:
        self.percent, self.least = settings.discount_percent, settings.discount_from

    def on(self, net: int) -> int:
        return net * self.percent // 100 if net >= self.least else 0


class Postage:
    def __init__(self, settings: Settings) -> None:
        self.cents, self.free_from = settings.postage, settings.free_from

    def on(self, net: int) -> int:
        return 0 if net >= self.free_from else self.cents


class Taxes:
    def __init__(self, settings: Settings) -> None:
        self.percent = settings.tax_percent

    def on(self, net: int) -> int:
        return net * self.percent // 100


class Basket:
    """What goes into a price."""

    def __init__(self, catalogue: Catalogue, discounts: Discounts, postage: Postage) -> None:
        self.catalogue, self.discounts, self.postage = catalogue, discounts, postage

    def net(self, items: list[str]) -> int:
        prices = self.catalogue.prices
        net = sum([prices[item] for item in items])
        return net - self.discounts.on(net) + self.postage.on(net)


class Checkout:
    """What a request needs."""

    def __init__(self, basket: Basket, taxes: Taxes) -> None:
        self.basket, self.taxes = basket, taxes

    def total(self, items: list[str]) -> int:
        net = self.basket.net(items)
        return net + self.taxes.on(net)


class Shop(Group):
    """How the parts are made: those with a cache once, the others whenever they are asked for."""

    settings = providers.Factory(Settings, scope=Scope.APP, cache=True)
    catalogue = providers.Factory(Catalogue, scope=Scope.APP, cache=True)
    discounts = providers.Factory(Discounts, scope=Scope.APP, cache=True)
    postage = providers.Factory(Postage, scope=Scope.APP, cache=True)
    taxes = providers.Factory(Taxes, scope=Scope.APP, cache=True)
    basket = providers.Factory(Basket, scope=Scope.APP)
    checkout = providers.Factory(Checkout, scope=Scope.APP)


def make_requests(count):
    """Requests as they come in: items with commas between them."""
    chance = random.Random(1999)
    return [
        ",".join(f"item {chance.randrange(50)}" for _ in range(chance.randrange(1, 4))) for _ in range(count)
    ]


def work(container, requests, deadline):
    """Serves all requests, again and again; returns how many, and what all together come to."""
    served, totals = 0, set()
    while not totals or time.perf_counter() < deadline:
        totals.add(sum(container.resolve(Checkout).total(request.split(",")) for request in requests))
        served += len(requests)
    (check,) = totals  # the same every time
    return served, check


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="worker threads (default: 2)")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="how long (default: 2)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()

    requests = make_requests(100)
    container = Container(scope=Scope.APP, groups=[Shop])
    container.validate()
    with ThreadPoolExecutor(options.threads) as pool:
        start = time.perf_counter()
        workers = [
            pool.submit(work, container, requests, start + options.seconds) for _ in range(options.threads)
        ]
        done = [worker.result() for worker in workers]
        seconds = time.perf_counter() - start

    operations = sum(operations for operations, _ in done)
    (check,) = {check for _, check in done}  # the same in every thread
    if options.json:
        result = {
            "program": "request_container",
            "threads": options.threads,
            "operations": operations,
            "seconds": seconds,
            "operations_per_second": operations / seconds,
            "check": check,
        }
        print(json.dumps(result))
    else:
        print(f"{operations / seconds:,.0f} requests a second, threads: {options.threads}, check: {check}")


if __name__ == "__main__":
    main()
