"""The paper's Figure 1 (lower half) for one model, before and after the repair.

For each BatchNorm: max(moving_var / real_var, real_var / moving_var), the geometric mean over its channels. 1 is a
BatchNorm that divides by the variance that it really sees.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from .figure import AFTER, BEFORE, TEXT_COLOUR, page_figure, spaced

_STEPS = (1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0, 1e4, 1e6, 1e9)
_MANY = 60  # BatchNorms from which on a line says more than its points
_LABEL = "Stored against real variance of each BatchNorm; the table below holds the numbers"


def variance_ratio_figure(before: Sequence[float | None], after: Sequence[float | None]) -> Markup:
    """Draws the figure in two widths, of which the page shows one.

    Args:
        before: the variance ratio of each BatchNorm in the order of the graph; None where it was not measured.
        after: the same after a repair; empty where there was none.
    """

    def draw(axes: Axes) -> None:
        drawn = [value for values in (before, after) for value in values if value]
        for values, colour, marker in ((before, BEFORE, "o"), (after, AFTER, "s")):
            points = [(number, value) for number, value in enumerate(values, 1) if value]
            size = 4 if len(points) <= _MANY else 0
            axes.plot(*zip(*points, strict=True), marker=marker, color=colour, markersize=size) if points else None
        variance_ratio_axis(axes, drawn, "BatchNorm, from the input on")

    wide = page_figure(draw, "variance-ratio", _LABEL, (9, 3.2), "wide")
    return wide + page_figure(draw, "variance-ratio-narrow", _LABEL, (4, 3), "narrow")


def variance_ratio_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """Makes an axis of stored against real variance of a plot: logarithmic, from 1 on.

    Args:
        axes: the plot.
        values: what is drawn in it.
        label: of the horizontal axis, which counts.
    """
    axes.axhline(1.0, color=TEXT_COLOUR, linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    top = max(1.2, max(values, default=1.0) * 1.1)
    axes.set_ylim(0.97, top)
    axes.yaxis.set_major_locator(FixedLocator(spaced(_STEPS, 1.0, top)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label)
    axes.set_ylabel("stored against real variance")
