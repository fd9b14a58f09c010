"""A verification as a table for a terminal."""

from __future__ import annotations

import math

from rich.table import Table

from .metrics import Decisions, Proportion
from .verification import CandidateResult, Verification


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


def accuracy_lines(verification: Verification) -> list[str]:
    """One sentence for each candidate whose accuracy is known."""
    lines = []
    for result in verification.results:
        decisions = result.decisions
        if decisions is None or decisions.reference_accuracy is None or decisions.output_accuracy is None:
            continue
        lines.append(
            f"{result.candidate}: top-1 {_share(decisions.output_accuracy)}, reference "
            f"{_share(decisions.reference_accuracy)}; {_flips(decisions)}"
        )
    return lines


def _agreement(result: CandidateResult) -> str:
    return "SKIP" if result.decisions is None else f"{100 * result.decisions.agreement:.2f} %"


def _decibels(snr_db: float) -> str:
    return "exact" if snr_db == math.inf else f"{snr_db:.1f} dB"


def _share(share: Proportion) -> str:
    return f"{100 * share.value:.2f} % ({100 * share.low:.2f} to {100 * share.high:.2f})"


def _flips(decisions: Decisions) -> str:
    return f"{decisions.flips} flips, {decisions.good_to_bad} to wrong, {decisions.bad_to_good} to right"
