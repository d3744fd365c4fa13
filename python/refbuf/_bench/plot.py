"""The picture: throughput over threads, one small panel for each workload."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .axes import IDEAL, dress
from .measure import Row

# Colours that most people with a colour deficiency can tell apart (Okabe, Ito),
# and markers for those who cannot, or print in grey.
_STYLES: dict[str, dict[str, Any]] = {
    "stock": {"color": "#5b5b5b", "marker": "s"},
    "refbuf": {"color": "#0072b2", "marker": "o"},
    "refbuf-call": {"color": "#e69f00", "marker": "^"},
    # Not attached: dashed.
    "detached": {"color": "#009e73", "marker": "D", "linestyle": (0, (5, 1.5))},
    "arc": {"color": "#cc79a7", "marker": "v", "linestyle": (0, (5, 1.5))},
    "attach-per-clone": {"color": "#d55e00", "marker": "x", "linestyle": (0, (5, 1.5))},
    "pool": {"color": "#56b4e9", "marker": "+", "linestyle": (0, (5, 1.5))},
}
_CAPTIONS = {
    "shared": "one object",
    "literals": "32 constants, nested calls",
    "zipf": "4,096 objects, few often",
    "wide": "1,000,000 objects",
    "private": "each thread's own objects",
    "handoff": "dropped by another thread",
    "container": "walks a list and a dict",
    "random": "10,000 objects, held a while",
}
_COLUMNS = 4
_LEGEND_COLUMNS = 4


def draw(rows: list[Row], meta: dict[str, Any], suffix: str) -> bytes:
    """A file's content: png, svg or pdf by `suffix`."""
    workloads = list(dict.fromkeys(row.workload for row in rows))
    columns = min(_COLUMNS, len(workloads))
    lines = -(-len(workloads) // columns)
    # Wide enough for the title above a single panel.
    width, height = max(3.0 * columns + 0.6, 7.4), 2.6 * lines + 1.5
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, workload in zip(panels, workloads, strict=False):
        _panel(axes, workload, [row for row in rows if row.workload == workload])
    for axes in panels[len(workloads) :]:
        axes.set_visible(False)
    _frame(figure, rows, meta, height)
    content = io.BytesIO()
    figure.savefig(content, format=suffix)
    return content.getvalue()


def _panel(axes: Axes, workload: str, rows: list[Row]) -> None:
    threads = sorted({row.threads for row in rows})
    # The best that threads could do: the fastest of one, times their number.
    alone = max(row.pairs_per_second for row in rows if row.threads == 1) / 1e6
    axes.plot(threads, [alone * count for count in threads], zorder=1, **IDEAL)
    for variant in dict.fromkeys(row.variant for row in rows):
        points = [(row.threads, row.pairs_per_second / 1e6) for row in rows if row.variant == variant]
        axes.plot(*zip(*points, strict=True), linewidth=1.8, markersize=5, zorder=2, **_STYLES[variant])
    axes.set_title(workload, fontsize=10.5, fontweight="bold", loc="left")
    axes.set_title(_CAPTIONS[workload], fontsize=8, color="#666666", loc="right")
    dress(axes, threads)


def _frame(figure: Figure, rows: list[Row], meta: dict[str, Any], height: float) -> None:
    """Title, legend and the names of the axes, at distances in inches."""

    def from_top(inches: float) -> float:
        return 1 - inches / height

    figure.text(
        0.012,
        from_top(0.12),
        "Throughput of reference counting over threads",
        fontsize=13,
        fontweight="bold",
        va="top",
    )
    cpus = f"{meta['cpus']} CPU" + ("s" if meta["cpus"] != 1 else "")
    about = f"{meta['python_name']}, {meta['cpu']}, {cpus}"
    runs = f"refbuf {meta['version']}, medians of {meta['rounds']} rounds, {meta['seconds']:g} s a run"
    small = {"fontsize": 8.5, "color": "#555555", "va": "top", "linespacing": 1.4}
    figure.text(0.012, from_top(0.41), f"{about}\n{runs}", **small)
    variants = list(dict.fromkeys(row.variant for row in rows))
    handles = [Line2D([], [], linewidth=1.8, markersize=5, label=name, **_STYLES[name]) for name in variants]
    handles.append(Line2D([], [], label="ideal: the fastest single thread × threads", **IDEAL))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.004, from_top(0.76)),
        ncols=min(len(handles), _LEGEND_COLUMNS),
        frameon=False,
        fontsize=9,
        columnspacing=1.6,
        handlelength=2.2,
    )
    figure.supxlabel("threads", fontsize=9.5, y=0.1 / height)
    top = from_top(1.02 if len(handles) <= _LEGEND_COLUMNS else 1.24)
    figure.supylabel("million pairs/s, all threads", fontsize=9.5, x=0.012, y=top / 2 + 0.1 / height)
    figure.tight_layout(rect=(0.005, 0, 1, top), w_pad=1.4, h_pad=1.4)
