"""Runs the programs stock and live, and prints how many operations a second each came to.

Every run is a process of its own. A pair is one program with one number of threads, run both ways, one
right after the other, so that what else the machine does meets both. It is run again where a run got too
little of the processors. A round is a pair of each kind; a figure is the median of all rounds.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = ("request_container", "tariff_index", "order_histories")
WAYS = {"stock": [], "live": ["-m", "refbuf", "run"]}


def processor_time():
    """Of all runs so far, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(program, way, threads, seconds):
    """What the program says of itself; "share" is how much it got of the processor time it could use."""
    command = [sys.executable, *WAYS[way], HERE / f"{program}.py"]
    command += ["--threads", str(threads), "--seconds", str(seconds), "--json"]
    start, used = time.perf_counter(), processor_time()
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    # Before and after its threads, a program uses one processor.
    usable = time.perf_counter() - start + (threads - 1) * result["seconds"]
    return {"way": way, **result, "share": (processor_time() - used) / usable}


def run_pair(program, threads, seconds, share, tries):
    """A run each way, of the first of so many tries in which both got that share, or of the best."""
    pairs = []
    for number in range(tries):
        # Who goes first takes turns.
        pair = {way: run(program, way, threads, seconds) for way in sorted(WAYS, reverse=number % 2 == 0)}
        pairs.append(pair)
        if lowest_share(pair) >= share:
            return pair
    return max(pairs, key=lowest_share)


def lowest_share(pair):
    return min(result["share"] for result in pair.values())


def print_table(pairs, programs, thread_counts):
    titles = f"{'program':<18} {'threads':>7} {'stock':>9} {'live':>9} {'live/stock':>10}"
    print(f"{titles}   {'range':<9} processors")
    for program in programs:
        for threads in thread_counts:
            rounds = pairs[program, threads]
            stock, live = (
                statistics.median(pair[way]["operations_per_second"] for pair in rounds) for way in WAYS
            )
            ratios = [
                pair["live"]["operations_per_second"] / pair["stock"]["operations_per_second"]
                for pair in rounds
            ]
            print(
                f"{program:<18} {threads:>7} {stock:>9,.0f} {live:>9,.0f} {statistics.median(ratios):>10.2f}"
                f"   {min(ratios):.2f}-{max(ratios):.2f} {min(map(lowest_share, rounds)):>10.0%}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"default: {' '.join(PROGRAMS)}")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--seconds", type=float, default=1, metavar="S", help="of each run (default: 1)")
    parser.add_argument(
        "--share", type=float, default=0.95, metavar="F", help="of the processors, to count (default: 0.95)"
    )
    parser.add_argument("--tries", type=int, default=8, metavar="N", help="to get that share (default: 8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each round's figures there")
    options = parser.parse_args()
    programs = options.programs or PROGRAMS
    for program in programs:
        if program not in PROGRAMS:
            parser.error(f"there is no program {program!r}")

    load = [os.getloadavg()[0]]
    pairs, checks = {}, {}
    for number in range(options.rounds):
        for program in programs:
            for threads in options.threads:
                pair = run_pair(program, threads, options.seconds, options.share, options.tries)
                pairs.setdefault((program, threads), []).append(pair)
                checks.setdefault(program, set()).update(result["check"] for result in pair.values())
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    load.append(os.getloadavg()[0])

    print(
        f"CPython {platform.python_version()}, {os.cpu_count()} processors, {options.rounds} rounds; ", end=""
    )
    print(f"load average before {load[0]:.1f}, after {load[1]:.1f}; operations a second")
    print_table(pairs, programs, options.threads)
    if options.json:
        runs = [result for rounds in pairs.values() for pair in rounds for result in pair.values()]
        options.json.write_text(json.dumps({"load": load, "runs": runs}, indent=1) + "\n")
    for program, found in checks.items():
        if len(found) > 1:
            sys.exit(f"{program} came to different results: {found}")


if __name__ == "__main__":
    main()
