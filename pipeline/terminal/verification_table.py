"""A verification as a table for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table

from vsfix.pipeline.comparison.proportion import Proportion
from vsfix.pipeline.verification.verification import CandidateResult, Verification


def verification_view(verification: Verification) -> Iterator[str | Table]:
    """A verification: the table, the accuracies, the budgets, and where a candidate diverges."""
    yield verification_table(verification)
    yield from accuracy_lines(verification)
    for result in verification.results:
        if result.budget:
            yield budget_table(result)
        if result.layers is not None:
            yield f"{result.candidate}: {result.layers}"


def verification_table(verification: Verification) -> Table:
    """One row for each output of each candidate."""
    table = Table(
        title=f"Against {verification.reference}: {verification.data}, {verification.samples} samples",
        title_justify="left",
    )
    table.add_column("candidate", overflow="fold")
    table.add_column("output", overflow="fold")
    for heading in ("SNR", "largest error", "99.9 %", "smallest cosine", "agreement"):
        table.add_column(heading, justify="right")
    table.add_column("status")
    for result in verification.results:
        for index, (name, comparison) in enumerate(result.outputs.items()):
            table.add_row(
                result.candidate,
                name,
                _decibels(comparison.snr_db),
                f"{comparison.max_abs:.2g}",
                f"{comparison.p999_abs:.2g}",
                "-" if math.isnan(comparison.cosine_min) else f"{comparison.cosine_min:.7f}",
                _agreement(result) if index == 0 else "",
                result.status,
            )
    return table


def budget_table(result: CandidateResult) -> Table:
    """One row for each step from the reference to a candidate."""
    table = Table(title=f"Error budget of {result.candidate}: each step against the one before", title_justify="left")
    table.add_column("step")
    table.add_column("target", overflow="fold")
    for heading in ("SNR", "largest relative error", "agreement", "top-1"):
        table.add_column(heading, justify="right")
    for step in result.budget:
        table.add_row(
            step.step,
            step.target,
            _decibels(step.snr_db),
            f"{step.max_rel:.2g}",
            "-" if step.agreement is None else f"{100 * step.agreement:.2f} %",
            "-" if step.accuracy is None else f"{100 * step.accuracy:.2f} %",
        )
    return table


def accuracy_lines(verification: Verification) -> list[str]:
    """One sentence for each candidate whose accuracy is known."""
    lines = []
    for result in verification.results:
        task = None if result.decisions is None else result.decisions.task
        if task is not None:
            lines.append(
                f"{result.candidate}: top-1 {_share(task.output)}, reference {_share(task.reference)}; {_flips(result)}"
            )
    return lines


def _agreement(result: CandidateResult) -> str:
    return "SKIP" if result.decisions is None else f"{100 * result.decisions.agreement:.2f} %"


def _decibels(snr_db: float) -> str:
    return "exact" if snr_db == math.inf else f"{snr_db:.1f} dB"


def _share(share: Proportion) -> str:
    return f"{100 * share.value:.2f} % ({100 * share.low:.2f} to {100 * share.high:.2f})"


def _flips(result: CandidateResult) -> str:
    """The decisions that differ, what they do to the accuracy, and how likely that is by chance."""
    decisions = result.decisions
    assert decisions is not None
    assert decisions.task is not None
    task = decisions.task
    text = f"{decisions.flips} decisions differ, {task.good_to_bad} regressions, {task.bad_to_good} fixes"
    if task.good_to_bad + task.bad_to_good:
        text += f" (McNemar p = {task.p_value:.2g})"
    return text
