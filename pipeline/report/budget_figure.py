"""The cost of each step between a reference and a candidate: error under the signal, and the accuracy it moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vsfix.pipeline.comparison.error_budget import BudgetStep

from .figure import AFTER, BEFORE, TEXT_COLOUR, page_figure
from .number_text import decibels, headed, signed
from .sections import ErrorBudget

_FLOOR_DB = 160.0  # of the axis: float32 is exact to about 140 dB
_ROW = 0.42  # inches


def error_figure(budget: ErrorBudget, name: str) -> Markup:
    """One bar for each step: how far its error lies under the signal, in dB, the longer the larger the error."""
    steps = budget.steps
    floor = max([_FLOOR_DB, *(step.snr_db + 10 for step in steps if math.isfinite(step.snr_db))])

    def draw(axes: Axes) -> None:
        lengths = [_length(step, floor) for step in steps]
        axes.barh(range(len(steps)), lengths, left=-floor, height=0.55, color=AFTER)
        for row, step in enumerate(steps):
            axes.text(1.03, row, decibels(step.snr_db), transform=axes.get_yaxis_transform(), va="center")
        axes.set_xlim(-floor, 0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.set_xlabel("error against the signal, dB")
        _name_rows(axes, [step.step for step in steps])

    return page_figure(draw, name, f"Error of each step of {budget.candidate}", _size(len(steps)))


def accuracy_waterfall(budget: ErrorBudget, name: str) -> Markup:
    """From the metric of the reference step by step to that of the candidate; empty without labels."""
    start = budget.score
    moved = [step for step in budget.steps if step.accuracy is not None]
    if start is None or not moved:
        return Markup("")
    levels = [start.value, *((100 if start.unit else 1) * step.accuracy for step in moved if step.accuracy is not None)]
    if not all(map(math.isfinite, levels)):
        return Markup("")

    def draw(axes: Axes) -> None:
        rows = ["reference", *(step.step for step in moved), "candidate"]
        low, high = min(levels), max(levels)
        margin = 0.6 * max(high - low, 0.02 if start.unit else 1e-3 * max(map(abs, levels)))
        axes.set_xlim(low - margin, high + margin)
        for row, (before, after) in enumerate(pairwise(levels), 1):
            is_better = after <= before if start.is_loss else after >= before
            axes.barh(row, after - before, left=before, height=0.55, color=AFTER if is_better else BEFORE)
            axes.plot([before, before], [row - 1, row], color=TEXT_COLOUR, linewidth=0.6)
            _write(axes, row, (before, after), signed(after - before, is_share=bool(start.unit)), (low + high) / 2)
        axes.plot([levels[-1]] * 2, [len(rows) - 2, len(rows) - 1], color=TEXT_COLOUR, linewidth=0.6)
        for row, level in ((0, levels[0]), (len(rows) - 1, levels[-1])):
            axes.plot([level], [row], marker="D", color=TEXT_COLOUR, markersize=5)
            _write(axes, row, (level, level), start.number(level), (low + high) / 2)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}" if start.unit else f"{value:.3g}"))
        axes.set_xlabel(f"{start.metric}, {start.unit}" if start.unit else start.metric)
        _name_rows(axes, rows)

    title = headed(start.metric)
    return page_figure(draw, name, f"{title} after each step of {budget.candidate}", _size(len(moved) + 2))


def _length(step: BudgetStep, floor: float) -> float:
    """Of the bar of a step: none where it is exact, the whole axis where it is not finite or drowns the signal."""
    if step.snr_db == math.inf:
        return 0.0
    return floor - min(max(step.snr_db, 0.0), floor) if math.isfinite(step.snr_db) else floor


def _write(axes: Axes, row: int, ends: tuple[float, float], text: str, middle: float) -> None:
    """A number beside the bar or point that it belongs to, on the side where there is more room."""
    on_right = sum(ends) / 2 <= middle
    axes.annotate(
        text,
        (max(ends) if on_right else min(ends), row),
        (6 if on_right else -6, 0),
        textcoords="offset points",
        ha="left" if on_right else "right",
        va="center",
    )


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """The steps from the top down, without a line beside them."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _size(rows: int) -> tuple[float, float]:
    """Of a figure with this many rows, in inches."""
    return (4.6, 0.75 + _ROW * rows)
