"""R in closed form, its interval on simulated data, and the test by changes of sign."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, UncomparableError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise_average.divergence import Meaning, NoisyOutputs, OutputKind
from vsfix.graph_passes.noise_average.noise_average import NoiseAverage, run_deployed
from vsfix.graph_passes.noise_average.samples import SampleSet
from vsfix.graph_passes.noise_average.severity import (
    DrawCollector,
    OutputReader,
    Reference,
    Severity,
    severity_of,
    sign_flip_p_value,
)

RNG = np.random.default_rng(12)
VALUES = OutputKind(Meaning.VALUES, "values", -1, "")
CLASSES = OutputKind(Meaning.CLASSES, "logits", 1, "")


def reference_of(kind, draws) -> Reference:
    return Reference({"y": NoisyOutputs(kind, np.asarray(draws)[:, :, None])}, {"y": OutputReader(kind, None)})


def study(graph, x, open_model, draws, kind=VALUES) -> tuple[Reference, dict[str, np.ndarray]]:
    samples = SampleSet.of([{"x": x}])
    collector = DrawCollector({"y": OutputReader(kind, None)}, draws, len(samples))
    sizes = dict(zip(samples.first, (len(batch["x"]) for batch in samples.batches), strict=True))
    for run in NoiseAverage(graph, samples, open_model).runs(range(draws)):
        collector.add(run.draw, run.first, sizes[run.first], run.arrays)
    return collector.reference(), run_deployed(graph, samples, open_model).outputs


def test_the_ratio_of_a_planted_network_is_the_closed_form(parse, open_model):
    """y = (x n)^2 with n = a / p: F = x^2 / p, f(.; 1) = x^2, and Var = x^4 (1 / p^3 - 1 / p^2)."""
    p = 0.7
    body = "(float[N, 4] x) => (float[N, 4] y) { d = Dropout (x, ratio, off) y = Mul (d, d) }"
    graph = import_graph(parse(body, {"ratio": np.array(1 - p, np.float32), "off": np.array(False)}))
    reference, outputs = study(graph, RNG.uniform(0.5, 1.5, (1500, 4)).astype(np.float32), open_model, 16)
    found = reference.severity(outputs)
    truth = (1 / p - 1) ** 2 / (1 / p**3 - 1 / p**2)
    assert found.low < truth < found.high
    assert found.ratio == pytest.approx(truth, rel=0.08)
    assert found.changed is None
    doubled = reference.severity({"y": 2 * outputs["y"]})
    assert doubled.low > truth, "another network must be told from it"


def test_the_first_of_two_looks_has_the_wider_interval_and_is_clear_far_below_every_bound_alone():
    apart, noise = RNG.normal(0.2, 0.3, 400), RNG.uniform(0.5, 1.5, 400)
    one, wider = severity_of(apart, noise), severity_of(apart, noise, level=0.975)
    assert wider.low < one.low < one.high < wider.high
    assert (wider.high - wider.low) / (one.high - one.low) == pytest.approx(2.24 / 1.96, rel=0.05)  # of a normal one
    assert Severity(0.2, 0.1, 0.39, 64).is_clear
    assert not Severity(0.2, 0.1, 0.41, 64).is_clear
    assert not Severity(0.2, 0.1, 0.39, 64, changed=0.03).is_clear  # may be as many as make it open
    assert not Severity(0.02, 0.01, 0.06, 64, bound=0.05).is_clear


def test_samples_without_noise_leave_an_interval_of_numbers():
    with np.errstate(all="raise"):
        found = severity_of(np.array([1.0, 0.0, 0.0]), np.array([1.0, -0.9, 0.0]))
    assert np.isfinite([found.ratio, found.low, found.high]).all()


def test_a_linear_network_is_healthy(parse, open_model):
    body = "(float[N, 4] x) => (float[N, 3] y) { d = Dropout (x, ratio, off) y = MatMul (d, w) }"
    weights = {
        "w": RNG.normal(size=(4, 3)).astype(np.float32),
        "ratio": np.array(0.5, np.float32),
        "off": np.array(False),
    }
    reference, outputs = study(
        import_graph(parse(body, weights)), RNG.normal(size=(200, 4)).astype(np.float32), open_model, 8
    )
    found = reference.severity(outputs)
    assert found.is_healthy
    assert found.ratio < 0.1


@pytest.mark.parametrize(("truth", "least"), [(1.0, 0.92), (8.0, 0.92)])
def test_the_interval_covers_the_truth(truth, least):
    """200 simulations of 64 samples: y = F + s n, the deployed one off by sqrt(R) s; s differs between samples."""
    rng = np.random.default_rng(21)
    covered = 0
    for seed in range(200):
        s = rng.gamma(4, 0.25, (64, 1))
        noise = rng.normal(size=(16, 64, 4)) * s
        off = np.sqrt(truth) * s * rng.choice([-1, 1], (64, 4)) * rng.uniform(0.5, 1.5, (64, 4)) / np.sqrt(13 / 12)
        found = reference_of(VALUES, noise).severity({"y": off}, seed)
        covered += found.low <= truth <= found.high
    assert least <= covered / 200 <= 0.985


def test_the_interval_covers_the_truth_where_distances_are_skewed():
    """32 lognormal distances, on which the quantiles of resampled ratios cover 88 of 100."""
    rng = np.random.default_rng(23)
    covered = plain = 0
    for seed in range(300):
        off, noise = np.exp(rng.normal(0, 0.9, 32)), np.exp(rng.normal(0, 0.3, 32))
        truth = np.exp(0.9**2 / 2 - 0.3**2 / 2)
        found = severity_of(off, noise, seed=seed)
        covered += found.low <= truth <= found.high
        rows = rng.integers(0, 32, (500, 32))
        low, high = np.quantile(off[rows].mean(1) / noise[rows].mean(1), [0.025, 0.975])
        plain += low <= truth <= high
    assert 0.92 <= covered / 300 <= 0.98
    assert plain < covered - 5


def test_few_samples_have_a_wide_interval_and_no_infinite_one():
    for count in (2, 3, 5, 8):
        found = severity_of(RNG.gamma(1, 1, count), RNG.gamma(2, 1, count))
        assert 0 <= found.low <= found.ratio <= found.high < 100 * found.ratio
    assert severity_of(np.ones(9), np.full(9, 2.0)).high == 0.5


def test_an_interval_of_copies_is_too_narrow():
    """The planted mistake: every sample four times."""
    rng = np.random.default_rng(22)
    covered = 0
    for seed in range(100):
        noise, off = rng.gamma(4, 0.25, 16), 2 * rng.gamma(1, 1, 16)
        found = severity_of(np.tile(off, 4), np.tile(noise, 4), seed=seed)
        covered += found.low <= 2 <= found.high
    assert covered < 80


def test_the_same_network_gives_the_same_interval_and_units_cancel():
    apart, noise = RNG.gamma(1, 1, 50), RNG.gamma(2, 1, 50)
    one, scaled = severity_of(apart, noise), severity_of(1e3 * apart, 1e3 * noise)
    assert one == severity_of(apart, noise)
    np.testing.assert_allclose([scaled.ratio, scaled.low, scaled.high], [one.ratio, one.low, one.high], rtol=1e-9)


def test_decisions_that_differ_are_counted():
    draws = np.full((4, 10, 3), [0.6, 0.3, 0.1])
    outputs = np.log(np.full((10, 3), [0.6, 0.3, 0.1]))
    outputs[:4] = outputs[:4, ::-1]
    assert reference_of(CLASSES, draws).changed({"y": outputs}) == pytest.approx(0.4)
    single = OutputKind(Meaning.PROBABILITIES, "probabilities", -1, "")
    assert reference_of(single, draws).changed({"y": np.full((10, 3), [0.6, 0.6, 0.1])}) == pytest.approx(1 / 3)


def test_some_samples_are_read_as_they_are_among_all():
    draws = RNG.normal(size=(8, 30, 2))
    reference, chosen = reference_of(VALUES, draws), np.arange(30) % 3 == 0
    q = RNG.normal(size=(30, 2))
    part = reference.rows(chosen)
    unit = reference.outputs["y"].noise_variance / part.outputs["y"].noise_variance
    np.testing.assert_allclose(part.distances({"y": q[chosen]}), unit * reference.distances({"y": q})[chosen])


def test_a_reader_of_some_positions_keeps_the_classes_together():
    scores = RNG.normal(size=(6, 3, 4, 5))
    kind = OutputKind(Meaning.CLASSES, "logits", 1, "")
    reader = OutputReader.of(kind, scores, 6, 1 << 23, 1)  # so many draws that few positions fit
    assert reader.chosen is not None
    found = reader(scores, 6)
    e = np.exp(np.moveaxis(scores, 1, -1).reshape(6, 20, 3))
    np.testing.assert_allclose(found, (e / e.sum(-1, keepdims=True))[:, reader.chosen], rtol=1e-10)


def test_what_is_not_finite_is_refused():
    collector = DrawCollector({"y": OutputReader(VALUES, None)}, 2, 4)
    with pytest.raises(DataError, match="not finite with the noise on"):
        collector.add(0, 0, 4, {"y": np.full((4, 2), np.inf)})


def test_one_sample_or_noise_that_does_nothing_is_refused():
    with pytest.raises(DataError, match="one sample"):
        severity_of(np.ones(1), np.ones(1))
    with pytest.raises(DataError, match="changes no output"):
        severity_of(np.ones(5), np.zeros(5))
    with pytest.raises(DataError, match="no floating-point output"):
        Reference({}, {})


@pytest.mark.parametrize("output", [np.zeros(()), np.zeros((10, 4, 3))])
def test_an_output_without_samples_on_its_first_axis_is_refused(output):
    with pytest.raises(DataError, match="first axis"):
        OutputReader.of(VALUES, output, 4, 4, 1)


@pytest.mark.parametrize("count", [3, 5, 6, 10, 40])
def test_differences_that_are_all_negative_are_as_rare_as_one_pattern_of_signs(count):
    found = sign_flip_p_value(-RNG.uniform(0.1, 1, count))
    assert found == pytest.approx(max(2.0**-count, 1e-4), rel=0.01)


@pytest.mark.parametrize("count", [2, 4, 8, 12])
def test_few_differences_are_compared_with_every_pattern_of_signs(count):
    for _ in range(20):
        d = RNG.normal(-0.3, 1, count)
        sums = np.array([np.dot(signs, d) for signs in product([-1, 1], repeat=count)])
        assert sign_flip_p_value(d) == pytest.approx(np.mean(sums <= d.sum() + 1e-9))


def test_no_difference_is_no_evidence():
    assert sign_flip_p_value(np.zeros(20)) == 1
    assert sign_flip_p_value(np.full(20, np.nan)) == 1
    assert sign_flip_p_value(np.ones(40)) == pytest.approx(1)


@pytest.mark.parametrize("skewed", [False, True])
def test_the_level_is_kept_under_the_null(skewed):
    """Symmetric differences: exact. Skewed ones of mean 0, as where few samples get far worse: measured, not exact."""
    rng = np.random.default_rng(31)
    d = rng.standard_t(2, (400, 20)) if not skewed else 1 - rng.exponential(1, (400, 20))
    values = np.array([sign_flip_p_value(row) for row in d])
    assert np.mean(values < 0.025) < 0.05
    shifted = np.array([sign_flip_p_value(row - 1) for row in d[:100]])
    assert np.mean(shifted < 0.025) > 0.5, "a true gain must be seen"


def test_an_output_that_no_noise_reaches_is_not_compared(parse, open_model):
    body = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
    { d = Dropout (x, ratio, off)  y = Mul (d, d)  z = Relu (x) }"""
    graph = import_graph(parse(body, {"ratio": np.array(0.3, np.float32), "off": np.array(False)}))
    samples = SampleSet.of([{"x": RNG.uniform(0.5, 1.5, (40, 4)).astype(np.float32)}])
    collector = DrawCollector({name: OutputReader(VALUES, None) for name in "yz"}, 8, len(samples))
    sizes = dict(zip(samples.first, (len(batch["x"]) for batch in samples.batches), strict=True))
    for run in NoiseAverage(graph, samples, open_model).runs(range(8)):
        collector.add(run.draw, run.first, sizes[run.first], run.arrays)
    reference = collector.reference()
    assert list(reference.outputs) == ["y"]
    outputs = run_deployed(graph, samples, open_model).outputs
    rounded = {**outputs, "z": outputs["z"] * np.float32(1 + 1e-6)}  # as another fusion would
    assert reference.severity(rounded).ratio == reference.severity(outputs).ratio < 2
    only = DrawCollector({"z": OutputReader(VALUES, None)}, 8, len(samples))
    for run in NoiseAverage(graph, samples, open_model).runs(range(8)):
        only.add(run.draw, run.first, sizes[run.first], run.arrays)
    silent = only.reference()
    with pytest.raises(UncomparableError, match="the noise changes no output"):
        silent.severity(outputs)


def test_r_that_may_lie_past_its_bound_leaves_open_whether_to_repair():
    assert not Severity(0.3, 0.2, 0.4, 256).is_open
    wide = Severity(0.3, 0.1, 1.9, 64)
    assert wide.is_open
    assert wide.doubt == "R = 0.30 (0.10 to 1.90) may lie past its bound, 0.85: more samples would tell"
    assert "does not tell whether" in Severity(0.6, 0.5, 0.7, 64).doubt
    assert not Severity(0.9, 0.8, 1.0, 64).is_open  # it is repaired
