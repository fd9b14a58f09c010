from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from vsfix.graph_passes.errors import DataError, OutputExistsError
from vsfix.graph_passes.noise.analysis import TracedPath
from vsfix.graph_passes.noise.propagation import PassedNode
from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.score_difference import Score, ScoreDifference
from vsfix.pipeline.inspection.batch_norm_row import BatchNormRow
from vsfix.pipeline.inspection.diagnosis import severity_sentence
from vsfix.pipeline.inspection.inspection import Inspection, inspect_model
from vsfix.pipeline.pages.page import render_report, write_report
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.pipeline.report.path_boxes import path_boxes
from vsfix.pipeline.report.sections import BenchmarkRow, LatencySeries, Provenance, Report

from .full_report import full_report, top1

EMPTY = Report("Title", "PASS", "Nothing to repair.")
INFINITY = float("inf")


class Page(HTMLParser):
    """Collects the text, the addresses that the page would load, the cells of each table, and the tags left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[0] != "#"]
        if tag == "table":
            self.tables[dict(attrs)["id"]] = []
        if tag == "tr":
            list(self.tables.values())[-1].append([])
        if tag in ("td", "th"):
            list(self.tables.values())[-1][-1].append("")
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[0] != "#"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            list(self.tables.values())[-1][-1][-1] += data.strip()
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def column(self, table: str, heading: str) -> list[str]:
        head, *rows = self.tables[table]
        return [row[head.index(heading)] for row in rows]


@pytest.fixture
def report(settled, images, open_model) -> Report:
    repair = repair_model(settled, [{"x": images}], open_model, RepairConfig(refine=False)).report
    return full_report(repair)


def parts(report: Report) -> Iterator[tuple[str, Report]]:
    """The report with one section left out."""
    for name in ("repair", "accuracies", "benchmark", "budgets", "latencies", "steps", "provenance"):
        yield name, replace(report, **{name: getattr(EMPTY, name)})


def test_the_page_is_whole_and_loads_nothing(report):
    text = render_report(report)
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")


@pytest.mark.long
def test_the_first_words_are_the_status_and_the_verdict(report):
    text = render_report(report)
    body = Page(text[text.index("<body>") :].replace("</html>", ""))
    assert body.text.startswith(f"PASS {report.verdict}")


def test_every_number_of_the_batch_norms_is_on_the_page(settled, images, open_model):
    report = full_report(repair_model(settled, [{"x": images}], open_model, RepairConfig(method="paired")).report)
    page = Page(render_report(report))
    outcomes = report.repair.batch_norms
    assert page.column("batch-norms", "BatchNorm") == [outcome.before.name for outcome in outcomes]
    for heading, values in {
        "shift before": [outcome.before.measured_shift for outcome in outcomes],
        "shift after": [outcome.after.measured_shift for outcome in outcomes],
        "variance ratio before": [outcome.before.mismatch for outcome in outcomes],
        "variance ratio after": [outcome.after.mismatch for outcome in outcomes],
    }.items():
        assert page.column("batch-norms", heading) == [f"{value:.3f}" for value in values]
    assert page.column("batch-norms", "shift estimated, 95 % interval") == [
        f"{outcome.shift:.3f} ({outcome.interval[0]:.3f} – {outcome.interval[1]:.3f})" for outcome in outcomes
    ]
    assert page.column("batch-norms", "noise source") == [
        f"{outcome.before.source} ({outcome.before.noise}, {outcome.before.distance})" for outcome in outcomes
    ]
    assert page.column("batch-norms", "status") == ["repaired"] * 3


def test_every_number_of_the_benchmark_is_on_the_page():
    gain = ScoreDifference(
        "top-1", "y", 93.4, 92.8, -0.6, (-2.6, 1.3), 0.6636, 500, "percentage points", regressions=12, fixes=9
    )
    row = BenchmarkRow(
        *("net.onnx", "onnxruntime", "fp16", top1(464, 500), gain, 0.99785, 0.9987, None, 65.84),
        *(64, 1.2345, 123.456, 51234.5, "WARN", "slow here"),
    )
    missing = BenchmarkRow("net.plan", "tensorrt", "fp16", status="SKIP", note="no GPU")
    page = Page(render_report(replace(EMPTY, benchmark=(row, missing), benchmark_reference="the first row")))
    head, first, second = page.tables["benchmark"]
    assert dict(zip(head, first, strict=True)) == {
        "model": "net.onnxslow here",
        "backend": "onnxruntime",
        "precision": "fp16",
        "status": "WARN",
        "top-1, 95 % interval": "92.80 % (90.2 – 94.8 %)",
        "percentage points to reference": "\N{MINUS SIGN}0.60\N{MINUS SIGN}2.6 to +1.3",
        "regressions / fixes": "12 / 9 (p = 0.66)",
        "retention": "99.78 %\N{GREATER-THAN OR EQUAL TO} 99 %",
        "agreement": "99.87 %",
        "SNR": "65.8 dB",
        "batch": "64",
        "p50, ms": "1.23",
        "p99, ms": "123",
        "best images/s": "51\N{THIN SPACE}234",
    }
    assert second == ["net.planno GPU", "tensorrt", "fp16", "SKIP", *["–"] * 10]
    assert "reference (the first row)" in page.text


def test_a_column_that_no_row_fills_is_left_out():
    rows = (BenchmarkRow("net.onnx", "onnxruntime", "fp32", snr_db=INFINITY),)
    page = Page(render_report(replace(EMPTY, benchmark=rows)))
    assert page.tables["benchmark"] == [
        ["model", "backend", "precision", "SNR"],
        ["net.onnx", "onnxruntime", "fp32", "exact"],
    ]


def test_the_columns_of_a_regression_are_those_of_its_metric():
    score = Score("mean squared error", 0.0361, 0.034, 0.0382, 500, is_loss=True)
    gain = ScoreDifference("mean squared error", "y", 0.125, 0.0361, 0.0889, (0.08, 0.1), 1e-12, 500, is_loss=True)
    rows = (
        BenchmarkRow("net.onnx", "onnxruntime", "fp32", replace(score, value=0.125)),
        BenchmarkRow("half.onnx", "onnxruntime", "fp16", score, gain, 0.9995, None, 0.99999991, 65.84),
    )
    page = Page(render_report(replace(EMPTY, benchmark=rows)))
    head, _, second = page.tables["benchmark"]
    found = dict(zip(head, second, strict=True))
    assert found["mean squared error, 95 % interval"] == "0.0361 (0.034 – 0.0382)"
    assert found["gain over the reference"] == "+0.0889+0.08 to +0.1"
    assert (found["paired test"], found["cosine"]) == ("p < 1e-9", "0.9999999")
    assert "regressions / fixes" not in head
    assert "of errors the inverse" in page.text
    bare = tuple(replace(row, score=None, gain=None, retention=None) for row in rows)
    assert "There are no labels: how right a row is, is unknown." in render_report(replace(EMPTY, benchmark=bare))


def test_the_other_tables_say_what_was_measured(report):
    page = Page(render_report(report))
    assert page.column("accuracies", "top-1") == [f"{row.score.value:.1f} %" for row in report.accuracies]
    assert page.column("accuracies", "95 % interval")[0] == "73.1 – 80.5 %"
    assert page.column("budget-1", "SNR") == ["129.8 dB", "65.8 dB", "exact"]
    assert page.column("budget-1", "top-1") == ["75.07 %", "75.05 %", "–"]
    assert page.column("latencies", "p50, ms") == ["1.50", "2.00"]
    assert page.column("steps", "largest error") == ["2.9e-06"]
    assert report.provenance.command in page.text
    assert "torch 2.13" in page.text


def test_what_is_said_of_the_averaged_network_comes_first_and_is_whole(report):
    page = Page(render_report(report))
    repair = report.repair
    assert page.headings[:2] == [
        "How far is the network from what it was trained to compute?",
        "Does each BatchNorm divide by the variance that it sees?",
    ]
    assert [row[0] for row in page.tables["severity"][1:]] == ["as given, all samples", "before", "after"]
    assert page.column("severity", "R, 95 % interval") == [
        f"{found.ratio:.2f}{found.low:.2f} – {found.high:.2f}"
        for found in (repair.severity, repair.severity_before, repair.severity_after)
    ]
    assert page.column("candidates", "candidate") == ["as trained", "matchtaken"]
    assert page.column("candidates", "R") == [f"{row.severity:.2f}" for row in repair.candidates]
    assert "score on labels" not in page.tables["candidates"][0]
    assert page.column("layers", "distance after") == [f"{layer.after:.3f}" for layer in repair.layers]
    assert repair.outputs[0] in page.text
    scored = tuple(replace(row, score=0.5, changed=0.25) for row in repair.candidates)
    page = Page(render_report(replace(report, repair=replace(repair, candidates=scored))))
    assert page.column("candidates", "score on labels") == ["0.5", "0.5"]
    assert page.column("candidates", "decisions that differ") == ["25.0 %", "25.0 %"]


def test_a_repair_without_noise_says_nothing_of_an_average(report):
    bare = replace(report.repair, severity=None, candidates=(), layers=(), outputs=())
    page = Page(render_report(replace(report, repair=bare)))
    assert not {"severity", "candidates", "layers"} & set(page.tables)
    assert page.headings[0] == "Does each BatchNorm divide by the variance that it sees?"


def test_the_questions_of_a_stranger_are_answered(report):
    page = Page(render_report(report))
    repair = report.repair
    worst = max(repair.layers, key=lambda layer: layer.before)
    for expected in (
        f"Yes. {severity_sentence(repair.severity)}",
        f"What '{worst.name}' gives",
        f"a distance of {worst.before:.3g}, now {worst.after:.3g}",
        f"Yes: R {repair.severity_before.ratio:.2f} -> {repair.severity_after.ratio:.2f}, by the method match",
        "measured on 60 samples",
        "73.1 – 80.5 % as trained and 90.4 – 94.9 % repaired, do not overlap",
        "Median latency: net.onnx 1.50 ms (batch 1), repaired.onnx 2.00 ms (batch 8)",
    ):
        assert expected in page.text


def test_a_section_that_is_not_there_leaves_nothing_behind(report):
    whole = Page(render_report(report))
    for name, less in parts(report):
        page = Page(render_report(less))
        assert len(page.headings) < len(whole.headings), name
        assert set(page.headings) < set(whole.headings), name
    bare = Page(render_report(EMPTY))
    assert bare.headings == []
    assert bare.tables == {}
    assert "<svg" not in render_report(EMPTY)
    assert "<dl>" not in render_report(EMPTY)


def test_an_inspection_shows_what_it_found_and_no_repair(settled, images, open_model):
    found = inspect_model(settled, [{"x": images}], open_model)
    page = Page(render_report(replace(EMPTY, inspection=found)))
    assert page.column("batch-norms", "shift measured") == [f"{row.measured_shift:.3f}" for row in found.rows]
    assert page.column("batch-norms", "variance ratio") == [f"{row.mismatch:.3f}" for row in found.rows]
    predicted = [row.predicted_shift for row in found.rows]
    assert page.column("batch-norms", "shift predicted") == ["–" if p is None else f"{p:.3f}" for p in predicted]
    assert "shift after" not in page.tables["batch-norms"][0]
    assert "after the repair" not in page.text
    assert [row[0] for row in page.tables["severity"][1:]] == ["as given"]
    assert f"Yes. {severity_sentence(found.severity)}" in page.text
    assert "Not yet: the model was only looked at." in page.text


def test_an_inspection_without_data_draws_no_measurement(residual, open_model):
    text = render_report(replace(EMPTY, inspection=inspect_model(residual, [], open_model)))
    assert "Nothing was run" in text
    assert "<svg" not in text


HOSTILE = "<script>alert(1)</script>\"'&<b onclick=x>$a_b$"


def test_names_are_escaped_wherever_they_stand(report):
    row = BatchNormRow(HOSTILE, 3, HOSTILE, "direct", 1, 0.5, 0.5, 2.0, source=HOSTILE)
    route = TracedPath(HOSTILE, HOSTILE, "direct", HOSTILE, (PassedNode(HOSTILE, HOSTILE),), (), ())
    inspection = Inspection((row,), (HOSTILE,), 5, (HOSTILE,), (HOSTILE,), HOSTILE, route)
    text = render_report(
        replace(
            report,
            title=HOSTILE,
            verdict=HOSTILE,
            warnings=(HOSTILE,),
            repair=None,
            inspection=inspection,
            accuracies=(AccuracyRow(HOSTILE, 32, replace(top1(1, 2), metric=HOSTILE)),),
            benchmark=(BenchmarkRow(HOSTILE, HOSTILE, HOSTILE, status=HOSTILE, note=HOSTILE),),
            benchmark_reference=HOSTILE,
            budgets=tuple(replace(b, candidate=HOSTILE, reference=HOSTILE) for b in report.budgets),
            latencies=(LatencySeries(HOSTILE, 1, (1.0,)),),
            provenance=Provenance(HOSTILE, {HOSTILE: HOSTILE}),
        )
    )
    assert "<script>alert" not in text
    assert "<b onclick" not in text
    assert text.count("<script>") == 1
    page = Page(text)
    assert page.open == []
    assert page.text.count("alert(1)") > 20


def test_five_hundred_batch_norms_are_a_page_of_less_than_two_megabytes_with_a_folded_table(report):
    outcomes = tuple(
        replace(outcome, before=replace(outcome.before, name=f"backbone.stage{number}.block.bn"))
        for number, outcome in enumerate(report.repair.batch_norms * 167)
    )
    text = render_report(replace(report, repair=replace(report.repair, batch_norms=outcomes[:500])))
    assert len(text.encode()) < 2_000_000
    assert len(Page(text).tables["batch-norms"]) == 501
    assert "<details>" in text
    assert "<details open>" in render_report(report)


def test_a_long_way_is_abbreviated():
    nodes = tuple(PassedNode("Relu", f"r{number}") for number in range(18))
    boxes = path_boxes(TracedPath("d", "dropout:0.5", "downstream", "bn", (), nodes, nodes[:2]))
    assert [box.name for box in boxes] == ["d", "r0", "r1", "r2", "", "r15", "r16", "r17", "bn", "2 nodes"]
    assert boxes[4].title == "… 12 more"


def test_latencies_without_runs_are_refused():
    with pytest.raises(DataError, match="at least one run"):
        LatencySeries("net", 1, ())
    with pytest.raises(DataError, match="finite"):
        LatencySeries("net", 1, (float("nan"),))


def test_an_existing_page_needs_force(report, tmp_path):
    write_report(report, tmp_path / "r.html", force=False)
    with pytest.raises(OutputExistsError):
        write_report(report, tmp_path / "r.html", force=False)


def test_the_gains_are_those_of_the_deployed_batch_norms_and_a_column_that_all_hold_is_left_out(report):
    outcomes = report.repair.batch_norms
    page = Page(render_report(report))
    assert page.column("batch-norms", "gain") == [
        f"{o.after.gain_low:#.3g} – {o.after.gain_high:#.3g}" for o in outcomes
    ]
    assert "channels past fp16" not in page.tables["batch-norms"][0]
    wide = replace(outcomes[0], after=replace(outcomes[0].after, beyond_fp16=2))
    rows = replace(report.repair, batch_norms=(wide, *outcomes[1:]))
    page = Page(render_report(replace(report, repair=rows)))
    assert page.column("batch-norms", "channels past fp16") == ["2", *["–"] * (len(outcomes) - 1)]


def test_the_key_of_the_accuracies_has_the_shapes_of_their_points(report):
    page = render_report(replace(report, repair=None))
    shapes = re.findall(r'<li class="(\w+)" style="--colour: var\(--series-\d\)">(as trained|repaired, \w+)<', page)
    assert shapes == [("dashed", "as trained"), ("square", "repaired, paired"), ("triangle", "repaired, exact")]
    assert all(f".key .{shape}::before" in page for shape in ("triangle", "down", "plus", "diamond", "round"))


def test_every_table_can_be_scrolled_by_keys_and_has_a_name_and_all_stands_in_main(report):
    page = render_report(report)
    regions = re.findall(r'<div class="scroll" role="region" tabindex="0" aria-label="Table: ([^"]+)">', page)
    assert len(regions) == len(set(regions)) == page.count("<table ")
    main = page[page.index("<main>") : page.index("</main>")]
    assert main.count("<table ") == page.count("<table ")
    assert re.findall(r"<h(\d)", page)[0] == "1"
    assert set(re.findall(r"<h(\d)", page)[1:]) == {"2"}
