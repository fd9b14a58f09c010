"""The metric by method and number of images, with its intervals, over the line of the model as trained."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.score_difference import Score

from .figure import MARKERS, SERIES, page_figure, spaced
from .number_text import headed

_APART = 0.025  # of lines with points at the same number of images, as a share of the axis
_WIDEN = 1.6  # from the outer points to the ends of the axis, as a factor


def accuracy_lines(rows: Sequence[AccuracyRow]) -> dict[str, list[AccuracyRow]]:
    """The rows of each model in the order of their images: one line of the figure, or a level where it took none."""
    lines: dict[str, list[AccuracyRow]] = {}
    for row in rows:
        lines.setdefault(row.model, []).append(row)
    return {name: sorted(line, key=lambda row: row.images or 0) for name, line in lines.items()}


def accuracy_figure(rows: Sequence[AccuracyRow]) -> Markup:
    """Draws the figure; empty where no row has a number of images."""
    images = sorted({row.images for row in rows if row.images})
    if not images:
        return Markup("")
    low, high = images[0] / _WIDEN, images[-1] * _WIDEN
    score = rows[0].score

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        lines = accuracy_lines(rows).values()
        for number, line in enumerate(lines):
            aside = (high / low) ** (_APART * (number - (len(lines) - 1) / 2))
            _draw_line(axes, line, SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)], aside)
        axes.xaxis.set_major_locator(FixedLocator(spaced([float(count) for count in images], low, high)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("calibration images")
        axes.set_ylabel(f"{score.metric}, {score.unit}" if score.unit else score.metric)

    name = headed(score.metric)
    return page_figure(draw, "accuracy", f"{name} by method and number of images, as in the table below", (4.6, 3))


def _draw_line(axes: Axes, line: Sequence[AccuracyRow], colour: str, marker: str, aside: float) -> None:
    """Points with their intervals and a line through them; a level with a band for what took no images.

    The points stand aside by a factor, so that those of another line do not hide them.
    """
    points = [row for row in line if row.images and isfinite(row.score.value)]
    for row in line:
        if not row.images and isfinite(row.score.value):
            axes.axhline(row.score.value, color=colour, linestyle="--", linewidth=1.2)
            axes.axhspan(*_ends(row.score), color=colour, alpha=0.15, linewidth=0)
    if points:
        heights = [row.score.value for row in points]
        below = [row.score.value - _ends(row.score)[0] for row in points]
        above = [_ends(row.score)[1] - row.score.value for row in points]
        axes.errorbar(
            [aside * (row.images or 0) for row in points],
            heights,
            yerr=[below, above],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=4,
            linewidth=1.2,
        )


def _ends(score: Score) -> tuple[float, float]:
    """Of the interval of a metric; the value itself where nothing is known of it."""
    return (score.low, score.high) if isfinite(score.low) and isfinite(score.high) else (score.value, score.value)
