"""The report as one HTML file that needs nothing else: no network, no script of others, no font."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from vsfix.graph_passes.atomic_file import atomic_path

from .accuracy import AccuracyRow
from .repair_report import RepairReport


@dataclass(frozen=True)
class StepRow:
    """One verified step: status PASS or FAIL, and the numbers behind it."""

    step: str
    status: str
    snr_db: float
    max_abs: float
    agreement: float


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        title: the heading.
        verdict: one sentence with the numbers.
        status: PASS, WARN or FAIL.
        repair: the outcome for each BatchNorm.
        accuracies: may be empty.
        steps: may be empty.
        facts: what produced the report, label by label.
    """

    title: str
    verdict: str
    status: str
    repair: RepairReport
    accuracies: tuple[AccuracyRow, ...]
    steps: tuple[StepRow, ...]
    facts: Mapping[str, str]


def render_report(report: Report) -> str:
    """The page."""
    from .figure import mismatch_figure  # here, because matplotlib takes as long to load as a small repair

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figure = mismatch_figure(report.repair.batch_norms)
    return environment.get_template("report.html.j2").render(report=report, figure=figure, float=float)


def write_report(report: Report, path: Path, *, force: bool) -> None:
    """Writes the page.

    Raises:
        OutputExistsError, InputError: see `atomic_path`.
    """
    page = render_report(report)
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(page, encoding="utf-8")
