"""The distribution of the runs of each model: every run, the middle half, p50 and p99."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from .figure import AFTER, BEFORE, TEXT_COLOUR, page_figure, spaced
from .sections import LatencySeries

DRAWN = 150  # runs of one series; more are drawn by their quantiles
_LETTERS = 46  # of a name above its row
_SPREAD = 5.0  # slowest over fastest from which on the axis is logarithmic
_STEPS = tuple(factor * 10.0**power for power in range(-4, 6) for factor in (1, 2, 5))


def latency_figure(series: Sequence[LatencySeries]) -> Markup:
    """Draws one row for each series, from the top down."""
    everything = np.concatenate([np.asarray(one.milliseconds, dtype=np.float64) for one in series])
    low, high = float(everything.min()), float(everything.max())

    def draw(axes: Axes) -> None:
        for row, one in enumerate(series):
            _draw_row(axes, row, one)
        axes.set_ylim(len(series) - 0.55, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("milliseconds for one run")
        if low > 0 and high / low > _SPREAD:
            axes.set_xscale("log")
            axes.set_xticks(spaced(_STEPS, low, high))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, 1.05 * high if high else 1)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    return page_figure(draw, "latency", "Latency of each model; the table below holds p50 and p99", _size(len(series)))


def p50_p99(series: LatencySeries) -> tuple[float, float]:
    """The median and the 99th percentile of the runs, in milliseconds."""
    p50, p99 = np.percentile(series.milliseconds, [50, 99])
    return float(p50), float(p99)


def _draw_row(axes: Axes, row: int, series: LatencySeries) -> None:
    """The runs as points, the middle half as a box, p50 as a line, p99 as a diamond, the name above."""
    times = np.asarray(series.milliseconds, dtype=np.float64)
    drawn = times if times.size <= DRAWN else np.quantile(times, np.linspace(0, 1, DRAWN))
    heights = row + 0.16 * np.random.default_rng(0).uniform(-1, 1, drawn.size)  # apart from each other, and no more
    axes.plot(drawn, heights, "o", color=AFTER, alpha=0.35, markersize=2.5, markeredgewidth=0)
    quarter, three_quarters = np.percentile(times, [25, 75])
    axes.barh(row, three_quarters - quarter, left=quarter, height=0.4, fill=False, edgecolor=AFTER)
    p50, p99 = p50_p99(series)
    axes.plot([p50, p50], [row - 0.26, row + 0.26], color=TEXT_COLOUR, linewidth=1.8)
    axes.plot([p99], [row], marker="D", color=BEFORE, markersize=5)
    axes.text(0, row - 0.33, _title(series), transform=axes.get_yaxis_transform(), va="bottom", fontsize=9)


def _title(series: LatencySeries) -> str:
    """The batch size and the end of the name, where names differ."""
    name = series.name if len(series.name) <= _LETTERS else f"…{series.name[1 - _LETTERS :]}"
    return f"{name}, batch {series.batch_size}"


def _size(rows: int) -> tuple[float, float]:
    """Of a figure with this many rows, in inches."""
    return (4.6, 0.7 + 0.55 * rows)
