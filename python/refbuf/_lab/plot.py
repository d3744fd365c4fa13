"""The picture: throughput over threads, one small panel for each program."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .._bench.axes import IDEAL, dress
from .measure import Row

# Colours that most people with a colour deficiency can tell apart (Okabe, Ito),
# and markers for those who cannot, or print in grey.
STYLES: dict[str, dict[str, Any]] = {
    "plain": {"color": "#5b5b5b", "marker": "s"},
    "atomic": {"color": "#d55e00", "marker": "x"},
    "thread-count": {"color": "#cc79a7", "marker": "v"},
    "deltas": {"color": "#e69f00", "marker": "^"},
    "biased": {"color": "#56b4e9", "marker": "D"},
    "credits": {"color": "#0072b2", "marker": "o"},
}
_CAPTIONS = {
    "calls": "literals of nested calls",
    "private": "each thread's own cells",
    "graph": "walked and rewired",
    "pipeline": "made here, freed there",
    "churn": "short lives",
    "zipf": "4,096 cells, few often",
}
_COLUMNS = 3


def draw(rows: list[Row], meta: dict[str, Any], suffix: str) -> bytes:
    """A file's content: png, svg or pdf by `suffix`."""
    workloads = list(dict.fromkeys(row.workload for row in rows))
    columns = min(_COLUMNS, len(workloads))
    lines = -(-len(workloads) // columns)
    width, height = max(3.2 * columns + 0.6, 7.4), 2.7 * lines + 1.4
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
    axes.plot(threads, threads, zorder=1, **IDEAL)
    for scheme in dict.fromkeys(row.scheme for row in rows):
        points = [(row.threads, row.throughput) for row in rows if row.scheme == scheme]
        axes.plot(*zip(*points, strict=True), linewidth=1.8, markersize=5, zorder=2, **STYLES[scheme])
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
        "The schemes of 2007: throughput over threads",
        fontsize=13,
        fontweight="bold",
        va="top",
    )
    runs = f"medians of {meta['rounds']} rounds, {meta['seconds']:g} s a run"
    about = f"{meta['cpu']}, {meta['cpus']} CPUs, refbuf {meta['version']}, {runs}"
    figure.text(0.012, from_top(0.41), about, fontsize=8.5, color="#555555", va="top")
    schemes = list(dict.fromkeys(row.scheme for row in rows))
    handles = [Line2D([], [], linewidth=1.8, markersize=5, label=name, **STYLES[name]) for name in schemes]
    handles.append(Line2D([], [], label="ideal", **IDEAL))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.004, from_top(0.58)),
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        columnspacing=1.2,
        handlelength=1.8,
    )
    figure.supxlabel("threads", fontsize=9, y=0.01)
    figure.supylabel("throughput, plain's one thread = 1", fontsize=9, x=0.006)
    figure.tight_layout(rect=(0.02, 0.02, 1, from_top(0.9)))
