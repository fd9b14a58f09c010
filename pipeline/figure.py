"""The paper's Figure 1 (lower half) for one model, before and after the repair, as SVG.

For each BatchNorm: max(moving_var / real_var, real_var / moving_var), the geometric mean over its channels. 1 is a
BatchNorm that divides by the variance that it really sees.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from .repair_report import BatchNormOutcome

# Stands for the colour of the page's text until the SVG is part of the page.
_TEXT_COLOUR = "#010203"
_BEFORE, _AFTER = "#d1495b", "#2e86ab"
_STEPS = (1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
_MIN_GAP = 0.07  # between two ticks, as a share of the axis


def mismatch_figure(outcomes: Sequence[BatchNormOutcome]) -> str:
    """Draws the figure.

    Args:
        outcomes: the BatchNorms in the order of the graph; those without a measured mismatch are left out.

    Returns:
        An `<svg>` element whose text takes the colour of the page.
    """
    rows = [(o.before.mismatch, o.after.mismatch) for o in outcomes if o.before.mismatch and o.after.mismatch]
    positions = range(1, len(rows) + 1)

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        axes.plot(positions, [before for before, _ in rows], "o-", color=_BEFORE, label="as trained", markersize=4)
        axes.plot(positions, [after for _, after in rows], "s-", color=_AFTER, label="repaired", markersize=4)
        mismatch_axis(axes, [value for row in rows for value in row], "BatchNorm, from the input on")
        axes.legend(frameon=False)

    return figure_svg(draw)


def mismatch_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """Makes an axis of stored against real variance of a plot: logarithmic, from 1 on.

    Args:
        axes: the plot.
        values: what is drawn in it.
        label: of the horizontal axis, which counts.
    """
    axes.axhline(1.0, color=_TEXT_COLOUR, linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    top = max(1.2, max(values, default=1.0) * 1.1)
    axes.set_ylim(0.97, top)
    axes.yaxis.set_major_locator(FixedLocator(_ticks(top)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label)
    axes.set_ylabel("stored against real variance")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def figure_svg(draw: Callable[[Sequence[Axes]], None], widths: Sequence[int] = (1,)) -> str:
    """Draws a figure of one or more plots side by side.

    Args:
        draw: is given the plots.
        widths: of the plots, in relation to each other.

    Returns:
        An `<svg>` element whose text takes the colour of the page.
    """
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "vsfix",
        "font.family": "sans-serif",
        "text.color": _TEXT_COLOUR,
        "axes.labelcolor": _TEXT_COLOUR,
        "axes.edgecolor": _TEXT_COLOUR,
        "xtick.color": _TEXT_COLOUR,
        "ytick.color": _TEXT_COLOUR,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        draw(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(_TEXT_COLOUR, "currentColor")


def _ticks(top: float) -> list[float]:
    """The steps up to `top` that stand far enough apart on a logarithmic axis from 1 on for their labels."""
    ticks = [_STEPS[0]]
    for step in _STEPS[1:]:
        if step <= top and math.log(step / ticks[-1]) >= _MIN_GAP * math.log(top):
            ticks.append(step)
    return ticks
