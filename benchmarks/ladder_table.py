"""The ladder as two Markdown tables, a row for each network: what each way to repair it gives, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ladder_measure import NAMES, REPAIRS
from ladder_networks import Rung
from ladder_targets import Results, severity_correlation, true_loss
from ladder_tasks import Kind

DIGITS: dict[Kind, int] = {"classes": 2, "mask": 2, "numbers": 4}


def table(rungs: Sequence[Rung], results: Results) -> str:
    """Metrics with the loss in brackets, means over the seeds; below, the severity and the seconds of each repair."""
    scores = [_line(["network", *NAMES]), _line(["---"] * (1 + len(NAMES)))]
    heads = ["network", "R", "lost", *(f"{column.name}, s" for column in REPAIRS)]
    costs = [_line(heads), _line(["---"] * len(heads))]
    for rung in rungs:
        severity, lost = results.severity(rung), true_loss(rung, results)
        shown_severity = "-" if severity is None else f"{severity[0]:.2f} [{severity[1]:.2f}, {severity[2]:.2f}]"
        seconds = [_seconds(rung, results, column.name) for column in REPAIRS]
        scores.append(_line([rung.name, *(_cell(rung, results, name) for name in NAMES)]))
        costs.append(_line([rung.name, shown_severity, "-" if lost is None else f"{lost:.2f}", *seconds]))
    correlation = severity_correlation(rungs, results)
    told = [] if correlation is None else ["", f"Rank correlation of R with what is lost: {correlation:.2f}"]
    return "\n".join([*scores, "", *costs, *told])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(rung: Rung, results: Results, column: str) -> str:
    cell = results.cell(rung, column)
    if not cell:
        return "refused" if results.of(rung, column) else "-"
    return ", ".join(
        f"{cell.metric(output):.{DIGITS[kind]}f} ({cell.loss(output):.3f})" for output, kind in rung.kinds.items()
    )


def _seconds(rung: Rung, results: Results, column: str) -> str:
    cell = results.cell(rung, column)
    return f"{np.mean([m.seconds for m in cell.measurements]):.1f}" if cell else "-"
