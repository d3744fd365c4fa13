"""Serves requests from one dependency container, with modern-di.

The main thread builds the container of the application: what lives as long as it does (settings,
the catalogue, taxes), and how to make what a request needs. A worker thread opens a child container
for each request, and resolves its service from there.
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
    currency: str = "EUR"
    tax_percent: int = 19
    free_from: int = 5_000


class Catalogue:
    """What is sold, and at which price in cents."""

    def __init__(self, settings: Settings) -> None:
        chance = random.Random(2007)
        self.currency = settings.currency
        self.prices = {f"item {number}": chance.randrange(100, 3_000) for number in range(50)}


class Taxes:
    def __init__(self, settings: Settings) -> None:
        self.percent = settings.tax_percent

    def on(self, net: int) -> int:
        return net * self.percent // 100


@dataclass(frozen=True)
class Request:
    """What one customer buys."""

    items: tuple[str, ...]


class Basket:
    def __init__(self, request: Request, catalogue: Catalogue) -> None:
        self.request, self.catalogue = request, catalogue

    def net(self) -> int:
        prices = self.catalogue.prices
        return sum(prices[item] for item in self.request.items)


class Postage:
    def __init__(self, settings: Settings, basket: Basket) -> None:
        self.settings, self.basket = settings, basket

    def cents(self) -> int:
        return 0 if self.basket.net() >= self.settings.free_from else 490


class Checkout:
    def __init__(self, basket: Basket, postage: Postage, taxes: Taxes) -> None:
        self.basket, self.postage, self.taxes = basket, postage, taxes

    def total(self) -> int:
        net = self.basket.net() + self.postage.cents()
        return net + self.taxes.on(net)


class Shop(Group):
    """How everything is made."""

    settings = providers.Factory(Settings, scope=Scope.APP, cache=True)
    catalogue = providers.Factory(Catalogue, scope=Scope.APP, cache=True)
    taxes = providers.Factory(Taxes, scope=Scope.APP, cache=True)
    request = providers.ContextProvider(Request, scope=Scope.REQUEST)
    basket = providers.Factory(Basket, scope=Scope.REQUEST, cache=True)
    postage = providers.Factory(Postage, scope=Scope.REQUEST)
    checkout = providers.Factory(Checkout, scope=Scope.REQUEST)


def serve(application, line):
    request = Request(tuple(line.split(",")))
    with application.build_child_container(scope=Scope.REQUEST, context={Request: request}) as container:
        return container.resolve(Checkout).total()


def work(application, requests, deadline):
    """Serves all requests, again and again; returns how often, and the sum of what is to be paid."""
    rounds, sums = 0, set()
    while not rounds or time.perf_counter() < deadline:
        sums.add(sum(serve(application, line) for line in requests))
        rounds += 1
    (check,) = sums  # the same every time
    return rounds, check


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="how long (default: 2)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()

    chance = random.Random(1999)
    requests = [
        ",".join(f"item {chance.randrange(50)}" for _ in range(chance.randrange(1, 4))) for _ in range(100)
    ]
    with Container(scope=Scope.APP, groups=[Shop]) as application, ThreadPoolExecutor(options.threads) as pool:
        application.validate()
        start = time.perf_counter()
        deadline = start + options.seconds
        results = [pool.submit(work, application, requests, deadline) for _ in range(options.threads)]
        results = [result.result() for result in results]
        seconds = time.perf_counter() - start

    (check,) = {check for _, check in results}  # the same in every thread
    operations = len(requests) * sum(rounds for rounds, _ in results)
    result = {
        "program": "request_container",
        "threads": options.threads,
        "operations": operations,
        "seconds": seconds,
        "operations_per_second": operations / seconds,
        "check": check,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{operations / seconds:,.0f} requests a second, threads: {options.threads}, check: {check}")


if __name__ == "__main__":
    main()
