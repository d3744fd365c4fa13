"""The picture: throughput of each workload with the most threads, stock beside live."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .._bench.axes import IDEAL
from .measure import LIVE, STOCK, VARIANTS, Row

# Those of `bench` for stock and refbuf; the others are of `bench --extensions`.
_COLOURS = {
    STOCK: "#5b5b5b",
    LIVE: "#0072b2",
    "shim": "#0072b2",
    "stock-live": "#e69f00",
    "shim-live": "#009e73",
}
# Of the bars of a workload together.
_THICKNESS = 0.76
_TITLE = "Pure Python on shared objects"
# Inches of a workload with two bars.
_HEIGHT = 0.36


def draw(rows: list[Row], meta: dict[str, Any], suffix: str, title: str = _TITLE) -> bytes:
    """A file's content: png, svg or pdf by `suffix`."""
    workloads = list(dict.fromkeys(row.workload for row in rows))
    variants = list(dict.fromkeys(row.variant for row in rows))
    height = _HEIGHT * len(workloads) * len(variants) / len(VARIANTS) + 1.9
    figure = Figure(figsize=(7.4, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _bars(axes, workloads, variants, rows, meta["cpus"])
    _frame(figure, axes, rows, meta, height, title)
    content = io.BytesIO()
    figure.savefig(content, format=suffix)
    return content.getvalue()


def _bars(axes: Axes, workloads: list[str], variants: list[str], rows: list[Row], cpus: int) -> None:
    most = max(row.threads for row in rows)
    # One measure for both: bars of a workload compare as throughputs do.
    unit = {row.workload: row.pairs_per_second for row in rows if (row.variant, row.threads) == (STOCK, 1)}
    thickness = _THICKNESS / len(variants)
    for place, variant in enumerate(variants):
        found = {
            row.workload: row.pairs_per_second / unit[row.workload]
            for row in rows
            if (row.variant, row.threads) == (variant, most)
        }
        bars = axes.barh(
            [number + (place + 0.5) * thickness - _THICKNESS / 2 for number in range(len(workloads))],
            [found[workload] for workload in workloads],
            thickness,
            color=_COLOURS[variant],
            label=variant,
        )
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7, color=_COLOURS[variant])
    axes.axvline(1, color="#9a9a9a", linewidth=0.9, zorder=0)
    ideal = min(most, cpus)
    if ideal > 1:
        axes.axvline(ideal, label=f"ideal: {ideal}", zorder=0, **IDEAL)
    axes.set_yticks(range(len(workloads)), workloads)
    axes.set_ylim(len(workloads) - 0.4, -0.6)
    axes.margins(x=0.08)


def _frame(
    figure: Figure, axes: Axes, rows: list[Row], meta: dict[str, Any], height: float, title: str
) -> None:
    """Title, legend and the names of the axes, at distances in inches."""

    def from_top(inches: float) -> float:
        return 1 - inches / height

    most = max(row.threads for row in rows)
    count = f"{most} thread" + ("s" if most != 1 else "")
    figure.text(0.012, from_top(0.12), f"{title} with {count}", fontsize=13, fontweight="bold", va="top")
    cpus = f"{meta['cpus']} CPU" + ("s" if meta["cpus"] != 1 else "")
    about = f"{meta['python_name']}, {meta['cpu']}, {cpus}"
    runs = f"refbuf {meta['version']}, medians of {meta['rounds']} rounds, {meta['seconds']:g} s a run"
    small = {"fontsize": 8.5, "color": "#555555", "va": "top", "linespacing": 1.4}
    figure.text(0.012, from_top(0.41), f"{about}\n{runs}", **small)
    figure.legend(
        loc="upper left",
        bbox_to_anchor=(0.004, from_top(0.76)),
        ncols=len(_COLOURS),
        frameon=False,
        fontsize=9,
        columnspacing=1.6,
    )
    axes.set_xlabel("throughput of all threads, one thread of stock = 1", fontsize=9.5)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#bbbbbb")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    figure.tight_layout(rect=(0.005, 0, 0.995, from_top(1.02)))
