from __future__ import annotations

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise import Noise, NoiseKind


@pytest.mark.parametrize(("text", "variance"), [("dropout:0.5", 1.0), ("dropout:0.1", 1 / 9), ("uout:0.1", 0.01 / 3)])
def test_variance_is_that_of_the_paper(text, variance):
    assert Noise.parse(text).variance == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("text", ["dropout:0.5", "uout:0.1", "feature-dropout:0.25"])
def test_text_form_reads_back(text):
    assert str(Noise.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["dropout", "dropout:", "dropout:x", "drop:0.5", "dropout:1", "dropout:-0.1", "dropout:nan", "uout:0", "uout:2"],
)
def test_bad_text_is_refused(text):
    with pytest.raises(InputError):
        Noise.parse(text)


def test_kinds_are_those_of_the_documentation():
    assert [kind.value for kind in NoiseKind] == ["dropout", "feature-dropout", "uout"]
