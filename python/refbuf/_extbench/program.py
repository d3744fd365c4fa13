"""One run of one workload, in a process of its own.

    python -P program.py WORKLOAD THREADS SECONDS DIRECTORY
    python -P -m refbuf run program.py WORKLOAD THREADS SECONDS DIRECTORY

DIRECTORY has the workload's package. Run by its path, as it must load nothing of refbuf: it is
there in the second form, and where the package's own modules import it. Threads are run, and the
answer is printed, as in `refbuf._pybench.runner`.
"""

import json
import os
import sys
from collections.abc import Callable

# Operations here take longer than those of Python: as many fewer between two looks at the clock.
FEWER = 20


def main(name: str, threads: str, seconds: str, directory: str) -> None:
    """Makes what is shared, and runs."""
    # The folders beside this one, by themselves: importing them from refbuf would load it.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from _extbench.workloads import WORKLOADS
    from _pybench.runner import run
    from _pybench.workloads import Workload

    sys.path[0] = directory
    use = WORKLOADS[name]
    answer = run(fewer(Workload(use.operation, use.make).loop(use.make())), int(threads), float(seconds))
    print(json.dumps(answer._asdict()))


def fewer(loop: Callable[[int], int]) -> Callable[[int], int]:
    """The same loop with fewer passes than are asked for."""
    return lambda passes: loop(max(1, passes // FEWER))


if __name__ == "__main__":
    main(*sys.argv[1:])
