"""Where a benchmark ran: what a reader of its numbers has to know."""

import os
import platform
import sys
import sysconfig
from datetime import UTC, datetime

from .. import __version__, stats
from .._refbuf import build_info


def cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def gil_enabled() -> bool:
    """Whether threads take turns: always on usual builds, by choice on free-threaded ones."""
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def free_threaded() -> bool:
    """Whether this interpreter was built to run without a GIL."""
    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def python_name() -> str:
    """The interpreter in a few words."""
    kind = "free-threaded" if free_threaded() else "with a GIL"
    if free_threaded() and gil_enabled():
        kind = "free-threaded, but with the GIL enabled"
    return f"{platform.python_implementation()} {platform.python_version()} {kind}"


def load_average() -> list[float] | None:
    """Of the last 1, 5 and 15 minutes."""
    try:
        return [round(load, 2) for load in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def describe() -> dict[str, object]:
    """All of it, at the start of a benchmark, as JSON has it."""
    info = build_info()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "free_threaded": free_threaded(),
        "gil_enabled": gil_enabled(),
        "buffered": info["buffered"],
        "inline": info["inline"],
        "barrier": info["barrier"],
        "slots": stats().slots,
        "heartbeat_ms": info["heartbeat_ms"],
        "cpu": cpu_model(),
        "cpus": cpus(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "compiler": platform.python_compiler(),
        "load_average": load_average(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
