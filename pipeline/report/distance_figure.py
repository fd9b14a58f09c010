"""How far what each layer gives is from the noise-averaged network, before and after the repair."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from vsfix.pipeline.inspection.noise_study import LayerRow

from .figure import AFTER, BEFORE, page_figure

_MANY = 60  # layers from which on a line says more than its points
_LEAST = 1e-6  # a distance that is drawn as it; rounding moves a layer by no more
_WIDEN = 1.5  # from the outer points to the ends of the axis, as a factor
_LABEL = "Distance of each layer from the noise-averaged network; the table below holds the numbers"


def distance_figure(layers: Sequence[LayerRow]) -> Markup:
    """Draws the figure in two widths, of which the page shows one; empty where there are no layers.

    Args:
        layers: in the order of the graph.
    """
    if not layers:
        return Markup("")

    def draw(axes: Axes) -> None:
        sides = ([row.before for row in layers], [row.after for row in layers])
        for values, colour, marker in zip(sides, (BEFORE, AFTER), ("o", "s"), strict=True):
            heights = [max(value, _LEAST) for value in values]
            size = 4 if len(heights) <= _MANY else 0
            axes.plot(range(1, len(heights) + 1), heights, marker=marker, color=colour, markersize=size)
        drawn = [max(value, _LEAST) for values in sides for value in values]
        axes.set_yscale("log")
        low, high = min(drawn) / _WIDEN, max(drawn) * _WIDEN
        axes.set_ylim(low, high)
        _ticks(axes, low, high)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0.5, len(layers) + 0.5)
        axes.set_xlabel("layer, from the input on")
        axes.set_ylabel("distance from the average")

    wide = page_figure(draw, "distance", _LABEL, (9, 3.2), "wide")
    return wide + page_figure(draw, "distance-narrow", _LABEL, (4, 3), "narrow")


def _ticks(axes: Axes, low: float, high: float) -> None:
    """Labels of a logarithmic axis of any length: three of each power of ten, or one, or the numbers between."""
    steps = [factor * 10.0**power for power in range(-6, 13) for factor in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    if len(inside) > 8:
        powers = [10.0**power for power in range(-6, 13) if low <= 10.0**power <= high]
        inside = powers[:: 1 + len(powers) // 8]
    if len(inside) >= 2:
        axes.yaxis.set_major_locator(FixedLocator(inside))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
