"""`python -m refbuf doctor`: whether live mode can be used here, and if not, why.

Nothing is patched: the native module plans, tries what it has planned on objects of its
own, and throws it away.
"""

import json
import platform
import shlex
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .. import __version__, _refbuf
from .._live import UnsupportedError, loaded_extensions, lulls_wanted
from .parser import Parser

DESCRIPTION = """Says whether live mode (python -m refbuf run, refbuf.install) can be used with this
interpreter on this system, and if not, why. Nothing is changed."""

EPILOG = """The object that --json prints:
  ok           whether live mode can be used
  reason       why it cannot, or null
  refbuf       refbuf's version
  interpreter  version, executable; build: free-threaded or with a GIL, debug or not;
               compiler; lto, pgo: whether it was configured with link-time and
               profile-guided optimization, or null where nobody knows
  checks       in order: name; ok: true, false, or null for one that was not made, or
               that can say nothing against live mode; detail: a sentence
  sites        adds, swaps, drops: how many instructions of each form are replaced;
               left_alone: path, offset and reason of each that is not;
               images: for each loaded file path, adds, swaps, drops, left_alone; hooked,
               whether the entry of _Py_DecRefShared is replaced; trampoline_bytes;
               registers_saved, the pushes in them; seconds

Exit status: 0 where live mode can be used, 1 where it cannot, 2 for bad usage."""

# Whose object layout refbuf knows, and where live mode has been run.
OLDEST, NEWEST = (3, 13), (3, 15)
TRIED = ((3, 13),)
HERE = sys.version_info[:2]
# What the native module checks, each only where all before are good.
NATIVE = ("system", "memory", "code", "atomics", "trampolines", "room", "threads")
NOT_MADE = "not checked: something before it stands in the way"

MARKS = {True: "✓", False: "✗", None: "·"}
ASCII_MARKS = {True: "ok", False: "NO", None: "--"}


class Check(NamedTuple):
    """One check.

    name: one or two words.
    ok: whether it is as it has to be; None where it was not made, or is for information.
    detail: a sentence, without its full stop.
    """

    name: str
    ok: bool | None
    detail: str


def main(arguments: Sequence[str]) -> int:
    """Checks and reports; returns the exit status."""
    parser = Parser("doctor", DESCRIPTION, EPILOG)
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    options = parser.parse_args(arguments)
    found = examine()
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 0 if found["ok"] else 1


def examine() -> dict[str, Any]:
    """All that is found, as EPILOG describes it."""
    own = list(_own_checks())
    try:
        lulls = lulls_wanted()
    except UnsupportedError as error:
        lulls = None
        own.append(Check("environment", False, str(error)))
    native = _refbuf.live_examine(list(loaded_extensions()), lulls)
    checks = {name: Check(name, None, NOT_MADE) for name in NATIVE}
    # Where one of ours fails, it has the same to say.
    if all(check.ok is not False for check in own):
        checks |= {name: Check(name, ok, detail) for name, ok, detail in native["checks"]}
    every = [*own, *checks.values()]
    failed = [check for check in every if check.ok is False]
    reason = (native["obstacle"] or failed[0].detail) if failed else None
    return {
        "ok": not failed,
        "reason": reason,
        "refbuf": __version__,
        "interpreter": _interpreter(),
        "checks": [check._asdict() for check in every],
        "sites": _sites(native["images"]),
    }


# -- the interpreter ----------------------------------------------------------


def _interpreter() -> dict[str, Any]:
    build = "free-threaded" if _configured("Py_GIL_DISABLED") else "with a GIL"
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "build": f"{build}, debug" if _configured("Py_DEBUG") else build,
        "compiler": platform.python_compiler(),
        "lto": _given("--with-lto"),
        "pgo": _given("--enable-optimizations"),
    }


def _configured(name: str) -> bool:
    return bool(sysconfig.get_config_var(name))


def _given(option: str) -> bool | None:
    """Whether `configure` was given an option when the interpreter was built; None where
    that is not on record."""
    options = sysconfig.get_config_var("CONFIG_ARGS")
    if options is None:
        return None
    # The last one counts.
    for given in reversed(shlex.split(options)):
        name, _, value = given.partition("=")
        if name == option:
            return value != "no"
    return False


# -- the checks ---------------------------------------------------------------


def _own_checks() -> Iterator[Check]:
    """What can be said without the native module, on any system."""
    system, machine = platform.system(), platform.machine()
    ok = system == "Linux" and machine == "x86_64"
    detail = f"{system} on {machine}"
    yield Check("platform", ok, detail if ok else f"live mode is for Linux on x86_64, and this is {detail}")

    ok = _configured("Py_GIL_DISABLED")
    detail = "threads run at once" if ok else "this interpreter has a GIL: take another, as python3.13t"
    if ok and sys._is_gil_enabled():
        detail = "the GIL is enabled all the same, so threads take turns: see python -X gil=0"
    yield Check("free-threaded", ok, detail)

    ok = not _configured("Py_DEBUG")
    yield Check("release build", ok, "no debug build" if ok else "objects of a debug build are others")

    yield _version()

    about = _interpreter()
    parts = (about["compiler"], _with(about["lto"], "link-time"), _with(about["pgo"], "profile-guided"))
    yield Check("compiler", None, ", ".join(parts))


def _with(given: bool | None, what: str) -> str:
    if given is None:
        return f"{what} optimization unknown"
    return f"{'with' if given else 'without'} {what} optimization"


def _version() -> Check:
    version = platform.python_version()
    known = f"{_dotted(OLDEST)} to {_dotted(NEWEST)}"
    if HERE < OLDEST:
        return Check("version", False, f"{version} is older than what live mode knows, {known}")
    if HERE > NEWEST:
        # Its objects are checked at import: refbuf works, or would not be here.
        return Check("version", None, f"{version} is newer than what live mode knows, {known}")
    if HERE not in TRIED:
        return Check("version", True, f"{version}: known, but live mode has not been run on it")
    return Check("version", True, f"{version}: known, and live mode has been run on {_dotted(HERE)}")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _sites(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "adds": sum(image["adds"] for image in images),
        "swaps": sum(image["swaps"] for image in images),
        "drops": sum(image["drops"] for image in images),
        "left_alone": [
            {"path": image["path"], "offset": offset, "reason": reason}
            for image in images
            for offset, reason in image["left_alone"]
        ],
        "images": images,
    }


# -- for people ---------------------------------------------------------------


def _lines(found: dict[str, Any]) -> Iterator[str]:
    about, marks = found["interpreter"], _marks()
    yield f"refbuf {found['refbuf']}, Python {about['version']} {about['build']}, {about['executable']}"
    width = max(len(check["name"]) for check in found["checks"])
    for check in found["checks"]:
        yield f"  {marks[check['ok']]} {check['name']:<{width}}  {check['detail']}"
    for image in found["sites"]["images"]:
        hooked = ", the entry of _Py_DecRefShared" if image["hooked"] else ""
        yield f"{image['path']}: {image['adds']} adds, {image['swaps']} swaps, {image['drops']} drops{hooked}"
        for offset, reason in image["left_alone"]:
            yield f"  left alone at {offset:#x}: {reason}"
    if found["ok"]:
        yield "Live mode can be used here."
    else:
        yield f"Live mode cannot be used here: {found['reason']}."


def _marks() -> dict[bool | None, str]:
    try:
        "".join(MARKS.values()).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII_MARKS
    return MARKS
