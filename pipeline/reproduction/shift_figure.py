"""The paper's Figure 1 over the runs of an experiment: each BatchNorm at the end, and the worst over the epochs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from vsfix.pipeline.report.figure import figure_svg
from vsfix.pipeline.report.variance_ratio_figure import variance_ratio_axis

from .experiments import Cell
from .summary import mismatch_of
from .trial import TrialResult

_COLOURS = ("#2e86ab", "#d1495b", "#edae49", "#66a182", "#8d6a9f")


def shift_figure(results: Mapping[Cell, Sequence[TrialResult]]) -> str:
    """Draws the runs, one line for each cell: the geometric mean over its seeds.

    Returns:
        An `<svg>` element whose text takes the colour of the page.
    """

    def draw(axes: Sequence[Axes]) -> None:
        drawn = [(cell, runs) for cell, runs in results.items() if runs]
        for (cell, runs), colour in zip(drawn, _COLOURS * len(drawn), strict=False):
            last = _over_seeds([mismatch_of(run) for run in runs])
            axes[0].plot(range(1, len(last) + 1), last, "o-", color=colour, label=cell.labels[-1], markersize=3)
            epochs = sorted({row.epoch for row in runs[0].shift})
            worst = _over_seeds([[max(mismatch_of(run, epoch)) for epoch in epochs] for run in runs])
            axes[1].plot(epochs, worst, "o-", color=colour, markersize=3)
        for part, label in zip(axes, ("BatchNorm, from the input on", "epoch"), strict=True):
            variance_ratio_axis(
                part, [float(y) for line in part.get_lines() for y in np.asarray(line.get_ydata())], label
            )
        axes[0].set_title("after the last epoch", fontsize="medium")
        axes[1].set_title("the worst BatchNorm", fontsize="medium")
        axes[0].legend(frameon=False, fontsize="small")

    return figure_svg(draw, widths=(3, 2))


def _over_seeds(lines: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.geometric_mean(values) for values in zip(*lines, strict=True)]
