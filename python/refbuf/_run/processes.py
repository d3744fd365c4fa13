"""Processes that the program starts with multiprocessing: they are run with `run`, too."""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

# Modules that no multiprocessing starts a fresh interpreter without.
STARTERS = frozenset({"multiprocessing.popen_spawn_posix", "multiprocessing.forkserver"})
# How the code of those interpreters begins; that of the resource tracker does not.
STARTED = ("from multiprocessing.spawn import", "from multiprocessing.forkserver import")


class Multiprocessing:
    """Has multiprocessing start its processes with `run`, and these options of it.

    A finder, as multiprocessing is not to be loaded for programs without it: that
    is slow, and takes a place in the order of what runs at exit. It finds nothing
    itself, and is there to see what starts processes just before it is loaded.
    """

    def __init__(self, options: list[str]) -> None:
        self._run = ["-m", "refbuf", "run", *options]
        self._done = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Called for every module that is imported first."""
        if name in STARTERS and not self._done:
            self._done = True
            self._wrap()
        return None

    def _wrap(self) -> None:
        from multiprocessing import util

        spawn = util.spawnv_passfds

        def spawnv_passfds(path: bytes, args: Sequence[str | bytes], passfds: Sequence[int]) -> int:
            # The options before -c are the interpreter's, what follows is for sys.argv.
            place = args.index("-c") if "-c" in args else len(args)
            code = args[place + 1] if place + 1 < len(args) else ""
            # Another interpreter, by multiprocessing.set_executable(), may not have refbuf.
            ours = os.fsencode(path) == os.fsencode(sys.executable)
            if ours and isinstance(code, str) and code.startswith(STARTED):
                args = [*args[:place], *self._run, *args[place:]]
            return spawn(path, args, passfds)

        util.spawnv_passfds = spawnv_passfds
