from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.statistics.moments import Moments
from vsfix.graph_passes.statistics.shift import geometric_mean, predicted_shift_ratio, shift_ratio, variance_ratio


def stored(parse, mean: float, variance: float):
    values = {"g": 1.0, "b": 0.0, "m": mean, "v": variance}
    weights = {name: np.full(2, value, np.float32) for name, value in values.items()}
    model = parse("(float[N, 2] x) => (float[N, 2] y) { y = BatchNormalization (x, g, b, m, v) }", weights)
    return find_batch_norms(import_graph(model))[0]


@pytest.mark.parametrize(
    ("noise", "ratio"), [("dropout:0.1", 0.9), ("dropout:0.5", 0.5), ("uout:0.1", 3 / 3.01), ("uout:0.5", 3 / 3.25)]
)
def test_without_a_mean_the_ratio_is_that_of_the_paper(parse, noise, ratio):
    predicted = predicted_shift_ratio(stored(parse, 0.0, 2.0), Noise.parse(noise).variance)
    np.testing.assert_allclose(predicted, ratio, rtol=1e-12)


def test_with_a_mean_the_ratio_inverts_the_training_form(parse):
    c, v, p = 0.7, 0.4, 0.8
    trained = (c**2 + v) / p - c**2
    predicted = predicted_shift_ratio(stored(parse, c, trained), Noise.parse("dropout:0.2").variance)
    np.testing.assert_allclose(predicted, v / trained, rtol=1e-6)


def test_statistics_that_contradict_the_noise_give_no_prediction(parse):
    assert np.isnan(predicted_shift_ratio(stored(parse, 3.0, 0.1), Noise.parse("dropout:0.5").variance)).all()


def test_the_ratio_is_real_over_stored(parse):
    real = Moments(10, counts=np.array([10]), group_means=np.zeros((1, 2)), group_centred_sums=np.array([[10.0, 0.0]]))
    ratio = shift_ratio(stored(parse, 0.0, 2.0), real)
    assert ratio[0] == 0.5
    assert np.isnan(ratio[1])


def test_the_variance_ratio_is_the_same_in_both_directions():
    assert variance_ratio(np.array([0.5, 2.0, np.nan])) == pytest.approx(2.0)
    assert variance_ratio(np.array([1.0])) == 1.0
    assert np.isnan(geometric_mean(np.array([np.nan])))
    assert geometric_mean(np.array([0.5, 8.0, np.nan])) == pytest.approx(2.0)
