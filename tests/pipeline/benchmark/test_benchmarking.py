"""The whole benchmark on a small network; every number of a row is counted again from the raw predictions."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import onnx
import pytest
import scipy.stats
from torch.utils.data import DataLoader

from vsfix import optimize
from vsfix.graph_passes.errors import DataError, InputError, MissingComponentError
from vsfix.pipeline.benchmark.benchmarking import BenchmarkConfig, benchmark
from vsfix.pipeline.benchmark.latency import LatencyConfig
from vsfix.pipeline.benchmark.repair_trials import RepairTrial
from vsfix.pipeline.benchmark.row_latency import GpuWatch
from vsfix.pipeline.comparison.proportion import paired_difference_interval
from vsfix.pipeline.pages.benchmark_page import benchmark_report
from vsfix.pipeline.report.benchmark_table import benchmark_table

NO_LATENCY = LatencyConfig(seconds=0.0)
QUICK = BenchmarkConfig("digits", samples=300, repairs=(), latency=NO_LATENCY)


@pytest.fixture(scope="module")
def repaired_path(onnx_path, tmp_path_factory):
    """The network of `onnx_path`, repaired and folded."""
    path = tmp_path_factory.mktemp("repaired") / "repaired.onnx"
    optimize(onnx_path, "digits", method="match", samples=64, batch_size=64).save(path)
    return path


@pytest.fixture(scope="module")
def found(checkpoint_path, onnx_path, repaired_path):
    """Three models, two backends, two precisions, repairs and latencies."""
    config = replace(
        QUICK,
        backends=("torch", "onnxruntime", "reference"),
        precisions=("fp32", "fp16"),
        repairs=(RepairTrial("paired", 32), RepairTrial("exact", 64)),
        latency=LatencyConfig(seconds=0.01, min_runs=20, warm_up_seconds=0.001),
        latency_batches=(1, 8),
    )
    return benchmark([checkpoint_path, onnx_path, repaired_path], config)


@pytest.mark.long
def test_every_row_ran_and_the_first_is_the_reference(found):
    assert [row.status for row in found.rows] == ["PASS"] * 9
    assert found.reference == found.rows[0].label
    assert (found.rows[0].against_reference, found.rows[0].against_own) == (None, None)
    assert (found.samples, found.split) == (300, "test")


def counted(found, row, other):
    """Right answers of both, regressions, fixes and their p, agreement: from the classes alone, by another library."""
    labels = found.predictions["labels"]
    right, before = (found.predictions[label] == labels for label in (row, other))
    worse, better = int((before & ~right).sum()), int((~before & right).sum())
    p_value = scipy.stats.binomtest(worse, worse + better).pvalue if worse + better else 1.0
    agreement = float(np.mean(found.predictions[row] == found.predictions[other]))
    return int(right.sum()), int(before.sum()), worse, better, p_value, agreement


def test_every_comparison_is_what_the_raw_predictions_say(found):
    compared = 0
    for row in found.rows:
        for comparison in (row.against_reference, row.against_own):
            if comparison is None:
                continue
            right, before, worse, better, p_value, agreement = counted(found, row.label, comparison.baseline)
            found_in = comparison.difference
            assert row.score.count == right
            assert (found_in.after, found_in.before) == pytest.approx((right / 3, before / 3))
            assert (found_in.regressions, found_in.fixes) == (worse, better)
            assert found_in.p_value == pytest.approx(p_value, rel=1e-9)
            assert comparison.retention == pytest.approx(right / before)
            assert comparison.decisions.agreement == pytest.approx(agreement)
            interval = scipy.stats.binomtest(right, 300).proportion_ci(method="wilson")
            ends = (100 * interval.low, 100 * interval.high)
            assert (row.score.low, row.score.high) == pytest.approx(ends, abs=1e-7)
            compared += 1
    assert compared == 8 + 6


def test_a_label_that_is_moved_shows_in_the_count(found):
    moved = replace(found, predictions={**found.predictions, "labels": np.roll(found.predictions["labels"], 1)})
    row = found.rows[-1]
    assert counted(moved, row.label, found.reference)[0] != row.score.count


def test_a_row_is_compared_with_the_first_of_its_own_model(found):
    by_label = {row.label.split(", ", 1)[1]: row for row in found.rows if "repaired" in row.label}
    first = by_label["onnxruntime, fp32"]
    assert first.against_own is None
    assert by_label["reference, fp16"].against_own.baseline == first.label
    assert 50 < by_label["onnxruntime, fp16"].against_own.snr_db < 90
    assert by_label["reference, fp32"].against_own.snr_db > 110


def test_a_repair_is_held_against_the_row_before_it_and_a_cast_is_none(found, onnx_path, repaired_path):
    against = [row.against_unrepaired and row.against_unrepaired.baseline for row in found.rows]
    first = next(number for number, row in enumerate(found.rows) if row.repaired)
    assert against == [found.reference if number == first else None for number in range(len(found.rows))]
    alone = benchmark([repaired_path], replace(QUICK, precisions=("fp32", "fp16")))
    assert [row.against_unrepaired for row in alone.rows] == [None, None]
    assert "no row shows it as it was before" in alone.verdict
    after = benchmark([repaired_path, onnx_path], QUICK)
    assert [row.against_unrepaired for row in after.rows] == [None, None]


def test_a_repair_is_not_held_against_another_network_that_is_the_reference(onnx_path, repaired_path, tmp_path):
    model = onnx.load(onnx_path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == model.graph.node[-1].input[2])
    bias.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(bias), bias.name))
    onnx.save(model, tmp_path / "other.onnx")
    other = benchmark([tmp_path / "other.onnx", onnx_path, repaired_path], QUICK)
    assert [step.step for step in other.rows[2].budget] == ["another model", "repair", "noise floor"]
    assert other.rows[2].against_unrepaired.baseline == other.rows[1].label
    assert f"percentage points against {other.rows[1].label}" in other.verdict


def test_the_budget_leads_from_the_reference_to_the_row(found):
    steps = {row.label: [step.step for step in row.budget] for row in found.rows}
    last = found.rows[-1].label
    assert last.endswith("reference, fp16")
    assert steps[last] == ["export", "repair", "cast", "runtime", "noise floor"]
    assert steps[found.reference] == ["noise floor"]
    assert found.rows[-1].budget[-2].accuracy == pytest.approx(found.rows[-1].score.value / 100)


def test_latencies_are_of_real_runtimes_at_each_batch_size(found):
    for row in found.rows:
        if row.backend == "reference":
            assert (row.latencies, "no runtime" in row.latency_note or "not a runtime" in row.latency_note) == (
                (),
                True,
            )
        else:
            assert [latency.batch_size for latency in row.latencies] == [1, 8]
            assert all(latency.runs >= 20 for latency in row.latencies)


def test_repairs_are_tried_on_the_model_that_is_not_repaired(found, onnx_path):
    assert found.repairs.model == str(onnx_path)
    assert [(row.model, row.images) for row in found.repairs.accuracies] == [
        ("as trained", None),
        ("paired", 32),
        ("exact", 64),
    ]
    original = next(row for row in found.rows if row.model == str(onnx_path))
    assert found.repairs.accuracies[0].score == original.score
    assert found.repairs.report.method == "paired"


def test_the_repairs_of_a_benchmark_are_those_of_optimize(onnx_path, tmp_path):
    optimize(onnx_path, "digits", method="paired", samples=32).save(tmp_path / "o.onnx")
    both = benchmark([onnx_path, tmp_path / "o.onnx"], replace(QUICK, repairs=(RepairTrial("paired", 32),)))
    assert both.repairs.accuracies[1].score == both.rows[1].score


def test_what_is_missing_here_is_skipped_and_the_rest_is_there(onnx_path):
    found = benchmark([onnx_path], replace(QUICK, backends=("onnxruntime", "onnxruntime-cuda")))
    assert [row.status for row in found.rows] == ["PASS", "SKIP"]
    assert found.rows[1].reasons
    assert found.rows[1].score is None
    assert found.status == "WARN"
    assert "1 of 2 rows did not run" in found.verdict


def test_a_model_whose_output_is_not_finite_is_shown_and_warned_of(onnx_path, tmp_path):
    model = onnx.load(onnx_path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == model.graph.node[-1].input[2])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.inf, dtype=np.float32), bias.name))
    onnx.save(model, tmp_path / "broken.onnx")
    found = benchmark([onnx_path, tmp_path / "broken.onnx"], QUICK)
    assert (found.rows[1].status, found.rows[1].reasons) == (
        "WARN",
        (f"its output '{found.output}' holds NaN or infinity",),
    )
    assert found.rows[1].score.count == 0
    assert set(found.predictions[found.rows[1].label]) == {-1}
    with pytest.raises(DataError, match="not finite"):
        benchmark([tmp_path / "broken.onnx", onnx_path], QUICK)


def test_a_model_with_another_output_fails_alone_and_the_others_are_measured(onnx_path, repaired_path, tmp_path):
    model = onnx.load(onnx_path)
    more = onnx.shape_inference.infer_shapes(model).graph.value_info[0]
    model.graph.output.append(more)
    onnx.save(model, tmp_path / "two.onnx")
    found = benchmark([onnx_path, tmp_path / "two.onnx", repaired_path], QUICK)
    assert [row.status for row in found.rows] == ["PASS", "FAIL", "PASS"]
    assert "give two models with the same outputs" in found.rows[1].reasons[0]


def test_labels_that_name_no_class_end_the_run_before_anything_is_timed(onnx_path, tmp_path, monkeypatch):
    monkeypatch.setattr("vsfix.pipeline.benchmark.row_latency.time_rows", lambda *_: pytest.fail("timed"))
    images = np.zeros((20, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "x.npz", input=images, labels=np.full(20, 10))
    with pytest.raises(DataError, match="label 10 names none of the 10 classes"):
        benchmark([onnx_path], replace(QUICK, data=str(tmp_path / "x.npz"), samples=None, latency=LatencyConfig()))


def test_quantisation_never_sees_the_images_that_judge_it(onnx_path, npz_path):
    with pytest.raises(InputError, match=r"--precision int8: needs images .* other than those of .*inputs\.npz"):
        benchmark([onnx_path], replace(QUICK, data=str(npz_path), samples=None, precisions=("fp32", "int8")))
    found = benchmark([onnx_path], replace(QUICK, data=str(npz_path), samples=None, repairs=(RepairTrial("auto", 8),)))
    assert found.repairs is None
    assert "has no training part" in found.notes[0]


def test_images_that_both_repair_and_judge_are_told(onnx_path, npz_path):
    config = replace(QUICK, repairs=(RepairTrial("exact", 16),), samples=50)
    x, y = np.random.default_rng(0).normal(0, 1, (64, 1, 8, 8)).astype(np.float32), np.arange(64) % 10
    halves, loader = [(x[:32], y[:32]), (x[32:], y[32:])], DataLoader(list(zip(x, y, strict=True)), 16)
    fresh = ((x + step, y) for step in count())
    for data in (str(npz_path), halves, loader, fresh, None):
        same = replace(config, split="train") if data is None else replace(config, data=data, calibration=data)
        told = any("are among those that judge them" in note for note in benchmark([onnx_path], same).notes)
        assert told is (data is not fresh)
    assert benchmark([onnx_path], config).notes == ()


def test_the_same_file_twice_is_refused(onnx_path):
    with pytest.raises(InputError, match="is named twice"):
        benchmark([onnx_path, onnx_path], QUICK)


@pytest.mark.parametrize("sizes", [(0,), (2, 2)])
def test_batch_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(InputError, match="--batch"):
        replace(QUICK, latency_batches=sizes)


def test_the_environment_names_the_processor_and_the_gpu_while_it_was_timed(onnx_path, monkeypatch):
    state = {"GPU": "one", "SM clock": "900 MHz", "throttle reasons": "software power cap"}
    monkeypatch.setattr("vsfix.pipeline.benchmark.row_latency.GpuWatch", lambda: GpuWatch(lambda: state))
    latency = LatencyConfig(seconds=0.0001, min_runs=20, warm_up_seconds=0)
    timed = benchmark([onnx_path], replace(QUICK, latency=latency, latency_batches=(4,)))
    assert timed.environment["running batch 4"] == "SM clock 900 MHz, throttle reasons software power cap"
    assert timed.environment["peak memory"].endswith(" MiB")
    assert "the GPU was slowed down while batch 4 ran: software power cap" in timed.notes


def test_each_row_tells_which_bar_its_retention_reaches(found):
    for row in found.rows:
        kept = None if row.against_own is None else row.against_own.retention
        bar = 0.999 if kept and kept >= 0.999 else 0.99 if kept and kept >= 0.99 else 0.0
        assert row.retention_bar == (None if kept is None else bar)
    assert {row.retention_bar for row in found.rows} >= {None, 0.999}


def test_where_the_first_backend_is_missing_the_next_row_of_the_same_model_is_the_reference(onnx_path, repaired_path):
    config = replace(QUICK, backends=("onnxruntime-cuda", "onnxruntime"))
    found = benchmark([onnx_path, repaired_path], config)
    assert [row.status for row in found.rows] == ["SKIP", "PASS", "SKIP", "PASS"]
    assert found.reference == found.rows[1].label == found.reference_row.label
    assert found.rows[1].against_reference is None
    assert found.rows[3].against_reference.baseline == found.reference
    assert f"{found.rows[0].label}: did not run; the reference is {found.reference}" in found.notes
    cells = {column.header: list(column.cells) for column in benchmark_table(found).columns}
    assert [cell != "-" for cell in cells["pp"]] == [False, False, False, True]
    assert [budget.candidate for budget in benchmark_report(found).budgets] == [found.rows[3].label]
    assert benchmark_report(found).budgets[0].score == found.rows[1].score


def test_where_no_row_of_the_first_model_runs_there_is_no_reference(onnx_path, repaired_path):
    with pytest.raises(MissingComponentError):
        benchmark([onnx_path, repaired_path], replace(QUICK, backends=("onnxruntime-cuda",)))


def test_a_reference_that_is_not_finite_is_named(onnx_path, tmp_path):
    model = onnx.load(onnx_path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == model.graph.node[-1].input[2])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.nan, dtype=np.float32), bias.name))
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(DataError, match=r"broken\.onnx, onnxruntime, fp32: the reference is not finite"):
        benchmark([tmp_path / "broken.onnx"], QUICK)


def test_the_difference_to_the_reference_has_the_interval_of_its_flips(found):
    for row in found.rows[1:]:
        right, before, worse, better, _, _ = counted(found, row.label, found.reference)
        low, high = row.against_reference.difference.interval
        ends = paired_difference_interval(before - worse, worse, better, 300)
        assert (low / 100, high / 100) == pytest.approx(ends)
        assert low <= (right - before) / 3 <= high
