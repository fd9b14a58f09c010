from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.noise import Noise
from vsfix.graph_passes.noise_sampling import apply_noise


def draw(text: str, values: np.ndarray, seed: int = 0) -> np.ndarray:
    return apply_noise(Noise.parse(text), values, np.random.default_rng(seed))


@pytest.mark.parametrize("text", ["dropout:0.5", "dropout:0.2", "uout:0.3", "feature-dropout:0.4"])
def test_noise_is_unbiased_and_has_its_variance(text):
    noise = Noise.parse(text)
    factor = draw(text, np.ones((4000, 40, 2, 2), dtype=np.float32)).astype(np.float64)
    draws = factor[:, :, 0, 0].size if text.startswith("feature") else factor.size
    assert factor.mean() == pytest.approx(1, abs=5 * np.sqrt(noise.variance / draws))
    assert factor.var() == pytest.approx(noise.variance, rel=12 / np.sqrt(draws))
    assert factor.var() != pytest.approx(1.1 * noise.variance, rel=12 / np.sqrt(draws)), "a tenth off must be seen"


def test_dropout_is_zero_or_scaled_and_independent_between_elements():
    y = draw("dropout:0.25", np.full((50, 8, 4, 4), 3.0, dtype=np.float32))
    assert set(np.unique(y)) == {np.float32(0), np.float32(4)}
    assert len(np.unique(y.reshape(50, 8, -1), axis=0)) == 50


def test_feature_dropout_drops_whole_channels():
    y = draw("feature-dropout:0.5", np.ones((60, 8, 4, 4), dtype=np.float32))
    assert (y == y[:, :, :1, :1]).all()
    assert 0 < (y[:, :, 0, 0] == 0).mean() < 1


def test_uout_stays_within_its_width():
    y = draw("uout:0.1", np.ones((100, 100), dtype=np.float32))
    assert 0.9 <= y.min() < 0.901
    assert 1.099 < y.max() <= 1.1001


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_type_and_the_input_stay_as_they_are(dtype):
    values = np.ones((4, 3), dtype=dtype)
    assert draw("dropout:0.5", values).dtype == dtype
    assert (values == 1).all()


def test_one_seed_gives_the_same_bits_and_another_others():
    values = np.ones((4, 30), dtype=np.float32)
    assert draw("dropout:0.5", values, 1).tobytes() == draw("dropout:0.5", values, 1).tobytes()
    assert draw("dropout:0.5", values, 1).tobytes() != draw("dropout:0.5", values, 2).tobytes()
