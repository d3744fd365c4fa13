"""The native module. What it offers to users is documented in `refbuf`."""

from collections.abc import Callable, Iterable
from typing import Any, TypedDict, final

__version__: str
WORKLOADS: list[str]
VARIANTS: list[str]
_C_API: object  # a capsule, for extensions

class _BuildInfo(TypedDict):
    buffered: bool
    barrier: str
    inline: bool
    heartbeat_ms: float

def flush() -> None: ...
def flush_all() -> None: ...
def refcount(object: object) -> int: ...
def stats() -> dict[str, int]: ...
def configure(
    *,
    slots: int | None = None,
    heartbeat_ms: float | None = None,
    first_batch: int | None = None,
    largest_batch: int | None = None,
    reserve: int | None = None,
    account_slots: int | None = None,
) -> None: ...
def build_info() -> _BuildInfo: ...

@final
class Run:
    """What a run of a workload came to.

    pairs: increments with their decrements, of all threads together.
    ns_per_pair: nanoseconds that a thread took for a pair.
    pairs_per_second: of all threads together.
    atomics_per_1000_pairs: atomic operations on counts; for variants other than
        refbuf's, what they are known to do.
    kept: the references that the workload random still held (keep=True).
    """

    @property
    def pairs(self) -> int: ...
    @property
    def ns_per_pair(self) -> float: ...
    @property
    def pairs_per_second(self) -> float: ...
    @property
    def atomics_per_1000_pairs(self) -> float: ...
    @property
    def kept(self) -> list[Any]: ...

def run_workload(
    workload: str,
    variant: str,
    objects: Iterable[object],
    *,
    mapping: dict[Any, Any] | None,
    threads: int,
    pairs: int | None,
    seconds: float | None,
    seed: int,
    keep: bool,
    factory: Callable[[], object],
    work_ns: float,
) -> Run: ...
def touch(object: object, variant: str, pairs: int) -> None: ...

# Live mode.

class UnsupportedError(RuntimeError):
    """Live mode cannot be used here, or now: the message says why. Nothing has been changed."""

def live_obstacle() -> str | None: ...
def live_installed() -> bool: ...
def live_examine(extensions: list[str], lulls: bool | None = None) -> dict[str, Any]: ...
def live_install(extensions: list[str], lulls: bool | None = None) -> list[dict[str, Any]]: ...
def live_record(extensions: list[str], room: int) -> None: ...
def live_recorded(about: dict[str, str]) -> tuple[bytes, int]: ...
def live_load_extension(path: str, flags: int) -> dict[str, Any] | None: ...
def live_creator(
    audit: Callable[..., None], prepare: Callable[[Any], None], create: Callable[..., Any]
) -> Callable[..., Any]: ...
def live_uninstall() -> None: ...
def live_hold_lull(lull: bool) -> bool: ...
def live_lulls() -> tuple[bool, int, float] | None: ...
def live_trampolines() -> list[tuple[int, int, str]]: ...
def live_tell_gdb(trampolines: list[tuple[int, int, str]]) -> None: ...

# The laboratory.

SCHEMES: list[str]
HASHES: list[str]
MOST_SIMULATED_THREADS: int
TABLES: dict[str, tuple[int, int]]  # slots of a scheme's table: usual, most

class _Outcome(TypedDict):
    ns_per_pair: float
    pairs_per_second: float
    atomics_per_1000_pairs: float
    misses_per_1000_pairs: float
    fills_per_1000_pairs: float
    hit_rate: float | None
    residue: int
    recorded_threads: int

@final
class Trace:
    """A trace that has been read. ValueError where the content is none.

    threads: for each its name, increments, decrements, events lost, objects made.
    replayed: the numbers of those that are replayed.
    simulate: replays it; `pairs` are those of each thread, `costs` as `calibrate_costs` has them.
    """

    def __new__(cls, content: bytes) -> Trace: ...
    @property
    def about(self) -> dict[str, str]: ...
    @property
    def objects(self) -> int: ...
    @property
    def immortal(self) -> int: ...
    @property
    def threads(self) -> list[tuple[str, int, int, int, int]]: ...
    @property
    def replayed(self) -> list[int]: ...
    def simulate(
        self,
        scheme: str,
        *,
        threads: int,
        slots: int,
        hash: str,
        pairs: int,
        costs: dict[str, float],
        work_ns: float,
        cache_bytes: int,
        turn_ns: float,
    ) -> _Outcome: ...

PROGRAMS: list[str]

class _Measured(TypedDict):
    pairs: int
    pairs_per_second: float
    ns_per_pair: float
    cpu_ns_per_pair: float
    atomics_per_1000_pairs: float
    most_cells: int
    header_bytes: int
    cell_bytes: int
    thread_bytes: int

class _Calibration(TypedDict):
    work: int
    unit_ns: float
    pair_ns: float
    counting_ns: float
    beside_work_ns: float
    share: float

def run_program(
    scheme: str,
    workload: str,
    *,
    threads: int,
    seconds: float,
    work: int,
    share: float,
    made_by_worker: bool,
    seed: int,
    heartbeat_ms: float,
    slots: int,
) -> _Measured: ...
def calibrate_program(workload: str, *, share: float, target: float, seed: int) -> _Calibration: ...
def reclaim_delays(scheme: str, *, samples: int, heartbeat_ms: float, slots: int) -> list[int | None]: ...
def calibrate_costs(cpus: int) -> tuple[dict[str, float], bool]: ...
def record_trace(
    workload: str,
    objects: Iterable[object],
    *,
    mapping: dict[Any, Any] | None,
    threads: int,
    pairs: int,
    seed: int,
    factory: Callable[[], object],
    room: int,
    about: list[tuple[str, str]],
) -> tuple[bytes, list[int]]: ...
def work_iteration_ns() -> float: ...
