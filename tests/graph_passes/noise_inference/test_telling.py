"""What a BatchNorm tells: numbers drawn so that the truth is known, and least squares of numpy beside ours."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm
from vsfix.graph_passes.noise.noise import NoiseKind
from vsfix.graph_passes.noise_inference.places import Place
from vsfix.graph_passes.noise_inference.telling import ChannelEvidence, Source, is_sure, jackknife_error
from vsfix.graph_passes.statistics.moments import Moments, MomentsAccumulator, SampleMoments

CHANNELS, SAMPLES = 40, 800


def source(name: str, *, direct: bool = False) -> Source:
    place = Place(gs.Variable(name), (name,), () if direct else ("Conv",), direct, True, direct, False, (), False)
    return Source(place, NoiseKind.DROPOUT)


def moments(values: np.ndarray) -> Moments:
    accumulator = MomentsAccumulator(16)
    accumulator.add(SampleMoments.of(values), 0)
    return accumulator.result()


def batch_norm(mean: np.ndarray, variance: np.ndarray) -> BatchNorm:
    constants = [
        gs.Constant(n, v)
        for n, v in zip("gbmv", (np.ones_like(mean), np.zeros_like(mean), mean, variance), strict=True)
    ]
    node = gs.Node("BatchNormalization", "bn", inputs=[gs.Variable("x"), *constants], outputs=[gs.Variable("y")])
    return BatchNorm("bn", node, tuple(constants))


def groups_of(values: np.ndarray) -> np.ndarray:
    """Means of the values in 16 groups, sample i in group i mod 16."""
    return np.stack([values[g::16].mean(axis=0) for g in range(16)])


@pytest.fixture
def drawn():
    """Inputs, their true moments, and what unit noise at two places adds, sample by sample, with its mean."""
    rng = np.random.default_rng(1)
    deviation, mean = rng.uniform(0.5, 2, CHANNELS), rng.normal(0, 1, CHANNELS)
    added = rng.uniform(0.2, 3, (2, CHANNELS))
    per_sample = added[:, None] * rng.chisquare(1, (2, SAMPLES, CHANNELS))
    return rng.normal(mean, deviation, (SAMPLES, CHANNELS)), mean, deviation**2, per_sample, added


def tell(drawn, variances, *, direct: bool = False):
    x, mean, variance, per_sample, added = drawn
    stored = variance + variances[0] * added[0] + variances[1] * added[1]
    if direct:
        stored = (1 + variances[1]) * (variance + variances[0] * added[0]) + variances[1] * mean**2
        per_sample = np.stack([per_sample[0], x**2])
    evidence = ChannelEvidence.of(batch_norm(mean, stored), moments(x))
    return evidence.tell("bn", [source("a"), source("b", direct=direct)], [groups_of(part) for part in per_sample])


@pytest.mark.parametrize("variances", [(1.0, 0.0), (0.0, 0.5), (0.4, 1.2), (0.0, 0.0)])
def test_the_variances_that_were_put_in_come_out(drawn, variances):
    telling = tell(drawn, variances)
    fit = telling.fit([0, 1])
    found = np.zeros(2)
    found[list(fit.chosen)] = fit.variances[0]
    assert found == pytest.approx(variances, abs=0.08)
    assert abs(fit.left[0]) < 0.003
    assert telling.means[0] == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("variances", [(1.0, 1.0), (0.3, 0.25)])
def test_noise_on_what_the_batch_norm_reads_falls_on_the_other_noise_too(drawn, variances):
    telling = tell(drawn, variances, direct=True)
    fit = telling.fit([0, 1])
    assert fit.chosen == (0, 1)
    assert fit.variances[0] == pytest.approx(variances, rel=0.2)
    assert telling.left_by({0: float(fit.variances[0, 0]), 1: float(fit.variances[0, 1])})[0] == pytest.approx(
        fit.left[0]
    )


def test_sampling_errors_do_not_bend_the_fit():
    """400 BatchNorms with few samples: the mean of the estimates is the truth; squares of one group's own are not."""
    rng = np.random.default_rng(3)
    ours, plain = [], []
    for _ in range(400):
        variance, added = rng.uniform(0.5, 2, 30), rng.uniform(0.2, 0.6, 30)
        x = rng.normal(0, np.sqrt(variance), (64, 30))
        q = added * rng.chisquare(1, (64, 30))
        stored = variance + 1.0 * added
        evidence = ChannelEvidence.of(batch_norm(np.zeros(30), stored), moments(x))
        telling = evidence.tell("bn", [source("a")], [groups_of(q)])
        ours.append(telling.products[0, 1, 0] / telling.products[0, 1, 1])
        plain.append(telling.products[0, 1, 1] / np.mean((q.mean(axis=0) / stored) ** 2))
    error = np.std(ours) / np.sqrt(len(ours))
    assert np.mean(ours) == pytest.approx(1.0, abs=max(4 * error, 0.03))
    assert np.mean(plain) < 0.98


def test_the_residual_of_the_truth_is_zero_on_average():
    rng = np.random.default_rng(5)
    left = []
    for _ in range(200):
        x = rng.normal(0, 1, (96, 20))
        left.append(ChannelEvidence.of(batch_norm(np.zeros(20), np.ones(20)), moments(x)).tell("bn", (), ()).without[0])
    assert abs(np.mean(left)) < 4 * np.std(left) / np.sqrt(len(left))


def test_dead_channels_and_wild_ones_are_no_evidence():
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (320, 4))
    x[:, 0] = 0.5  # never varies
    x[:, 1] = 0
    x[7, 1] = 30.0  # one sample makes its variance
    stored = batch_norm(np.zeros(4), np.array([1.0, 1.0, 0.0, 1.0]))
    evidence = ChannelEvidence.of(stored, moments(x))
    assert evidence.weights.tolist() == [0, 0, 0, 1]


def test_a_place_has_one_kind_of_noise(drawn):
    x, mean, variance, per_sample, _ = drawn
    one = source("a")
    other = Source(one.place, NoiseKind.FEATURE_DROPOUT)
    evidence = ChannelEvidence.of(batch_norm(mean, 2 * variance), moments(x))
    telling = evidence.tell("bn", [one, other], [groups_of(part) for part in per_sample])
    assert all(len(fit.chosen) < 2 for fit in telling.fits([0, 1]))


def test_the_jackknife_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(0, 1, 16)
    estimates = np.array([values.mean(), *(np.delete(values, i).mean() for i in range(16))])
    assert jackknife_error(estimates) == pytest.approx(values.std(ddof=1) / 4)


def test_chance_alone_is_sure_no_more_often_than_three_errors_allow():
    rng = np.random.default_rng(8)
    sure = 0
    for _ in range(300):
        x = rng.normal(0, 1, (160, 1)) * np.ones((1, 12)) + 0.3 * rng.normal(
            0, 1, (160, 12)
        )  # one factor in all channels
        telling = ChannelEvidence.of(batch_norm(np.zeros(12), np.full(12, 1.09)), moments(x)).tell("bn", (), ())
        sure += is_sure(telling.without, 0.0)
    assert sure <= 0.05 * 300 + 3 * np.sqrt(0.05 * 0.95 * 300)


def test_every_set_of_three_is_tried():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (320, 60))
    sources = [source(name) for name in "abcd"]
    added = [groups_of(rng.uniform(0.1, 2, 60) * np.ones((320, 60))) for _ in sources]
    stored = 1 + 0.5 * added[1][0] + 0.3 * added[3][0]
    telling = ChannelEvidence.of(batch_norm(np.zeros(60), stored), moments(x)).tell("bn", sources, added)
    tried = {fit.chosen for fit in telling.fits(range(4))}
    assert tried <= {c for size in range(4) for c in itertools.combinations(range(4), size)}
    assert {1, 3} <= set(telling.fit(range(4)).chosen)
