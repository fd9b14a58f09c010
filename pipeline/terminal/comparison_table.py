"""Two runs on the terminal: what changed, the losses first."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vsfix.pipeline.benchmark.comparing import RunComparison, quantity_of

_ORDER = ("worse", "better")


def comparison_view(found: RunComparison) -> Iterator[str | Table]:
    """A comparison: what is better or worse, what only one run has, the warnings and the verdict."""
    if any(change.direction != "same" for change in found.changes):
        yield comparison_table(found)
    for word, names in (("gone", found.gone), ("new", found.added)):
        yield from (f"{word}: {name}" for name in names)
    for warning in found.warnings:
        yield f"WARN {warning}"
    yield f"{comparison_status(found)} {summary(found)}"


def comparison_status(found: RunComparison) -> str:
    """FAIL where a rule was broken."""
    return "FAIL" if found.failures else "PASS"


def comparison_table(found: RunComparison) -> Table:
    """One line for each number that is better or worse."""
    table = Table(title_justify="left", box=SIMPLE_HEAD)
    for heading in ("model", "runs on", "number", "became"):
        table.add_column(heading, overflow="fold")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for direction in _ORDER:
        for change in found.changes:
            if change.direction == direction:
                model, backend, precision = change.row
                moved = f"{change.change:+.2f} {change.unit}" if change.unit else f"{change.change:+.4g}"
                values = (quantity_of(change.metric).written(value) for value in (change.before, change.after))
                table.add_row(model, f"{backend} {precision}", change.metric, direction, *values, moved)
    return table


def summary(found: RunComparison) -> str:
    """How many numbers became better, and how many worse."""
    counts = {word: sum(change.direction == word for change in found.changes) for word in ("better", "worse", "same")}
    return f"{counts['better']} better, {counts['worse']} worse, {counts['same']} the same"
