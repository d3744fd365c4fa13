"""What the pictures over numbers of threads have in common."""

from typing import Any

from matplotlib.axes import Axes

# The best that threads could do.
IDEAL: dict[str, Any] = {"color": "#9a9a9a", "linewidth": 0.9, "linestyle": (0, (4, 3))}
# With more threads than this, both scales are logarithmic: the ideal is a
# straight line there too, and what is slow stays visible.
LINEAR_THREADS = 8


def dress(axes: Axes, threads: list[int]) -> None:
    """Scales, ticks and frame of one panel."""
    if threads[-1] > LINEAR_THREADS:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    else:
        axes.set_xlim(threads[0] - 0.1 * threads[-1], threads[-1] * 1.1)
        axes.set_ylim(bottom=0)
    axes.set_xticks(threads, [str(count) for count in threads], minor=False)
    axes.minorticks_off()
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#bbbbbb")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
