"""The page: one HTML file that needs nothing else, no network, no script of others, no font."""

from __future__ import annotations

from pathlib import Path

import jinja2

from vsfix.graph_passes.atomic_file import atomic_path

from .sections import Report


def render_report(report: Report) -> str:
    """The page as text."""
    from vsfix.pipeline.figure import mismatch_figure  # here, because matplotlib takes as long as a small repair

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figure = mismatch_figure(report.repair.batch_norms) if report.repair else ""
    return environment.get_template("page.html.j2").render(report=report, figure=figure, float=float)


def write_report(report: Report, path: Path, *, force: bool) -> None:
    """Writes the page.

    Raises:
        OutputExistsError, InputError: see `atomic_path`.
    """
    page = render_report(report)
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(page, encoding="utf-8")
