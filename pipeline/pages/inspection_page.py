"""An inspection as a page."""

from __future__ import annotations

from pathlib import Path

from vsfix.pipeline.host.environment import describe_machine
from vsfix.pipeline.inspection.diagnosis import judge_inspection
from vsfix.pipeline.inspection.inspection import Inspection
from vsfix.pipeline.report.sections import Provenance, Report

from .page import write_report


def write_inspection_page(inspection: Inspection, model: str, path: Path, *, command: str, force: bool) -> None:
    """Writes the report of an inspection.

    Args:
        inspection: what was found.
        model: the name of the model.
        path: the page.
        command: the command line that made it.
        force: an existing page may be replaced.

    Raises:
        OutputExistsError, InputError: see `atomic_path`.
    """
    status, verdict = judge_inspection(inspection)
    provenance = Provenance(command, describe_machine())
    report = Report(f"Inspection of {model}", status, verdict, inspection=inspection, provenance=provenance)
    write_report(report, path, force=force)
