"""Live mode: the counts of an unmodified interpreter go through the buffers."""

import _imp
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import _refbuf
from ._refbuf import UnsupportedError

__all__ = ["ImageReport", "InstallReport", "UnsupportedError", "install", "installed", "uninstall"]


class ImageReport(NamedTuple):
    """What was done to one loaded file.

    path: the file.
    adds: sites of the form `lock add [object+16], 4`.
    swaps: sites of the form `lock cmpxchg [address], register`.
    drops: those of them that are a decrement, by the code around them.
    hooked: functions whose entry was replaced.
    left_alone: (offset in the file's image, why) of each site that was not replaced.
    trampoline_bytes: machine code that stands in for the sites.
    registers_saved: pushes in it: of two registers for an add, three for a swap.
    seconds: what planning and preparing took.
    """

    path: str
    adds: int
    swaps: int
    drops: int
    hooked: tuple[str, ...]
    left_alone: tuple[tuple[int, str], ...]
    trampoline_bytes: int
    registers_saved: int
    seconds: float


class InstallReport(NamedTuple):
    """What `install` did: one `ImageReport` for the interpreter and for each extension.

    lulls: whether the sites become again what they were while one thread at a time runs.
    """

    images: tuple[ImageReport, ...]
    lulls: bool

    @property
    def sites(self) -> int:
        """Replaced instructions in all files."""
        return sum(image.adds + image.swaps + image.drops for image in self.images)

    @property
    def seconds(self) -> float:
        """What planning and preparing took."""
        return sum(image.seconds for image in self.images)

    def as_dict(self) -> dict[str, Any]:
        """For json."""
        images = [image._asdict() for image in self.images]
        return {"images": images, "lulls": self.lulls, "sites": self.sites, "seconds": self.seconds}

    def __repr__(self) -> str:
        left = sum(len(image.left_alone) for image in self.images)
        return (
            f"<InstallReport: {self.sites} sites in {len(self.images)} files, {left} left alone, "
            f"{self.seconds * 1000:.0f} ms>"
        )


# For tests, "never": what is patched where there are lulls, but none begins.
_LULLS: dict[str, bool | None] = {"": None, "0": False, "1": True, "never": True}


def lulls_wanted() -> bool | None:
    """What the environment says of lulls: REFBUF_LULLS is 1 or 0; None if it says nothing."""
    value = os.environ.get("REFBUF_LULLS", "")
    if value not in _LULLS:
        raise UnsupportedError(f"REFBUF_LULLS must be 1, 0 or empty, not {value!r}")
    return _LULLS[value]


def _image_report(found: dict[str, Any]) -> ImageReport:
    hooked = ("_Py_DecRefShared",) if found["hooked"] else ()
    found = found | {"hooked": hooked}
    return ImageReport(**found | {"left_alone": tuple(found["left_alone"])})


def loaded_extensions() -> Iterator[str]:
    """Files of the extension modules that are loaded."""
    suffixes = tuple(_imp.extension_suffixes())
    for module in list(sys.modules.values()):
        path = getattr(getattr(module, "__spec__", None), "origin", None)
        if isinstance(path, str) and path.endswith(suffixes):
            yield path


_create_dynamic: Callable[..., Any] = _imp.create_dynamic
_report: InstallReport | None = None
#: Addresses of the trampolines that perf's file and gdb name; None where none is wanted.
_named: set[int] | None = None


def _name_trampolines() -> None:
    """For gdb, and for perf, which looks for names of generated code in this file (perf-report(1), JIT)."""
    if _named is None:
        return
    new = [trampoline for trampoline in _refbuf.live_trampolines() if trampoline[0] not in _named]
    with open(f"/tmp/perf-{os.getpid()}.map", "a") as names:
        names.writelines(f"{address:x} {size:x} {name}\n" for address, size, name in new)
    _refbuf.live_tell_gdb(new)
    _named.update(address for address, _, _ in new)


def _load_and_patch(spec: Any) -> None:
    # Loaded first, so that it is patched before it runs; the interpreter then gets the same file.
    try:
        if _refbuf.live_load_extension(spec.origin, sys.getdlopenflags()) is not None:
            _name_trampolines()
    except OSError:
        pass  # The interpreter says it better.
    except UnsupportedError as error:
        _warn(f"refbuf: {error}: its own counts are left alone")


def _warn(what: str) -> None:
    import warnings

    try:
        warnings.warn(what, RuntimeWarning, stacklevel=3)
    except RuntimeWarning:
        # By python -W error. But the program's import has not failed.
        if sys.stderr is not None:
            print(what, file=sys.stderr)


_create_and_patch: Callable[..., Any] = _refbuf.live_creator(sys.audit, _load_and_patch, _create_dynamic)


def install(extensions: bool = True, perf_map: bool = False, lulls: bool | None = None) -> InstallReport:
    """Has the interpreter count through the buffers, and its extension modules as well.

    extensions: also those that are loaded, and those that will be.
    lulls: whether the sites become again what they were while one thread at a time runs, and
        jumps as soon as others run; if None, as the environment variable REFBUF_LULLS says, 1 or
        0, and without it where the processor's atomic operations cost less than a jump and back.
        None where `_Py_DecRefShared` is of a form that could not be changed while others run.
    perf_map: perf and gdb can name the trampolines: they are listed in /tmp/perf-PID.map, in
        which other generated code of the process may be as well, though not in that of a forked
        child; gdb is told through its interface for generated code.

    Again where it is installed: the report of the first time, whatever is asked for. Raises UnsupportedError,
    and changes nothing, where live mode cannot be used: not x86-64 Linux, a build with a
    GIL or a debug build, memory that may not be changed, or while other Python threads run.
    """
    global _report, _named
    if _report is not None and installed():
        return _report
    if lulls is None:
        lulls = lulls_wanted()
    found = _refbuf.live_install(list(loaded_extensions()) if extensions else [], lulls)
    if os.environ.get("REFBUF_LULLS") == "never":
        _refbuf.live_hold_lull(False)
    images = tuple(_image_report(image) for image in found)
    # Before what may fail, so that it is known to be installed.
    _report = InstallReport(images, _refbuf.live_lulls() is not None)
    if extensions:
        _imp.create_dynamic = _create_and_patch
    if perf_map:
        _named = set()
        _name_trampolines()
    return _report


def record(room: int) -> None:
    """Has it recorded what the interpreter and its extension modules count, up to `room` counts of each
    thread, from now on; `recorded` ends that. Raises UnsupportedError as `install` does."""
    _refbuf.live_record(list(loaded_extensions()), room)
    _imp.create_dynamic = _create_and_patch


def recorded(about: dict[str, str]) -> tuple[bytes, int]:
    """Ends the recording. Returns the trace, and how many counts found no memory of their thread's.

    The interpreter stays patched: other threads may still run. ValueError where no trace has room for it."""
    return _refbuf.live_recorded(about)


def uninstall() -> None:
    """Puts back every byte that was changed. Nothing happens where nothing is installed.

    Raises UnsupportedError, and changes nothing, while other Python threads run.
    """
    global _report, _named
    if not installed():
        return
    _refbuf.live_uninstall()
    _imp.create_dynamic = _create_dynamic
    _report, _named = None, None


def installed() -> bool:
    """Whether the interpreter counts through the buffers."""
    return _refbuf.live_installed()
