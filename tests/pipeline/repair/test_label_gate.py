"""The files that `vsfix optimize --eval-data` writes and refuses, by losses that are counted beforehand."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import scipy.stats

from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.repair.label_judge import LabelJudge, LabelScores

RNG = np.random.default_rng(0)
W, G, BETA = RNG.normal(size=(12, 16)), RNG.normal(size=(16, 10)), RNG.normal(0, 0.1, 16)
X = RNG.normal(size=(2000, 12)).astype(np.float32)
TEST = RNG.normal(size=(6000, 12)).astype(np.float32)


def outputs(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The network in float64, with these statistics."""
    return np.maximum((x @ W - mean) / np.sqrt(variance + 1e-5) + BETA, 0) @ G


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
    assert low < -losses / 1000 < high
    assert (document["status"] == "FAIL") == (code == 1)
    moved = (
        f"{-losses / 10:+.2f} percentage points (95 % interval {100 * low:+.2f} to {100 * high:+.2f}), paired test p = "
    )
    for text in (result.stdout, (tmp_path / "p.html").read_text(), *([result.stderr] if code else [])):
        assert moved in " ".join(text.split()), text
    if code == 0 and p_value < 0.05:
        assert "WARN" in result.stdout
        assert "lower by more than chance, within --max-loss 0.6" in result.stdout


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


def test_a_limit_without_labelled_data_and_one_below_zero_are_refused(call, network, optimize, tmp_path):
    for limit in (-1, "nan"):
        assert "--max-loss" in optimize(*planted(*network, 1), "--max-loss", limit).stderr
    alone = call("optimize", tmp_path / "net.onnx", "-o", tmp_path / "o.onnx", "--max-loss", 1)
    assert alone.exit_code == 2
    assert "needs --eval-data" in alone.stderr


def test_an_output_that_is_not_finite_is_a_loss(parse, open_model):
    x = np.linspace(-1, 1, 300, dtype=np.float32)[:, None]
    judge = LabelJudge(Samples("labelled", {"x": x}, x.copy()), open_model, 64)
    fine = judge.scores(parse("(float[N, 1] x) => (float[N, 1] y) { y = Identity (x) }", {}))
    broken = judge.scores(parse("(float[N, 1] x) => (float[N, 1] y) { y = Sqrt (x) }", {}))
    assert judge.compare(fine, broken).is_worse
    assert judge.is_worse(fine, broken)
    assert not judge.compare(broken, broken).is_worse


def test_the_interval_of_the_difference_covers_in_95_of_100(open_model):
    rng = np.random.default_rng(1)
    judge = LabelJudge(Samples("labelled", {"x": X[:400]}, X[:400]), open_model, 64)
    covered = 0
    for _ in range(400):
        errors = rng.normal(size=(2, 100))
        low, high = judge.interval(-(errors[0] ** 2), -((0.6 * errors[0] + 0.9 * errors[1]) ** 2))
        covered += low < 1 - (0.36 + 0.81) < high
    assert 0.92 < covered / 400 < 0.98


def test_a_difference_within_chance_is_neither_better_nor_worse():
    scores = LabelScores("top-1", 0.9, 0.89, 0.4, (-0.03, 0.01), 500)
    assert not scores.is_worse
    assert not scores.is_better
    scores.require_no_loss("data", "")
