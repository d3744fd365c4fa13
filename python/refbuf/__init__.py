"""Buffered reference counts for free-threaded CPython.

Every thread keeps a small table of *credits*, references that it has already
counted on an object, and spends and takes back credits without an atomic
operation. Extensions count through it by `refbuf.h` (see `get_include`), or as they are,
compiled anew (see `get_cflags`).

On builds of CPython with a GIL everything here works too. Attached threads take
CPython's own path there; threads that are not attached have tables on any build.
"""

import os.path

from ._stats import Stats

try:
    from ._refbuf import _C_API as _C_API  # other extensions import refbuf._C_API
    from ._refbuf import __version__, flush, flush_all, refcount
    from ._refbuf import configure as _configure
    from ._refbuf import stats as _stats_of_native
except (ImportError, SystemError) as error:  # the latter from a build for another interpreter
    from ._missing import explain

    raise explain(error) from None

from . import workloads
from ._live import InstallReport, UnsupportedError, install, installed, uninstall

__all__ = [
    "InstallReport",
    "Stats",
    "UnsupportedError",
    "__version__",
    "configure",
    "flush",
    "flush_all",
    "get_cflags",
    "get_cmake_dir",
    "get_include",
    "get_pkgconfig_dir",
    "get_shimdir",
    "install",
    "installed",
    "refcount",
    "stats",
    "uninstall",
    "workloads",
]


def stats() -> Stats:
    """The sums over the buffers of all threads; `Stats` explains each."""
    return Stats(**_stats_of_native())


def configure(
    *,
    slots: int | None = None,
    heartbeat_ms: float | None = None,
    first_batch: int | None = None,
    largest_batch: int | None = None,
    reserve: int | None = None,
    account_slots: int | None = None,
) -> None:
    """Changes what is given and leaves the rest; an error changes nothing.

    slots: slots of each thread's buffer, a power of two up to 1,024, which is usual (16 bytes each).
    heartbeat_ms: milliseconds between two beats; an object whose last
        reference is gone is finalized within two. May be changed at any time.
    first_batch: credits that a thread first counts on an object, a power of two.
    largest_batch: what a batch is doubled up to, a power of two.
    reserve: references that an account has counted in advance on its object, for
        threads that are not attached, 1 to 2**24. For objects enrolled from now on.
    account_slots: slots of each thread's buffer of accounts, a power of two up to 128.

    Raises TypeError for what is no number, ValueError for a value that makes no sense, and RuntimeError where
    slots, account_slots or a batch comes too late: once a thread has a buffer.
    """
    whole = {
        "slots": slots,
        "first_batch": first_batch,
        "largest_batch": largest_batch,
        "reserve": reserve,
        "account_slots": account_slots,
    }
    try:
        _configure(heartbeat_ms=heartbeat_ms, **whole)
    except OverflowError:
        # Negative, or beyond any machine word: nonsense like other nonsense.
        given = ", ".join(f"{name}={value}" for name, value in whole.items() if value is not None)
        raise ValueError(f"a value is out of all range: {given}") from None


def get_cflags(shim: bool = False) -> list[str]:
    """The flags with which extensions for this interpreter are compiled: `-I` and the
    directories of `refbuf.h` and `Python.h`, one flag a directory.

    shim: before those the directory whose `Python.h` puts refbuf's counts in the place of
        CPython's, so that an extension's source stays as it is. It has no effect behind Python's
        own: in setuptools that is `include_dirs=[get_shimdir()]`, and not `extra_compile_args`.

    Raises FileNotFoundError where the headers are not installed.
    """
    import sysconfig  # Here: it takes as long as all that importing refbuf needs.

    paths = sysconfig.get_paths()
    directories = [get_include(), paths["include"], paths["platinclude"]]
    if shim:
        directories.insert(0, get_shimdir())
    # The two directories of Python's are one on most systems.
    return [f"-I{directory}" for directory in dict.fromkeys(directories)]


def get_shimdir() -> str:
    """The absolute path of the directory that comes before Python's own headers, for
    extensions whose source stays as it is. Raises FileNotFoundError where it is not installed."""
    directory = os.path.join(get_include(), "shim")
    if not os.path.isfile(os.path.join(directory, "Python.h")):
        raise FileNotFoundError(f"Python.h is not in {directory}: reinstall refbuf")
    return directory


def get_include() -> str:
    """The absolute path of the directory that holds `refbuf.h`. Raises FileNotFoundError where it is
    not installed."""
    package = os.path.dirname(os.path.abspath(__file__))
    # In the package when installed from a wheel; at the top of a source tree.
    for place in ("include", os.path.join("..", "..", "include")):
        directory = os.path.normpath(os.path.join(package, place))
        if os.path.isfile(os.path.join(directory, "refbuf.h")):
            return directory
    raise FileNotFoundError(f"refbuf.h is not in {os.path.join(package, 'include')}: reinstall refbuf")


def get_cmake_dir() -> str:
    """The absolute path of the directory that CMake's `find_package(refbuf)` needs, as `refbuf_DIR`.
    Raises FileNotFoundError where it is not installed."""
    return _directory_of("cmake", "refbuf-config.cmake")


def get_pkgconfig_dir() -> str:
    """The absolute path of the directory for `PKG_CONFIG_PATH`: of `refbuf.pc` and `refbuf-shim.pc`.
    Raises FileNotFoundError where it is not installed."""
    return _directory_of("pkgconfig", "refbuf.pc")


def _directory_of(name: str, file: str) -> str:
    """A directory of this package that holds a file."""
    directory = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    if not os.path.isfile(os.path.join(directory, file)):
        raise FileNotFoundError(f"{file} is not in {directory}: reinstall refbuf")
    return directory
