"""What to say when the native module cannot be imported."""

import sys
import sysconfig
from pathlib import Path


def explain(error: ImportError | SystemError) -> ImportError:
    """The error to raise instead of `error`, or `error` where it is clear already."""
    install = f"install refbuf with {sys.executable} -m pip"
    if isinstance(error, SystemError) or error.path is not None:
        return ImportError(f"refbuf's native module cannot be loaded ({error}): {install}")
    if not isinstance(error, ModuleNotFoundError):
        # It was loaded, and has said itself why it refuses.
        return error
    wanted = _tag(sysconfig.get_config_var("EXT_SUFFIX") or "")
    found = sorted(_tag(path.name.removeprefix("_refbuf")) for path in _natives())
    if found:
        built = f"is built for {' and '.join(found)}, but this interpreter is {wanted}"
    else:
        built = f"is missing (this interpreter needs it built for {wanted})"
    return ImportError(f"refbuf's native module {built}: {install}")


def _natives() -> list[Path]:
    here = Path(__file__).parent
    return [*here.glob("_refbuf*.so"), *here.glob("_refbuf*.pyd")]


def _tag(suffix: str) -> str:
    """The part of a file's name that says for which interpreter it is."""
    return suffix.strip(".").rsplit(".", 1)[0]
