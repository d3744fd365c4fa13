"""The picture: estimated throughput, and coherence misses, over threads."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .._lab.plot import STYLES
from .estimate import Row


def draw(rows: Sequence[Row], meta: dict[str, Any], suffix: str) -> bytes:
    """A file's content: png, svg or pdf by `suffix`."""
    figure = Figure(figsize=(10.2, 4.6), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _curves(left, rows, [row.pairs_per_second / 1e6 for row in rows])
    left.set_title("million pairs/s, all threads, estimated", fontsize=9.5, loc="left")
    left.set_yscale("log")
    _curves(right, rows, [row.misses_per_1000_pairs for row in rows])
    right.set_title("coherence misses in 1,000 pairs", fontsize=9.5, loc="left")
    # From 0, which most schemes reach somewhere.
    right.set_yscale("symlog", linthresh=0.1)
    right.set_ylim(bottom=0)
    figure.text(
        0.012,
        0.975,
        "Reference counting over threads: a simulation",
        fontsize=13,
        fontweight="bold",
        va="top",
    )
    about = f"{meta['workload'] or meta['trace']}; costs of {meta['cpu']}; refbuf {meta['version']}"
    figure.text(0.012, 0.905, about, fontsize=8.5, color="#555555", va="top")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 0.86), w_pad=2)
    content = io.BytesIO()
    figure.savefig(content, format=suffix)
    return content.getvalue()


def _curves(axes: Axes, rows: Sequence[Row], values: Sequence[float]) -> None:
    threads = sorted({row.threads for row in rows})
    for scheme in dict.fromkeys(row.scheme for row in rows):
        points = [
            (row.threads, value) for row, value in zip(rows, values, strict=True) if row.scheme == scheme
        ]
        axes.plot(*zip(*points, strict=True), label=scheme, linewidth=1.8, markersize=5, **STYLES[scheme])
    axes.set_xscale("log", base=2)
    axes.set_xticks(threads, [str(count) for count in threads], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("threads", fontsize=9)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#bbbbbb")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
