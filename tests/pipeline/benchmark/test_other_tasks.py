"""Benchmarks of networks that are no classifiers, and without labels; every number is counted again another way."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.stats
from sklearn.metrics import jaccard_score, r2_score

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.pipeline.benchmark.benchmarking import BenchmarkConfig, benchmark
from vsfix.pipeline.benchmark.latency import LatencyConfig
from vsfix.pipeline.benchmark.repair_trials import RepairTrial
from vsfix.pipeline.host.console import json_text
from vsfix.pipeline.pages.benchmark_page import benchmark_report
from vsfix.pipeline.pages.page import render_report
from vsfix.pipeline.report.benchmark_table import benchmark_table, legend
from vsfix.pipeline.verification.model_description import describe_model
from vsfix.trainers.data.datasets import load_dataset

N = 300
QUICK = BenchmarkConfig("", repairs=(), latency=LatencyConfig(seconds=0.0))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 6)).astype(np.float32)
W = RNG.normal(size=(6, 2)).astype(np.float32)
HEAD = '<ir_version: 8, opset_import: ["" : 18]> m (float[N, 6] x) => '


def write(path, text, **weights):
    """A model of these nodes, as a file."""
    model = onnx.parser.parse_model(HEAD + text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def run(path, output=0):
    """The output of a model over all samples, by ONNX Runtime itself."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[output].astype(np.float64)


def measure(paths, config=QUICK, **arrays):
    """A benchmark on `X` and what else the data holds."""
    return benchmark(paths, replace(config, data={"x": X, **arrays}))


def linear(path, shift=0.0, classes=2):
    """y = x w, whose weights are a little off."""
    weights = np.resize(W, (6, classes)) + np.float32(shift) * np.arange(6 * classes).reshape(6, -1)
    return write(path, f"(float[N, {classes}] y) {{ y = MatMul (x, w) }}", w=weights.astype(np.float32))


@pytest.fixture
def two(tmp_path):
    """A regressor, and one that is further off."""
    return [linear(tmp_path / "good.onnx", 0.01), linear(tmp_path / "bad.onnx", 0.05)]


TARGETS = (X @ W + RNG.normal(0, 0.3, (N, 2))).astype(np.float32)


def test_r2_of_each_row_is_that_of_scikit_learn(two):
    found = measure(two, replace(QUICK, metric="r2"), labels=TARGETS)
    for path, row in zip(two, found.rows, strict=True):
        assert row.score.value == pytest.approx(r2_score(TARGETS, run(path)), rel=1e-9)
        assert found.predictions[row.label].mean() == pytest.approx(row.score.value)
        assert row.score.low < row.score.value < row.score.high
    moved = found.rows[1].against_reference.difference
    assert moved.gain == pytest.approx(found.rows[1].score.value - found.rows[0].score.value)
    errors = [((run(path) - TARGETS) ** 2 / TARGETS.var(axis=0)).mean(axis=1) for path in two]
    wanted = scipy.stats.ttest_rel(*errors)
    assert moved.p_value == pytest.approx(2 * scipy.stats.norm.sf(abs(wanted.statistic)), rel=1e-6)
    assert (moved.is_worse, moved.fixes) == (True, None)
    assert found.rows[1].against_reference.retention == pytest.approx(
        found.rows[1].score.value / found.rows[0].score.value
    )
    assert found.rows[1].against_reference.decisions is None
    # A label that is moved shows.
    assert measure(two, replace(QUICK, metric="r2"), labels=np.roll(TARGETS, 1, 0)).rows[0].score.value < 0


def test_float_labels_are_judged_by_the_squared_error_and_a_better_row_keeps_more_than_all(two):
    found = measure(two[::-1], labels=TARGETS)
    assert (found.metric.key, found.metric.higher_is_better) == ("mse", False)
    bad, good = (float(((run(path) - TARGETS) ** 2).mean()) for path in two[::-1])
    against = found.rows[1].against_reference
    assert (found.rows[0].score.value, found.rows[1].score.value) == pytest.approx((bad, good))
    assert against.retention == pytest.approx(bad / good)
    assert against.difference.gain == pytest.approx(bad - good)
    cells = {column.header: list(column.cells) for column in benchmark_table(found).columns}
    assert cells["mse (95 %)"][1].startswith(f"{good:.4g} (")
    assert cells["gain"] == ["-", f"{bad - good:+.3g}"]
    assert "reg/fix" not in cells
    assert "mean squared error of output 'y'; gain (positive where it is better), p (paired test)" in legend(found)


def test_the_json_of_a_regression_fits_the_schema_and_its_page_has_the_metric(two):
    found = measure(two, replace(QUICK, metric="mae", precisions=("fp32", "fp16")), labels=TARGETS)
    schema = json.loads(files("vsfix.pipeline.benchmark").joinpath("benchmark.schema.json").read_text())
    document = json.loads(json_text(found.to_dict()))
    jsonschema.validate({**document, "command": "benchmark", "warnings": []}, schema)
    assert document["rows"][1]["against_own"]["decisions"] is None
    page = render_report(benchmark_report(found))
    assert "mean absolute error, 95 % interval" in page
    assert "Mean absolute error from the reference" in page
    assert "top-1" not in page.lower()


@pytest.mark.parametrize("last", ["Identity", "Sigmoid"])
def test_one_number_decides_between_two_classes(tmp_path, last):
    nodes = f"(float[N, 1] y) {{ z = MatMul (x, w)  y = {last} (z) }}"
    paths = [write(tmp_path / f"{i}.onnx", nodes, w=W[:, :1] + np.float32(0.3 * i)) for i in range(2)]
    labels = (X @ W[:, 0] + RNG.normal(0, 1, N) > 0).astype(np.int64)
    found = measure(paths, labels=labels)
    page = render_report(benchmark_report(found))
    assert ("largest error" in page, "cosine, smallest" in page) == (True, False)  # of one number it is its sign
    decided = [run(path)[:, 0] > (0.5 if last == "Sigmoid" else 0) for path in paths]
    right = [int((one == labels).sum()) for one in decided]
    assert [row.score.count for row in found.rows] == right
    against = found.rows[1].against_reference
    assert against.decisions.agreement == pytest.approx(float((decided[0] == decided[1]).mean()))
    assert against.difference.fixes == int(((decided[1] == labels) & (decided[0] != labels)).sum())
    p, q = (np.stack([1 - one, one]) for one in (run(path)[:, 0] for path in paths))
    if last == "Sigmoid":
        assert against.decisions.divergence == pytest.approx(float((p * np.log(p / q)).sum(axis=0).mean()), rel=1e-6)
    assert found.predictions[found.rows[1].label].tolist() == decided[1].astype(int).tolist()


def test_a_segmentation_has_decisions_by_position(tmp_path):
    nodes = "(float[N, 3, 2, 2] y) { z = MatMul (x, w)  y = Reshape (z, s) }"
    sides = np.array([-1, 3, 2, 2])
    weights = RNG.normal(size=(6, 12)).astype(np.float32)
    paths = [
        write(tmp_path / f"{i}.onnx", nodes, w=weights + np.float32(0.3 * i * weights[::-1]), s=sides) for i in (0, 1)
    ]
    labels = run(paths[0]).argmax(axis=1)
    labels[::3] = (labels[::3] + 1) % 3
    found = measure(paths, replace(QUICK, metric="iou"), labels=labels)
    decided = [run(path).argmax(axis=1) for path in paths]
    for one, row in zip(decided, found.rows, strict=True):
        each = [
            jaccard_score(true.ravel(), got.ravel(), average="macro", labels=np.union1d(true, got))
            for true, got in zip(labels, one, strict=True)
        ]
        assert row.score.value == pytest.approx(np.mean(each))
    decisions = found.rows[1].against_reference.decisions
    assert (decisions.samples, decisions.flips) == (4 * N, int((decided[0] != decided[1]).sum()))
    np.testing.assert_array_equal(found.predictions[found.rows[1].label], decided[1])
    shares = measure(paths, labels=labels)
    assert shares.rows[1].score.value == pytest.approx(100 * float((decided[1] == labels).mean()))
    assert (shares.rows[1].score.count, shares.rows[1].against_reference.difference.fixes) == (None, None)


def test_numbers_of_classes_agree_where_they_are_the_same(tmp_path):
    text = "(int64[N] y) { z = MatMul (x, w) y = ArgMax <axis = 1, keepdims = 0> (z) }"
    weights = RNG.normal(size=(6, 5)).astype(np.float32)
    paths = [
        write(
            tmp_path / f"{name}.onnx", text, w=weights + np.float32(shift) * RNG.normal(size=(6, 5)).astype(np.float32)
        )
        for name, shift in (("one", 0.0), ("two", 0.3))
    ]
    one, two = (run(path) for path in paths)
    found = measure(paths, labels=one.astype(np.int64))
    decisions = found.rows[1].against_reference.decisions
    assert 0.1 < np.mean(one != two) < 0.9
    assert decisions.flips == np.sum(one != two)
    assert decisions.agreement == pytest.approx(np.mean(one == two))
    assert decisions.divergence is None
    np.testing.assert_array_equal(found.predictions[found.rows[1].label], two)
    assert f"{100 * np.mean(one == two):.2f}" in render_report(benchmark_report(found))


def test_an_embedding_is_never_judged_by_its_largest_value(tmp_path):
    nodes = "(float[N, 2] y) { z = MatMul (x, w)  y = LpNormalization (z) }"
    paths = [write(tmp_path / f"{i}.onnx", nodes, w=W + np.float32(0.2 * i)) for i in range(2)]
    with pytest.raises(InputError, match="is an embedding"):
        measure(paths, labels=np.arange(N) % 2)
    targets = run(paths[0]).astype(np.float32)
    found = measure(paths, replace(QUICK, metric="cosine"), labels=targets)
    cosines = (targets * run(paths[1])).sum(axis=1)
    assert [row.score.value for row in found.rows] == pytest.approx([1, cosines.mean()], rel=1e-6)
    bare = measure(paths)
    assert (bare.rows[1].against_reference.decisions, bare.metric) == (None, None)
    assert bare.rows[1].against_reference.cosine == pytest.approx(cosines.mean(), rel=1e-6)
    cells = {column.header: list(column.cells) for column in benchmark_table(bare).columns}
    assert cells["ref cosine"] == ["-", f"{cosines.mean():.6f}"]


def test_of_several_outputs_the_judged_one_is_named_and_each_has_its_snr(tmp_path):
    nodes = "(float[N, 2] value, float[N, 2] other) { value = MatMul (x, w)  other = MatMul (x, v) }"
    paths = [write(tmp_path / f"{i}.onnx", nodes, w=W, v=W + np.float32(0.1 + 0.2 * i)) for i in range(2)]
    found = measure(paths, replace(QUICK, metric_output="other"), labels=TARGETS)
    assert (found.output, found.metric.output) == ("other", "other")
    assert found.rows[0].score.value == pytest.approx(float(((run(paths[0], 1) - TARGETS) ** 2).mean()))
    against = found.rows[1].against_reference
    assert against.outputs["value"].snr_db == np.inf
    assert against.outputs["other"].snr_db < 40
    named = measure(paths, other=TARGETS)
    assert (named.output, named.rows[0].score) == ("other", found.rows[0].score)
    with pytest.raises(InputError, match="--metric-output gone: the model has value, other"):
        measure(paths, replace(QUICK, metric_output="gone"), labels=TARGETS)


def test_outputs_of_other_names_are_judged_by_their_position(tmp_path, two):
    renamed = write(tmp_path / "renamed.onnx", "(float[N, 2] z) { z = MatMul (x, w) }", w=W)
    found = measure([two[0], renamed], labels=TARGETS)
    assert found.rows[1].score.value == pytest.approx(float(((run(renamed) - TARGETS) ** 2).mean()))
    assert found.rows[1].against_reference.output == "z"


def test_a_function_judges_by_all_outputs_and_targets(two):
    def near(outputs, targets):
        return np.abs(outputs["y"] - targets["labels"]).max(axis=1) < 0.5

    found = measure(two, replace(QUICK, metric=near), labels=TARGETS)
    hits = [np.abs(run(path) - TARGETS).max(axis=1) < 0.5 for path in two]
    assert [row.score.count for row in found.rows] == [int(one.sum()) for one in hits]
    against = found.rows[1].against_reference.difference
    assert (found.metric.key, against.regressions) == ("near", int((hits[0] & ~hits[1]).sum()))
    with pytest.raises(InputError, match=r"fails \(KeyError: 'gone'\)"):
        measure(two, replace(QUICK, metric=lambda outputs, targets: outputs["gone"]), labels=TARGETS)


def test_without_labels_rows_agree_and_nothing_passes(tmp_path):
    paths = [linear(tmp_path / f"{i}.onnx", 0.05 * i, classes=5) for i in range(2)]
    found = measure(paths, replace(QUICK, repairs=(RepairTrial("exact", 8),), calibration={"x": X}))
    assert (found.status, found.metric, found.rows[1].score) == ("WARN", None, None)
    assert found.verdict.startswith(f"No labels: accuracy unknown; against {found.reference} ")
    assert "no repair was tried: without labels nothing judges it" in found.notes
    against = found.rows[1].against_reference
    decided = [run(path).argmax(axis=1) for path in paths]
    if against.decisions is not None:
        assert against.decisions.agreement == pytest.approx(float((decided[0] == decided[1]).mean()))
    schema = json.loads(files("vsfix.pipeline.benchmark").joinpath("benchmark.schema.json").read_text())
    document = json.loads(json_text(found.to_dict()))
    jsonschema.validate({**document, "command": "benchmark", "warnings": []}, schema)
    assert document["digest"] != json.loads(json_text(measure(paths, labels=decided[0]).to_dict()))["digest"]
    with pytest.raises(DataError, match="--metric: the data has no array 'labels'"):
        measure(paths, replace(QUICK, metric="r2"))


def test_scores_of_classes_decide_without_labels_too_and_a_guess_is_told(onnx_path):
    preprocessing = describe_model(onnx_path).preprocessing
    assert preprocessing is not None
    images = preprocessing.apply(load_dataset("digits", "test").images[:100])
    found = benchmark([onnx_path], replace(QUICK, data=images, precisions=("fp32", "fp16")))
    session = onnxruntime.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])
    classes = session.run(None, {"input": images})[0].argmax(axis=1)
    assert found.predictions[found.reference].tolist() == classes.tolist()
    assert found.rows[1].against_reference.decisions.agreement > 0.9
    assert any("is read as scores of 10 classes" in note for note in found.notes)
    assert "% of the decisions agree" in found.verdict


def test_a_cast_that_loses_more_of_an_error_than_its_precision_explains_is_warned_of(two, monkeypatch):
    from vsfix.pipeline.benchmark import measurement, row

    kept = measure(two[:1], replace(QUICK, precisions=("fp32", "fp16")), labels=TARGETS)
    assert kept.rows[1].status == "PASS"
    judged = measurement.judged

    def spoilt(found, judge):
        told = judged(found, judge)
        return replace(told, scores=told.scores * 1.05) if found.variant.precision == "fp16" else told

    monkeypatch.setattr("vsfix.pipeline.benchmark.benchmarking.judged", spoilt)
    monkeypatch.setattr(row, "search_row", lambda *_: None)
    found = measure(two[:1], replace(QUICK, precisions=("fp32", "fp16")), labels=TARGETS)
    assert found.rows[1].status == "WARN"
    assert re.search(r"95\.[12]\d % kept, wanted 99\.9 %", found.rows[1].reasons[0])


@pytest.mark.parametrize("metric", ["r2", lambda outputs, targets: -((outputs["y"] - targets["labels"]) ** 2).mean(1)])
def test_a_cast_after_which_nothing_is_kept_is_warned_of_where_there_is_no_ratio(two, monkeypatch, metric):
    from vsfix.pipeline.benchmark import measurement, row

    judged = measurement.judged

    def spoilt(found, judge):
        told = judged(found, judge)
        return replace(told, scores=told.scores - 2) if found.variant.precision == "fp16" else told

    monkeypatch.setattr("vsfix.pipeline.benchmark.benchmarking.judged", spoilt)
    monkeypatch.setattr(row, "search_row", lambda *_: None)
    found = measure(two[:1], replace(QUICK, precisions=("fp32", "fp16"), metric=metric), labels=TARGETS)
    assert found.rows[1].against_own.retention is None
    assert found.rows[1].status == "WARN"
    assert re.search(r"-\d+\.\d\d % kept, wanted 99\.9 %", found.rows[1].reasons[0])
