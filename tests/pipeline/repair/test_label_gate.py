"""The files that `vsfix optimize --eval-data` writes and refuses, by losses that are counted beforehand."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import scipy.stats
from sklearn import metrics as sklearn_metrics

from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.repair.label_judge import LabelJudge, LabelScores

RNG = np.random.default_rng(0)
W, G, BETA = RNG.normal(size=(12, 16)), RNG.normal(size=(16, 10)), RNG.normal(0, 0.1, 16)
X = RNG.normal(size=(2000, 12)).astype(np.float32)
TEST = RNG.normal(size=(6000, 12)).astype(np.float32)


def outputs(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The network in float64, with these statistics."""
    return np.maximum((x @ W - mean) / np.sqrt(variance + 1e-5) + BETA, 0) @ G


def noisy_average(x: np.ndarray) -> np.ndarray:
    """The mean of the softmax over draws of the noise, in float64."""
    rng, z = np.random.default_rng(7), X @ W
    noisy = z * (np.random.default_rng(8).random(z.shape) < 0.5) * 2
    total = np.zeros((len(x), 10))
    for _ in range(200):
        drawn = (x @ W) * (rng.random((len(x), 16)) < 0.5) * 2
        logits = np.maximum((drawn - noisy.mean(0)) / np.sqrt(noisy.var(0) + 1e-5) + BETA, 0) @ G
        spread = np.exp(logits - logits.max(axis=1, keepdims=True))
        total += spread / spread.sum(axis=1, keepdims=True)
    return total / 200


@pytest.fixture
def network(parse, tmp_path):
    """Linear-Dropout-BN-ReLU-Linear with the statistics of its noise, what it gives, and what `exact` makes of it."""
    z = X @ W
    noisy = z * (RNG.random(z.shape) < 0.5) * 2
    given = {"w": W, "g": G, "gamma": np.ones(16), "beta": BETA, "mean": noisy.mean(0), "var": noisy.var(0)}
    model = parse(
        "(float[N, 12] x) => (float[N, 10] y) { c = MatMul (x, w) d = Dropout (c, ratio) "
        "n = BatchNormalization (d, gamma, beta, mean, var) r = Relu (n) y = MatMul (r, g) }",
        {name: value.astype(np.float32) for name, value in given.items()} | {"ratio": np.array(0.5, np.float32)},
    )
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=X)
    return outputs(TEST, noisy.mean(0), noisy.var(0)), outputs(TEST, z.mean(0), z.var(0))


@pytest.fixture
def optimize(call, tmp_path):
    """Runs `optimize --method exact` against labelled data."""

    def run(labels: np.ndarray, rows: np.ndarray, *options: object):
        np.savez(tmp_path / "test.npz", x=TEST[rows], labels=labels)
        return call(
            *("optimize", tmp_path / "net.onnx", "-o", tmp_path / "out.onnx", "--data", tmp_path / "data.npz"),
            *("--samples", 2000, "--method", "exact", "--eval-data", tmp_path / "test.npz", *options),
        )

    return run


def planted(before: np.ndarray, after: np.ndarray, losses: int) -> tuple[np.ndarray, np.ndarray]:
    """1,000 samples, labelled by the file as given; the repaired one is wrong in so many of them."""
    top2 = np.sort(after, axis=1)
    clear = top2[:, -1] - top2[:, -2] > 0.2
    same = np.flatnonzero((before.argmax(1) == after.argmax(1)) & clear)[: 1000 - losses]
    other = np.flatnonzero((before.argmax(1) != after.argmax(1)) & clear)[:losses]
    assert len(same) + len(other) == 1000
    rows = np.concatenate([same, other])
    return before.argmax(1)[rows], rows


@pytest.mark.parametrize(
    ("losses", "options", "code"),
    [
        (1, (), 0),
        (5, (), 0),  # McNemar's p is 0.06
        (6, (), 1),  # and here 0.03
        (1, ("--max-loss", 0), 1),
        (1, ("--max-loss", 0.1), 0),
        (2, ("--max-loss", 0.1), 1),
        (6, ("--max-loss", 0.6), 0),
    ],
)
def test_a_loss_is_refused_beyond_chance_or_beyond_the_limit(network, optimize, tmp_path, losses, options, code):
    result = optimize(
        *planted(*network, losses), *options, "--json", tmp_path / "out.json", "--html", tmp_path / "p.html"
    )
    assert result.exit_code == code, result.output
    assert (tmp_path / "out.onnx").exists() == (code == 0)
    document = json.loads((tmp_path / "out.json").read_text())
    p_value = scipy.stats.binomtest(0, losses).pvalue
    assert document["scores"]["p_value"] == pytest.approx(p_value)
    low, high = document["scores"]["interval"]
    assert low < -losses / 10 < high
    assert (document["status"] == "FAIL") == (code == 1)
    moved = f"{-losses / 10:+.2f} percentage points (95 % interval {low:+.2f} to {high:+.2f}), paired test p = "
    for text in (result.stdout, (tmp_path / "p.html").read_text(), *([result.stderr] if code else [])):
        assert moved in " ".join(text.split()), text
    if code == 0 and p_value < 0.05:
        assert "WARN" in result.stdout
        assert "worse by more than chance, within --max-loss 0.6" in result.stdout


@pytest.mark.parametrize(("count", "code"), [(7, 1), (100, 0)])
def test_data_of_another_scale_is_taken_for_the_labels_alone_where_they_can_tell(
    network, optimize, tmp_path, count, code
):
    np.savez(tmp_path / "data.npz", x=250 * X)
    found = optimize(np.zeros(count, dtype=np.int64), np.arange(count), "--max-loss", 100)
    assert found.exit_code == code, found.output
    assert ("is off by a factor of" in found.stderr) == (code == 1)


def test_json_alone_is_on_stdout_when_the_repair_is_refused(network, optimize):
    result = optimize(*planted(*network, 20), "--json", "-")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["status"] == "FAIL"
    assert document["verdict"].startswith("Refused: on ")
    assert document["schema_version"] == 1
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("limit", "code"), [(None, 1), (1e9, 0), (1e-9, 1)])
def test_the_loss_of_numbers_is_in_units_of_their_squared_error(network, optimize, limit, code):
    before, _ = network
    rows = np.arange(1000)
    result = optimize(before[rows].astype(np.float32), rows, *(() if limit is None else ("--max-loss", limit)))
    assert result.exit_code == code, result.output
    assert "mean squared error" in result.stdout


@pytest.mark.parametrize(("limit", "code"), [(None, 1), (0.9, 0), (1e-6, 1)])
def test_a_metric_that_is_named_judges_in_its_own_unit(network, optimize, tmp_path, limit, code):
    before, after = network
    rows = np.arange(1000)
    options = () if limit is None else ("--max-loss", limit)
    noisy = before[rows] + np.random.default_rng(5).normal(0, 0.1, (1000, 10))
    page, document = tmp_path / "p.html", tmp_path / "o.json"
    result = optimize(noisy, rows, "--metric", "r2", *options, "--json", document, "--html", page)
    assert result.exit_code == code, result.output
    scores = json.loads(document.read_text())["scores"]
    assert (scores["metric"], scores["output"]) == ("R2", "y")
    assert scores["before"] == pytest.approx(sklearn_metrics.r2_score(noisy, before[rows]), abs=1e-5)
    assert scores["after"] == pytest.approx(sklearn_metrics.r2_score(noisy, after[rows]), abs=1e-5)
    assert "On labelled data: R2 of output 'y'" in result.stdout
    assert "On the labels, R2: " in page.read_text()


def test_a_function_of_the_user_judges(network, optimize, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judging.py").write_text("def worst(outputs, targets):\n    return -abs(outputs['y']).max(axis=1)\n")
    result = optimize(np.zeros(100), np.arange(100), "--metric", "judging:worst", "--max-loss", 1e9)
    assert result.exit_code == 0, result.output
    before, after = (-np.abs(outputs[:100]).max(axis=1).mean() for outputs in network)
    assert f"judging:worst {before:.4g} -> {after:.4g}" in " ".join(result.stdout.split())
    failing = optimize(np.zeros(100), np.arange(100), "--metric", "judging:best")
    assert failing.exit_code == 2


def test_data_without_labels_shows_how_far_the_outputs_agree(network, call, tmp_path):
    """With the file as given, by its decisions, in float64; with the average of its noise, which R is of."""
    np.savez(tmp_path / "test.npz", x=TEST[:500])
    command = ("optimize", tmp_path / "net.onnx", "-o", tmp_path / "out.onnx", "--data", tmp_path / "data.npz")
    command = (*command, "--samples", 2000, "--method", "exact", "--eval-data", tmp_path / "test.npz")
    result = call(*command, "--output-kind", "y=classes", "--json", tmp_path / "o.json", "--html", tmp_path / "p.html")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "o.json").read_text())
    (found,) = document["agreements"]
    before, after = (outputs[:500].argmax(axis=1) for outputs in network)
    assert found["repaired_given"] == pytest.approx((before == after).mean(), abs=0.003)
    average = noisy_average(TEST[:500]).argmax(axis=1)
    assert found["given_average"] == pytest.approx((before == average).mean(), abs=0.04)
    assert found["repaired_average"] == pytest.approx((after == average).mean(), abs=0.04)
    assert document["scores"] is None
    assert "On 500 samples without labels: how alike outputs are, not how right" in " ".join(result.stdout.split())
    assert "On 500 samples without labels &#39;y&#39; of the repaired file agrees" in (tmp_path / "p.html").read_text()
    wanted = call(*command, "--metric", "top1", "--force")
    assert wanted.exit_code == 2
    assert "no array 'labels' and none with the name of an output (y)" in wanted.stderr
    limited = call(*command, "--max-loss", 1, "--force")
    assert limited.exit_code == 2
    assert "no array 'labels'" in limited.stderr


def test_a_limit_without_labelled_data_and_one_below_zero_are_refused(call, network, optimize, tmp_path):
    for limit in (-1, "nan"):
        assert "--max-loss" in optimize(*planted(*network, 1), "--max-loss", limit).stderr
    alone = call("optimize", tmp_path / "net.onnx", "-o", tmp_path / "o.onnx", "--max-loss", 1)
    assert alone.exit_code == 2
    assert "needs --eval-data" in alone.stderr
    alone = call("optimize", tmp_path / "net.onnx", "-o", tmp_path / "o.onnx", "--metric", "r2")
    assert (alone.exit_code, "--metric: needs --eval-data" in alone.stderr) == (2, True)


def test_an_output_that_is_not_finite_is_a_loss(parse, open_model):
    x = np.linspace(-1, 1, 300, dtype=np.float32)[:, None]
    plain = parse("(float[N, 1] x) => (float[N, 1] y) { y = Identity (x) }", {})
    judge = LabelJudge.of(plain, Samples("labelled", {"x": x}, x.copy()), open_model, 64)
    fine = judge.scores(plain)
    broken = judge.scores(parse("(float[N, 1] x) => (float[N, 1] y) { y = Sqrt (x) }", {}))
    assert judge.compare(fine, broken).is_worse
    assert not judge.compare(broken, broken).is_worse


def test_a_difference_within_chance_is_neither_better_nor_worse():
    scores = LabelScores("top-1", "y", 90, 89, -1, (-3, 1), 0.4, 500, "percentage points")
    assert not scores.is_worse
    assert not scores.is_better
    scores.require_no_loss("data", "")
