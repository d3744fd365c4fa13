"""Suggests books from one RDF graph that all threads query, with rdflib.

The main thread builds the graph: who wrote which book, of which genre, and who learned from whom.
The worker threads only read it. To a reader of a book they suggest others of its genre, by authors
from whom its author learned.
"""

import argparse
import json
import random
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

from rdflib import Graph, Namespace

LIBRARY = Namespace("https://library.example/")
BY, GENRE, LEARNED_FROM = LIBRARY.by, LIBRARY.genre, LIBRARY.learnedFrom


def build_graph(authors, books_each):
    """Returns the graph, and its books."""
    chance = random.Random(2007)
    graph = Graph()
    people = [LIBRARY[f"author/{number}"] for number in range(authors)]
    genres = [LIBRARY[f"genre/{number}"] for number in range(4)]
    books = []
    for person in people:
        for teacher in chance.sample(people, 3):
            graph.add((person, LEARNED_FROM, teacher))
        for _ in range(books_each):
            book = LIBRARY[f"book/{len(books)}"]
            graph.add((book, BY, person))
            graph.add((book, GENRE, chance.choice(genres)))
            books.append(book)
    return graph, books


def suggest(graph, book):
    """Books of the same genre by the teachers of this one's author."""
    genre = graph.value(book, GENRE)
    return [
        other
        for author in graph.objects(book, BY)
        for teacher in graph.objects(author, LEARNED_FROM)
        for other in graph.subjects(BY, teacher)
        if (other, GENRE, genre) in graph
    ]


def work(graph, books, deadline):
    """Suggests for every book, again and again; returns how often, and a sum over the suggestions."""
    rounds, sums = 0, set()
    while not rounds or time.perf_counter() < deadline:
        sums.add(sum(zlib.crc32("\n".join(suggest(graph, book)).encode()) for book in books))
        rounds += 1
    (check,) = sums  # the same every time
    return rounds, check


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="how long (default: 2)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args()

    graph, books = build_graph(authors=10, books_each=4)
    with ThreadPoolExecutor(options.threads) as pool:
        start = time.perf_counter()
        deadline = start + options.seconds
        results = [pool.submit(work, graph, books, deadline) for _ in range(options.threads)]
        results = [result.result() for result in results]
        seconds = time.perf_counter() - start

    (check,) = {check for _, check in results}  # the same in every thread
    operations = len(books) * sum(rounds for rounds, _ in results)
    result = {
        "program": "knowledge_graph",
        "threads": options.threads,
        "operations": operations,
        "seconds": seconds,
        "operations_per_second": operations / seconds,
        "check": check,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{operations / seconds:,.0f} queries a second, threads: {options.threads}, check: {check}")


if __name__ == "__main__":
    main()
