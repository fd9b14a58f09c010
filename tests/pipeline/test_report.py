from __future__ import annotations

from html.parser import HTMLParser

import pytest

from vsfix.graph_passes.errors import OutputExistsError
from vsfix.pipeline.accuracy import AccuracyRow
from vsfix.pipeline.repair import repair_model
from vsfix.pipeline.repair_config import RepairConfig
from vsfix.pipeline.report.page import render_report, write_report
from vsfix.pipeline.report.sections import Origin, Report, StepRow


class Page(HTMLParser):
    """Collects the text, the addresses that the page would load, and the tags that stay open."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def report(residual, images, open_model) -> Report:
    repair = repair_model(residual, [{"x": images}], open_model, RepairConfig())
    return Report(
        title="Repair of <b>net</b>.onnx",
        verdict="Repaired 3 of 3.",
        status="PASS",
        repair=repair.report,
        accuracies=(AccuracyRow("as trained", None, 0.407, 0.39, 0.42), AccuracyRow("repaired", 32, 0.805, 0.79, 0.82)),
        steps=(StepRow("export", "PASS", float("inf"), 0.0, 1.0),),
        origin=Origin("vsfix optimize net.onnx", {"date": "today"}),
    )


def test_the_page_is_whole_and_loads_nothing(report):
    page = Page()
    page.feed(render_report(report))
    assert page.open == []
    assert page.loads == []


def test_the_page_says_what_was_measured(report):
    page = Page()
    page.feed(render_report(report))
    text = " ".join(" ".join(page.text).split())
    for expected in ("40.7 %", "80.5 %", "bn1", "dropout:0.5", "Repaired 3 of 3.", "vsfix optimize net.onnx", "exact"):
        assert expected in text
    row = report.repair.batch_norms[0]
    assert f"{row.before.measured_shift:.3f}" in text
    assert f"{row.after.measured_shift:.3f}" in text


def test_names_are_escaped(report):
    assert "<b>net</b>" not in render_report(report)


def test_an_existing_page_needs_force(report, tmp_path):
    write_report(report, tmp_path / "r.html", force=False)
    with pytest.raises(OutputExistsError):
        write_report(report, tmp_path / "r.html", force=False)
