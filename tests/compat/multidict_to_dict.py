"""multidict 6.9.1, built stock: with a GIL, `to_dict` and lookups beside it lose keys.

    python -m pip install multidict==6.9.1
    python tests/compat/multidict_to_dict.py

`md_to_dict` (multidict/_multilib/hashtable.h) marks the hash of each key that it has
seen, and says that nothing in its loop runs Python. `PyList_New` may start the
collector, which calls `gc.callbacks`; hypothesis has one there. Where the callback
loses the GIL, other threads meet the marks. The callback here gives it away each time;
with hypothesis's that takes a busy machine. refbuf is not imported.
"""

import gc
import time
from concurrent.futures import ThreadPoolExecutor

from multidict import MultiDict

KEYS = [str(number) for number in range(500)]


def main() -> None:
    shared = MultiDict((key, number) for number, key in enumerate(KEYS))
    wrong = []

    def convert() -> None:
        for _ in range(1_000):
            if len(converted := shared.to_dict()) != len(KEYS):
                wrong.append(f"to_dict() has {len(converted)} keys of {len(KEYS)}")

    def look() -> None:
        for _ in range(6):
            wrong.extend(f"{key!r} is not there" for key in KEYS if key not in shared)

    gc.callbacks.append(lambda phase, info: time.sleep(0))
    with ThreadPoolExecutor(max_workers=12) as threads:
        for work in [convert] * 4 + [look] * 8:
            threads.submit(work)
    print(f"{len(wrong)} wrong, for instance: {wrong[0]}" if wrong else "nothing was wrong")


if __name__ == "__main__":
    main()
