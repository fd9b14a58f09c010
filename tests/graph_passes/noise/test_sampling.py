from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.noise.sampling import apply_noise, draw_affine, generators_of

MULTIPLICATIVE = [
    "dropout:0.5",
    "dropout:0.2",
    "uout:0.3",
    "uout-bernoulli:0.3",
    "uout-gaussian:0.3",
    "feature-dropout:0.4",
    "gaussian-dropout:0.3",
    "drop-path:0.2",
]
EVERY = [*MULTIPLICATIVE, "alpha-dropout:0.3", "feature-alpha-dropout:0.6"]


def draw(text: str, values: np.ndarray, seed: int = 0) -> np.ndarray:
    return apply_noise(Noise.parse(text), values, np.random.default_rng(seed))


@pytest.mark.parametrize("text", MULTIPLICATIVE)
def test_noise_is_unbiased_and_has_its_variance(text):
    noise = Noise.parse(text)
    shape = (160_000, 1, 2, 1) if text.startswith("drop-path") else (4000, 40, 2, 2)
    factor = draw(text, np.ones(shape, dtype=np.float32)).astype(np.float64)
    draws = factor[:, :, 0, 0].size if text.startswith(("feature", "drop-path")) else factor.size
    assert factor.mean() == pytest.approx(1, abs=5 * np.sqrt(noise.variance / draws))
    assert factor.var() == pytest.approx(noise.variance, rel=12 / np.sqrt(draws))
    assert factor.var() != pytest.approx(1.1 * noise.variance, rel=12 / np.sqrt(draws)), "a tenth off must be seen"


def torch_drop_path(x: torch.Tensor, ratio: float) -> torch.Tensor:
    return x * F.dropout(torch.ones(len(x), *[1] * (x.dim() - 1)), ratio, True)


def torch_gaussian(x: torch.Tensor, ratio: float) -> torch.Tensor:
    return torch.normal(x, x.abs() * (ratio / (1 - ratio)) ** 0.5)


TORCH: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "dropout": lambda x, ratio: F.dropout(x, ratio, True),
    "feature-dropout": lambda x, ratio: F.dropout2d(x, ratio, True),
    "alpha-dropout": lambda x, ratio: F.alpha_dropout(x, ratio, True),
    "feature-alpha-dropout": lambda x, ratio: F.feature_alpha_dropout(x, ratio, True),
    "gaussian-dropout": torch_gaussian,
    "drop-path": torch_drop_path,
}


def moments(noisy: np.ndarray) -> np.ndarray:
    """The moments that distinguish the kinds: mean, second, third moment, and products of neighbours that may share a draw."""
    y = noisy.astype(np.float64)
    pairs = [y[..., 0, 0] * y[..., 0, 1], y[:, 0] * y[:, 1], y[:-1] * y[1:]]
    return np.array([y.mean(), (y**2).mean(), (y**3).mean(), *[product.mean() for product in pairs]])


@pytest.mark.parametrize("text", [text for text in EVERY if not text.startswith("uout")])
def test_moments_are_those_of_torch_in_training_mode(text):
    kind, _, ratio = text.partition(":")
    x = np.full((60_000, 4, 2, 2), 0.8, dtype=np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        truth = moments(TORCH[kind](torch.from_numpy(x), float(ratio)).numpy())
    # The third moment of the rarest draws has the widest error: (2.5 * 0.8)^3 / sqrt(60000) = 0.03.
    np.testing.assert_allclose(moments(draw(text, x)), truth, atol=0.04)
    other = {"dropout": "drop-path", "feature-dropout": "dropout", "drop-path": "feature-dropout"}.get(kind, "dropout")
    assert np.abs(moments(draw(f"{other}:{ratio}", x)) - truth).max() > 0.08, "another kind must be seen"


@pytest.mark.parametrize("kind", ["alpha-dropout", "feature-alpha-dropout"])
def test_the_two_values_of_alpha_dropout_are_those_of_torch(kind):
    x = np.full((200, 20, 2, 2), 1.5, dtype=np.float32)
    truth = np.unique(TORCH[kind](torch.from_numpy(x), 0.3).numpy())
    np.testing.assert_allclose(np.unique(draw(f"{kind}:0.3", x)), truth, rtol=1e-6)


def test_alpha_dropout_keeps_mean_zero_and_variance_one():
    x = np.random.default_rng(1).standard_normal((1000, 1000), dtype=np.float32)
    y = draw("alpha-dropout:0.4", x).astype(np.float64)
    assert y.mean() == pytest.approx(0, abs=0.005)
    assert y.var() == pytest.approx(1, abs=0.01)


def test_dropout_is_zero_or_scaled_and_independent_between_elements():
    y = draw("dropout:0.25", np.full((50, 8, 4, 4), 3.0, dtype=np.float32))
    assert set(np.unique(y)) == {np.float32(0), np.float32(4)}
    assert len(np.unique(y.reshape(50, 8, -1), axis=0)) == 50


@pytest.mark.parametrize("kind", ["feature-dropout", "feature-alpha-dropout"])
def test_feature_noise_takes_whole_channels(kind):
    y = draw(f"{kind}:0.5", np.ones((60, 8, 4, 4), dtype=np.float32))
    assert (y == y[:, :, :1, :1]).all()
    assert 0 < (y[:, :, 0, 0] == y.min()).mean() < 1
    assert len(np.unique(y[:, :, 0, 0], axis=0)) > 30


@pytest.mark.parametrize("shape", [(60, 8, 4, 4), (60, 8), (60,)])
def test_drop_path_takes_whole_samples(shape):
    y = draw("drop-path:0.5", np.ones(shape, dtype=np.float32)).reshape(60, -1)
    assert (y == y[:, :1]).all()
    assert set(np.unique(y)) == {0, 2}


def test_uout_stays_within_its_width():
    y = draw("uout:0.1", np.ones((100, 100), dtype=np.float32))
    assert 0.9 <= y.min() < 0.901
    assert 1.099 < y.max() <= 1.1001


@pytest.mark.parametrize("text", [f"{text.partition(':')[0]}:0" for text in EVERY if not text.startswith("uout")])
def test_a_ratio_of_zero_changes_nothing(text):
    x = np.random.default_rng(2).standard_normal((4, 3, 2), dtype=np.float32)
    np.testing.assert_array_equal(draw(text, x), x)


@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_type_and_the_input_stay_as_they_are(text, dtype):
    values = np.ones((4, 3), dtype=dtype)
    assert draw(text, values).dtype == dtype
    assert (values == 1).all()


@pytest.mark.parametrize("text", EVERY)
def test_half_precision_is_rounded_once(text):
    values = np.random.default_rng(3).standard_normal((50, 8, 2, 2)).astype(np.float16)
    np.testing.assert_array_equal(draw(text, values), draw(text, values.astype(np.float32)).astype(np.float16))


@pytest.mark.parametrize("text", EVERY)
def test_one_seed_gives_the_same_bits_and_another_others(text):
    values = np.ones((40, 30, 2), dtype=np.float32)
    assert draw(text, values, 1).tobytes() == draw(text, values, 1).tobytes()
    assert draw(text, values, 1).tobytes() != draw(text, values, 2).tobytes()


@pytest.mark.parametrize("ratio", [0.5, 0.3, 0.0001])
def test_elements_are_dropped_independently_of_each_other_and_of_other_draws(ratio):
    rngs = generators_of((0, draw) for draw in range(4000))
    dropped = np.concatenate([draw_affine(Noise.parse(f"dropout:{ratio}"), (1, 70), rng)[0] == 0 for rng in rngs])
    assert dropped.mean() == pytest.approx(ratio, abs=5 * np.sqrt(ratio / dropped.size))
    if ratio >= 0.3:
        between = np.corrcoef(dropped.T.astype(np.float64))[~np.eye(70, dtype=bool)]
        assert np.abs(between).max() < 5 / np.sqrt(4000)
        assert np.abs(np.corrcoef(dropped[:60].astype(np.float64))[~np.eye(60, dtype=bool)]).max() < 5 / np.sqrt(70)
