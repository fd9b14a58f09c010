"""How a cast is judged: by labels where there are some, by agreement with float32, and by what either can tell."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.pipeline.casting.cast_judge import CastJudge
from vsfix.pipeline.casting.casting import cast_model
from vsfix.pipeline.comparison.metric import Metric
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.repair.label_judge import LabelJudge

from .conftest import OVERFLOW, X, cast_command, drawn


def test_the_share_of_a_metric_is_that_of_what_is_better():
    assert Metric("mse").kept(-0.1, -0.2) == pytest.approx(0.5)
    assert Metric("top1").kept(0.8, 0.6) == pytest.approx(0.75)
    assert Metric("r2").kept(-0.5, -0.6) == pytest.approx(0.8)
    assert Metric("r2").kept(0.5, 0.6) > 1
    assert Metric("mse").kept(-0.1, -np.inf) == 0
    assert Metric("mse").kept(0.0, 0.0) == 1


def judge_of(model, labels, open_model, **options):
    labelled = LabelJudge.of(model, Samples("labelled", {"x": X}, labels), open_model, 64, **options)
    return CastJudge(model, [{"x": X}], open_model, labelled)


def test_labels_refuse_a_cast_that_loses_by_more_than_chance_and_say_both_numbers(overflow, open_model):
    with open_model(overflow) as runner:
        truth = runner.run({"x": X})["y"]
    with pytest.raises(CheckFailedError, match=r"SNR .* dB; on the labels top-1 100.0 -> .*percentage points"):
        cast_model(overflow, "fp16", {"x": X}, open_model, judge=judge_of(overflow, truth.argmax(axis=1), open_model))
    judge = judge_of(overflow, truth.argmax(axis=1), open_model)
    back = cast_model(overflow, "fp16", {"x": X}, open_model, judge=judge, keep=0.99).report
    assert back.put_back.names == {"big"}
    assert "top-1 of 'y' on the labels" in back.put_back.subject
    assert back.scores.gain >= -1


def test_an_output_that_no_label_judges_counts_too(parse, open_model):
    """The labels are those of `z`, which float16 does no harm; `y` is what it breaks."""
    a, b, c, d, e = drawn((8, 16), (16, 16), (16, 16), (16, 4), (8, 3))
    body = OVERFLOW.replace("=> (float[N, 4] y)", "=> (float[N, 3] z, float[N, 4] y)").replace(
        "{", "{ z = Gemm (x, we)", 1
    )
    weights = {"wa": a, "wb": 3000 * b, "wc": c, "wd": d, "we": e, "axes": np.array([1])}
    model = parse(body, weights)
    labels = (X @ e).argmax(axis=1)
    with pytest.raises(CheckFailedError, match=r"outputs without labels -?[0-9.]+ dB"):
        cast_model(model, "fp16", {"x": X}, open_model, judge=judge_of(model, labels, open_model))
    back = cast_model(model, "fp16", {"x": X}, open_model, judge=judge_of(model, labels, open_model), keep=0.95).report
    assert back.put_back.names == {"big"}
    assert back.put_back.subject == "top-1 of 'z' on the labels, and the agreement of y with float32"


def test_the_decisions_of_a_model_that_gives_nothing_else_count(parse, open_model):
    a, b, c, d = drawn((8, 16), (16, 16), (16, 16), (16, 4))
    body = OVERFLOW.replace("float[N, 4] y)", "int64[N] k)").replace(
        "(rc, wd)", "(rc, wd) k = ArgMax <axis=1, keepdims=0> (y)"
    )
    model = parse(body, {"wa": a, "wb": 3000 * b, "wc": c, "wd": d, "axes": np.array([1])})
    found = cast_model(model, "fp16", {"x": X}, open_model, keep=0.98).report
    assert found.put_back.names == {"big"}
    assert found.put_back.before < 0.9
    with open_model(model) as runner:
        decided = runner.run({"x": X})["k"]
    judge = judge_of(model, decided, open_model)
    assert judge.labels.scores(model).mean() == 1
    assert cast_model(model, "fp16", {"x": X}, open_model, judge=judge, keep=0.98).report.put_back.names == {"big"}


@pytest.mark.parametrize(("metric", "noise"), [("mse", 0.01), ("r2", 0.01), (None, 0.001)])
def test_an_error_may_grow_by_what_the_share_says(overflow, open_model, metric, noise):
    with open_model(overflow) as runner:
        truth = runner.run({"x": X})["y"]
    targets = truth + np.random.default_rng(3).normal(0, noise, truth.shape)
    judge = judge_of(overflow, targets, open_model, metric=metric)
    found = cast_model(overflow, "fp16", {"x": X}, open_model, judge=judge, keep=0.99)
    assert found.report.put_back.names >= {"big"}
    scores = judge.labels.scores(overflow).mean(), judge.labels.scores(found.runnable).mean()
    kept = scores[1] / scores[0] if metric == "r2" else scores[0] / scores[1]
    assert kept == pytest.approx(found.report.put_back.after, rel=1e-3)
    assert kept >= 0.99


def test_labels_that_show_no_loss_let_a_cast_pass_with_a_warning(parse, open_model):
    """An offset that float16 rounds away from: SNR below the gate, and the decisions are the same."""
    a, b = drawn((8, 16), (16, 4))
    body = "(float[N, 8] x) => (float[N, 4] y) { a = Gemm (x, wa) h = Add (a, o) k = Sub (h, o) y = Gemm (k, wb) }"
    model = parse(body, {"wa": a, "wb": b, "o": np.full(16, 50, np.float32)})
    with open_model(model) as runner:
        decided = runner.run({"x": X})["y"].argmax(axis=1)
    with pytest.raises(CheckFailedError, match=r"refused: in fp16"):
        cast_model(model, "fp16", {"x": X}, open_model)
    found = cast_model(model, "fp16", {"x": X}, open_model, judge=judge_of(model, decided, open_model))
    (warning,) = found.report.warnings
    assert "below 40), and the labels show no loss that is more than chance" in warning
    for few, words in ((7, "refused: in fp16"), (20, "labels don't rule out that 5 % are lost")):
        samples = Samples("few", {"x": X[:few]}, decided[:few])
        judge = CastJudge(model, [{"x": X}], open_model, LabelJudge.of(model, samples, open_model, 64))
        with pytest.raises(CheckFailedError, match=words):
            cast_model(model, "fp16", {"x": X}, open_model, judge=judge)


def test_labels_judge_the_file_that_is_written_and_what_stands_for_it(parse, open_model):
    """The float16 file alone is wrong, as where a runtime computes it otherwise than it is rounded."""
    a, b = drawn((8, 16), (16, 4))
    body = "(float[N, 8] x) => (float[N, 4] y) { a = Gemm (x, wa) h = Add (a, o) k = Sub (h, o) y = Gemm (k, wb) }"
    model = parse(body, {"wa": a, "wb": b, "o": np.full(16, 50, np.float32)})

    class FakeLabels:
        metric, max_loss = Metric("top1", "y", "labels"), None

        def scores(self, found):
            half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in found.graph.initializer)
            return np.zeros(200) if half else np.ones(200)

    with pytest.raises(CheckFailedError, match=r"on the labels top-1 100.0 -> 0.0 %"):
        cast_model(model, "fp16", {"x": X}, open_model, judge=CastJudge(model, [{"x": X}], open_model, FakeLabels()))


@pytest.mark.parametrize(("count", "warned"), [(7, True), (8, False)])
def test_labels_too_few_to_tell_a_share_are_said(overflow, open_model, count, warned):
    with open_model(overflow) as runner:
        targets = runner.run({"x": X})["y"] + np.random.default_rng(3).normal(0, 0.1, (200, 4))
    labels = LabelJudge.of(overflow, Samples("few", {"x": X[:count]}, targets[:count]), open_model, 64)
    judge = CastJudge(overflow, [{"x": X}], open_model, labels)
    report = cast_model(overflow, "fp16", {"x": X}, open_model, judge=judge, keep=0.9).report
    assert any("7 labelled samples can't tell whether 0.9 is kept" in said for said in report.warnings) == warned


def test_too_few_decisions_to_tell_a_share_are_said(overflow, open_model):
    for samples, words in ((50, ("50 decisions can't tell whether 0.99 is kept",)), (200, ())):
        judge = CastJudge(overflow, [{"x": X[:samples]}], open_model, output_kinds={"y": "classes"})
        report = cast_model(overflow, "fp16", {"x": X[:samples]}, open_model, judge=judge, keep=0.99).report
        assert len(report.warnings) == len(words)
        assert all(word in warning for word, warning in zip(words, report.warnings, strict=True))


def test_what_a_share_allows_is_no_refusal_and_what_it_does_not_allow_is_one(overflow, call, tmp_path, open_model):
    """bfloat16 costs these targets a fifth of their error, more than chance: the option says whether that is accepted."""
    with open_model(overflow) as runner:
        truth = runner.run({"x": X})["y"]
    onnx.save(overflow, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=X, labels=truth + np.random.default_rng(3).normal(0, 0.004, truth.shape))
    command = (
        *cast_command(tmp_path, "bf16"),
        "--data",
        tmp_path / "x.npz",
        "--eval-data",
        tmp_path / "x.npz",
        "--force",
    )
    plain = call(*command)
    assert (plain.exit_code, "refused: in bf16" in plain.stderr) == (1, True), plain.output
    loose = call(*command, "--keep-metric", 0.3)
    assert loose.exit_code == 0, loose.output
    assert "WARN" in loose.stdout
    assert "within --keep-metric 0.3" in " ".join(loose.stdout.split())
    tight = call(*command, "--keep-metric", 0.99, "--json", tmp_path / "o.json")
    assert tight.exit_code == 0, tight.output
    assert json.loads((tmp_path / "o.json").read_text())["scores"]["kept"] >= 0.99
