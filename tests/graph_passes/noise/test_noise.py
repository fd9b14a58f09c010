from __future__ import annotations

import math

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise, NoiseKind

KINDS = [
    "dropout",
    "feature-dropout",
    "alpha-dropout",
    "feature-alpha-dropout",
    "gaussian-dropout",
    "drop-path",
    "uout",
    "uout-bernoulli",
    "uout-gaussian",
]


@pytest.mark.parametrize(
    ("text", "variance"),
    [
        ("dropout:0.5", 1.0),
        ("dropout:0.1", 1 / 9),
        ("feature-dropout:0.2", 1 / 4),
        ("gaussian-dropout:0.2", 1 / 4),
        ("drop-path:0.1", 1 / 9),
        ("drop-path:0", 0),
        ("uout:0.1", 0.01 / 3),
        ("uout-bernoulli:0.1", 0.01),
        ("uout-gaussian:0.1", 0.01),
    ],
)
def test_variance_is_that_of_the_paper(text, variance):
    assert Noise.parse(text).variance == pytest.approx(variance, rel=1e-12)
    assert Noise.parse(text).is_multiplicative


@pytest.mark.parametrize("text", ["alpha-dropout:0.5", "feature-alpha-dropout:0.5"])
def test_the_alpha_kinds_are_not_multiplicative_and_have_no_such_variance(text):
    assert not Noise.parse(text).is_multiplicative
    assert math.isnan(Noise.parse(text).variance)


@pytest.mark.parametrize("kind", KINDS)
def test_text_reads_back(kind):
    assert str(Noise.parse(f"{kind}:0.25")) == f"{kind}:0.25"


@pytest.mark.parametrize(
    "text",
    ["dropout", "dropout:", "dropout:x", "drop:0.5", "dropout:1", "dropout:-0.1", "dropout:nan", "uout:0", "uout:2"]
    + [f"{kind}:1" for kind in KINDS if not kind.startswith("uout")],
)
def test_bad_text_is_refused(text):
    with pytest.raises(InputError):
        Noise.parse(text)


def test_kinds_are_those_of_the_documentation():
    assert [kind.value for kind in NoiseKind] == KINDS
