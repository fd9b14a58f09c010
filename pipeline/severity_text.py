"""What R says, in words that need no mathematics."""

from __future__ import annotations

from vsfix.graph_passes.estimators.severity import Severity

from .repair_report import RepairReport


def severity_sentence(severity: Severity) -> str:
    """R with its interval, and what it means."""
    number = f"R = {severity.ratio:.2f} ({severity.low:.2f} to {severity.high:.2f}, {severity.samples} samples)"
    decisions = "" if severity.changed is None else f"; {100 * severity.changed:.1f} % of its decisions differ"
    if severity.is_healthy and not severity.is_open:
        return (
            f"{number}: deployed without its noise, the network answers as it was trained to; what is left is "
            f"less than {severity.bound} of what a single draw of its training noise does{decisions}."
        )
    times = f"{severity.ratio:.1f} times as far" if severity.ratio >= 1 else f"{severity.ratio:.0%} as far"
    return (
        f"{number}: deployed without its noise, the network's answers are {times} from what it was trained to answer "
        f"as a single draw of its training noise throws them{decisions}."
    )


def severity_lines(report: RepairReport) -> list[str]:
    """What a report says of R and of how the outputs are read, one line each."""
    lines = [f"output {line}" for line in report.outputs]
    if report.severity is not None:
        lines.append(f"as given: {severity_sentence(report.severity)}")
    if report.severity_before is not None and report.severity_after is not None:
        before, after = report.severity_before, report.severity_after
        changed = (
            ""
            if before.changed is None or after.changed is None
            else f"; decisions that differ: {100 * before.changed:.1f} -> {100 * after.changed:.1f} %"
        )
        lines.append(
            f"on {report.judges} samples that judge: R {before.ratio:.2f} ({before.low:.2f} to {before.high:.2f}) -> "
            f"{after.ratio:.2f} ({after.low:.2f} to {after.high:.2f}){changed}"
        )
    return lines
