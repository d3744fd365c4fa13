#!/usr/bin/env python3
"""What a buffer costs a thread, measured: resident memory before and after.

Starts many threads, lets each count one shared object through refbuf, so that
each gets a buffer, and prints the growth for each thread beside what refbuf
says a buffer takes. Needs a free-threaded CPython with refbuf installed.
"""

import argparse
import os
import threading
import time

import refbuf


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a buffer costs a thread, measured.")
    parser.add_argument("--threads", type=int, default=400)
    count = parser.parse_args().threads
    shared = object()
    started, go, done, end = (threading.Barrier(count + 1) for _ in range(4))

    def life() -> None:
        started.wait()
        go.wait()
        refbuf.workloads.touch(shared, 100)
        done.wait()
        end.wait()

    threads = [threading.Thread(target=life) for _ in range(count)]
    for thread in threads:
        thread.start()
    started.wait()
    time.sleep(0.2)
    before = resident()
    go.wait()
    done.wait()
    grown = (resident() - before) / count
    stats = refbuf.stats()
    print(f"{grown / 1024:.1f} KiB of resident memory for each of {stats.threads} threads with a buffer;")
    print(f"{stats.buffer_bytes / 1024:.1f} KiB is a buffer with all that belongs to it")
    end.wait()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
