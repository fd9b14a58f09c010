from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.benchmark.benchmark_file import read_benchmark
from vsfix.pipeline.benchmark.benchmarking import BenchmarkConfig, benchmark
from vsfix.pipeline.benchmark.comparing import FailRule, compare_files, parse_fail_rule
from vsfix.pipeline.benchmark.latency import LatencyConfig
from vsfix.pipeline.host.console import json_text


@pytest.fixture(scope="module")
def document(onnx_path):
    """A benchmark as JSON: one model in float32 and float16, one batch size."""
    latency = LatencyConfig(seconds=0.0001, min_runs=20, warm_up_seconds=0.0)
    config = BenchmarkConfig(
        "digits", samples=100, precisions=("fp32", "fp16"), repairs=(), latency=latency, latency_batches=(1,)
    )
    return json.loads(json_text(benchmark([onnx_path], config).to_dict()))


def write(path, document, change=lambda document: None):
    """The document as a file, changed."""
    copy = json.loads(json.dumps(document))
    change(copy)
    path.write_text(json.dumps(copy))
    return path


def changes_of(document, tmp_path, change, *rules):
    """The comparison of the document with what `change` makes of it."""
    before, after = write(tmp_path / "a.json", document), write(tmp_path / "b.json", document, change)
    return compare_files(before, after, rules)


def test_a_run_and_itself_are_the_same(document, tmp_path):
    found = changes_of(document, tmp_path, lambda document: None)
    assert {change.direction for change in found.changes} == {"same"}
    # Of the first row top-1, p50, p99 and size; of the second retention, agreement and SNR too.
    assert len(found.changes) == 4 + 7
    assert (found.gone, found.added, found.warnings, found.failures) == ((), (), (), ())


@pytest.mark.parametrize(
    ("path", "value", "metric", "direction"),
    [
        (("score", "value"), 0.0, "top1", "worse"),
        (("score", "value"), 100.0, "top1", "better"),
        (("against_own", "decisions", "agreement"), 0.2, "agreement", "worse"),
        (("latencies", 0, "p50_ms"), 1e6, "p50 batch 1", "worse"),
        (("latencies", 0, "p99_ms"), 1e-9, "p99 batch 1", "better"),
        (("size",), 10**9, "size", "worse"),
    ],
)
def test_each_number_is_better_or_worse_in_its_own_direction(document, tmp_path, path, value, metric, direction):
    def change(document):
        at = document["rows"][1]
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    found = [change for change in changes_of(document, tmp_path, change).changes if change.direction != "same"]
    assert [(change.row[2], change.metric, change.direction) for change in found] == [("fp16", metric, direction)]


def lower_top1(document):
    document["rows"][0]["score"]["value"] -= 1.0


@pytest.mark.parametrize(("limit", "fails"), [(0.5, True), (1.0, False), (2.0, False)])
def test_a_rule_breaks_past_its_limit_and_not_at_it(document, tmp_path, limit, fails):
    found = changes_of(document, tmp_path, lower_top1, FailRule("top1", limit))
    assert bool(found.failures) == fails
    assert not changes_of(document, tmp_path, lower_top1, FailRule("snr", 0.0)).failures


def test_what_is_gone_breaks_the_rule_that_watches_it(document, tmp_path):
    def drop_row(document):
        del document["rows"][1]

    def drop_times(document):
        document["rows"][1]["latencies"] = []

    found = changes_of(document, tmp_path, drop_row, FailRule("top1", 100.0))
    assert found.gone == ("network.onnx, onnxruntime, fp16",)
    assert "is gone" in found.failures[0]
    found = changes_of(document, tmp_path, drop_times, FailRule("p50", 100.0))
    assert len(found.gone) == 2
    assert len(found.failures) == 1
    assert not changes_of(document, tmp_path, drop_times, FailRule("top1", 100.0)).failures


def test_other_data_another_machine_and_a_worse_status_are_told(document, tmp_path):
    def change(document):
        document["samples"], document["environment"]["machine"] = 50, "another"
        document["rows"][1]["status"] = "FAIL"

    warnings = changes_of(document, tmp_path, change).warnings
    assert [warning.split(":")[0] for warning in warnings] == [
        "other data",
        "another machine",
        "network.onnx, onnxruntime, fp16",
    ]


def test_another_choice_of_as_many_samples_is_told(document, tmp_path, onnx_path):
    config = BenchmarkConfig("digits", samples=100, seed=1, repairs=(), latency=LatencyConfig(seconds=0.0))
    digests = {benchmark([onnx_path], replace(config, seed=seed)).digest for seed in (0, 0, 1)}
    assert len(digests) == 2
    assert document["digest"] in digests

    def change(document):
        document["digest"] = "another"

    (warning,) = changes_of(document, tmp_path, change).warnings
    assert warning.startswith("other samples of digits")


@pytest.mark.parametrize("text", ["top1", "top1=", "top1=-1", "top2=1", "p50=nan", "p50=inf"])
def test_a_rule_that_can_t_be_read_is_refused(text):
    with pytest.raises(InputError, match="write METRIC=LIMIT"):
        parse_fail_rule(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not what"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1, "rows": [{}]}', "is not what"),
        ("[" * 100000, "is not JSON"),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_benchmark(tmp_path / "x.json")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_benchmark(tmp_path / "gone.json")


def snr_of_second(snr_db, max_abs):
    """A change of a document: what the JSON holds of the SNR of its second row."""

    def change(document):
        for output in document["rows"][1]["against_own"]["outputs"].values():
            output.update(snr_db=snr_db, max_abs=max_abs)

    return change


@pytest.mark.parametrize(
    ("before", "after", "direction", "fails"),
    [
        ((None, 0.0), (20.0, 0.1), "worse", True),  # exact, then not
        ((60.0, 0.1), (None, 0.0), "better", False),
        ((60.0, 0.1), (None, None), "worse", True),  # then not finite
        ((None, 0.0), (None, 0.0), "same", False),
    ],
)
def test_an_exact_row_is_the_best_there_is_and_one_that_is_not_finite_the_worst(
    document, tmp_path, before, after, direction, fails
):
    first = write(tmp_path / "a.json", document, snr_of_second(*before))
    second = write(tmp_path / "b.json", document, snr_of_second(*after))
    found = compare_files(first, second, [FailRule("snr", 3.0)])
    assert [change.direction for change in found.changes if change.metric == "snr"] == [direction]
    assert (bool(found.failures), found.gone, found.added) == (fails, (), ())


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", '"nan"', "true", "1" + 400 * "0"])
def test_what_is_no_finite_number_is_refused_and_not_called_better(document, tmp_path, text):
    document = json.loads(json.dumps(document))
    document["rows"][0]["score"]["value"] = document["rows"][1]["size"] = "HERE"
    (tmp_path / "x.json").write_text(json.dumps(document).replace('"HERE"', text))
    with pytest.raises(InputError, match="is not"):
        read_benchmark(tmp_path / "x.json")


def test_a_name_that_can_t_be_printed_is_refused(document, tmp_path):
    path = write(tmp_path / "x.json", document, lambda document: document["rows"][0].update(model="\ud800.onnx"))
    with pytest.raises(InputError, match="is not what"):
        read_benchmark(path)


def test_a_rule_that_nothing_can_be_held_against_is_broken(document, tmp_path):
    def drop_times(document):
        for row in document["rows"]:
            row["latencies"] = []

    path = write(tmp_path / "a.json", document, drop_times)
    assert compare_files(path, path, [FailRule("p50", 10.0)]).failures == (
        "no row of both runs has p50, so that p50=10 can't be held",
    )
    assert compare_files(path, write(tmp_path / "b.json", document), [FailRule("p50", 10.0)]).failures
    assert not compare_files(path, path, [FailRule("top1", 0.0)]).failures


def test_a_gone_row_breaks_a_rule_whatever_its_file_is_called(document, tmp_path):
    def rename(document):
        for row in document["rows"]:
            row["model"] = "a: size.onnx"

    def drop(document):
        rename(document)
        del document["rows"][1]

    before, after = write(tmp_path / "a.json", document, rename), write(tmp_path / "b.json", document, drop)
    assert len(compare_files(before, after, [FailRule("top1", 1.0)]).failures) == 1


def test_files_of_one_name_in_two_folders_are_told_apart_by_their_paths(document, tmp_path):
    def two_folders(document):
        document["rows"][0].update(model="old/net.onnx", precision="fp32")
        document["rows"][1].update(model="new/net.onnx", precision="fp32")

    path = write(tmp_path / "a.json", document, two_folders)
    assert [model for model, _, _ in read_benchmark(path).rows] == ["old/net.onnx", "new/net.onnx"]
    assert len(compare_files(path, path, []).changes) == 4 + 7


def test_a_pipe_is_not_waited_for_and_what_no_benchmark_can_be_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "sparse.json").touch()
    os.truncate(tmp_path / "sparse.json", 1 << 40)
    for name, said in (("pipe.json", "is a pipe"), ("sparse.json", "larger than 64 MiB")):
        with pytest.raises(InputError, match=f"{name}: can't be read: .*{said}"):
            read_benchmark(tmp_path / name)


def ratio_of(document, value, interval):
    """Gives the second row a baseline, and a ratio to it."""
    document["rows"][1]["latencies"][0] |= {"ratio": value, "ratio_interval": interval, "is_baseline": False}


@pytest.mark.parametrize(
    ("interval", "direction", "fails"), [([1.0, 1.15], "same", False), ([1.08, 1.12], "worse", True)]
)
def test_a_ratio_is_worse_where_its_interval_says_so(document, tmp_path, interval, direction, fails):
    before = write(tmp_path / "a.json", document, lambda document: ratio_of(document, 1.0, [0.98, 1.02]))
    after = write(tmp_path / "b.json", document, lambda document: ratio_of(document, 1.1, interval))
    found = compare_files(before, after, [FailRule("ratio", 5.0)])
    (change,) = [change for change in found.changes if change.metric == "ratio batch 1"]
    assert (change.direction, round(change.change)) == (direction, 10)
    assert bool(found.failures) == fails


def test_a_tie_that_was_measured_is_a_ratio_like_any_other(document, tmp_path):
    for name in ("a.json", "b.json"):
        write(tmp_path / name, document, lambda document: ratio_of(document, 1.0, [1.0, 1.0]))
    assert compare_files(tmp_path / "a.json", tmp_path / "b.json", [FailRule("ratio", 5.0)]).failures == ()


def test_a_row_that_is_its_own_baseline_has_no_ratio_to_compare(document, tmp_path):
    assert changes_of(document, tmp_path, lambda document: None, FailRule("ratio", 5.0)).failures


def test_another_gpu_or_processor_is_another_machine_and_a_file_that_names_none_is_not(document, tmp_path):
    before = write(tmp_path / "a.json", document, lambda document: document["environment"].update(GPU="one"))
    after = write(tmp_path / "b.json", document, lambda document: document["environment"].update(GPU="two"))
    (warning,) = compare_files(before, after, []).warnings
    assert warning == "another GPU: one, then two; times can't be compared"
    assert compare_files(before, write(tmp_path / "c.json", document), []).warnings == ()


@pytest.mark.parametrize(("moved", "told"), [(1, True), (5, True), (6, False)])
def test_top1_that_moved_by_so_few_samples_that_it_may_be_chance_is_told(document, tmp_path, moved, told):
    def change(document):
        document["rows"][0]["score"]["count"] += moved

    warnings = changes_of(document, tmp_path, change).warnings
    assert any(f"no more than {moved} of 100 samples" in warning for warning in warnings) == told


def test_times_that_differ_on_a_machine_that_was_not_quiet_are_doubted(document, tmp_path):
    def slow(document, cv):
        document["rows"][1]["latencies"][0].update(p50_ms=1e6)
        for row in document["rows"]:
            row["latencies"][0]["cv"] = cv

    before = write(
        tmp_path / "a.json", document, lambda document: [r["latencies"][0].update(cv=0.01) for r in document["rows"]]
    )
    for cv, told in ((0.01, False), (0.3, True)):
        after = write(tmp_path / "b.json", document, partial(slow, cv=cv))
        assert any("up to 30%" in warning for warning in compare_files(before, after, []).warnings) == told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row["latencies"][0].update(p50_ms=-1.0), "-1.0 is negative"),
        (lambda row: row.update(size=-5), "-5 is negative"),
        (lambda row: row["latencies"].append(row["latencies"][0] | {"p50_ms": 0.0}), "has batch 1 twice"),
    ],
)
def test_a_time_below_nothing_and_two_times_for_one_batch_are_refused(document, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        changes_of(document, tmp_path, lambda document: change(document["rows"][0]))


def judged_by(key, output, higher):
    """A change of a document: its metric, with the score of each row."""

    def change(document):
        document["metric"] = {"key": key, "name": key, "output": output, "unit": "", "higher_is_better": higher}
        for row, value in zip(document["rows"], (0.5, 0.4), strict=True):
            row["score"] |= {"metric": key, "value": value, "count": None, "unit": "", "is_loss": not higher}

    return change


@pytest.mark.parametrize(
    ("key", "moved", "direction", "said"),
    [
        ("mse", 0.05, "worse", "mse 0.5 -> 0.55 (+10 %), allowed is a loss of 5"),
        ("mse", -0.05, "better", ""),
        ("mse", 1e-7, "same", ""),
        ("r2", -0.1, "worse", "r2 0.5 -> 0.4 (-0.1), allowed is a loss of 0.05"),
        ("r2", 0.1, "better", ""),
        ("judging:near", -0.1, "worse", "metric 0.5 -> 0.4 (-0.1), allowed is a loss of 0.05"),
    ],
)
def test_a_metric_is_better_or_worse_in_its_own_direction(document, tmp_path, key, moved, direction, said):
    change = judged_by(key, "y", key != "mse")

    def after(document):
        change(document)
        document["rows"][0]["score"]["value"] += moved

    first, second = write(tmp_path / "a.json", document, change), write(tmp_path / "b.json", document, after)
    name = key if ":" not in key else "metric"
    found = compare_files(first, second, [parse_fail_rule(f"{name}={5 if key == 'mse' else 0.05}")])
    assert [change.direction for change in found.changes if change.metric == name] == [direction, "same"]
    assert [failure.split("fp32: ")[1] for failure in found.failures] == ([said] if said else [])


def test_a_score_that_is_not_finite_is_the_worst_there_is(document, tmp_path):
    change = judged_by("mse", "y", False)

    def broken(document):
        change(document)
        document["rows"][0]["score"]["value"] = None

    first, second = write(tmp_path / "a.json", document, change), write(tmp_path / "b.json", document, broken)
    assert compare_files(first, second, [FailRule("mse", 5.0)]).failures[0].count("not finite") == 1
    assert not compare_files(second, first, [FailRule("mse", 5.0)]).failures


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (judged_by("mse", "y", False), "holds r2 of output 'y' and .*b.json holds mse of output 'y'"),
        (judged_by("r2", "z", True), "holds r2 of output 'y' and .*b.json holds r2 of output 'z'"),
        (lambda document: document.update(metric=None), "b.json holds no metric, since its data had no labels"),
    ],
)
def test_two_runs_by_different_metrics_or_outputs_are_refused(document, tmp_path, other, said):
    first = write(tmp_path / "a.json", document, judged_by("r2", "y", True))
    second = write(tmp_path / "b.json", document, other)
    with pytest.raises(InputError, match=said) as error:
        compare_files(first, second, [])
    assert "\n" not in str(error.value)


def test_runs_without_labels_are_compared_by_what_they_have(document, tmp_path):
    def bare(document):
        document["metric"] = None
        for row in document["rows"]:
            row["score"] = None

    path = write(tmp_path / "a.json", document, bare)
    assert "top1" not in {change.metric for change in compare_files(path, path, []).changes}
    assert compare_files(path, path, [FailRule("top1", 1.0)]).failures
