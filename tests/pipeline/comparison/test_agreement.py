from __future__ import annotations

import numpy as np
import pytest

import vsfix
from vsfix.graph_passes.errors import UncomparableError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise_average.divergence import Meaning, OutputKind
from vsfix.pipeline.comparison.agreement import (
    DECISIONS,
    POWER,
    Agreement,
    agreement,
    compared_outputs,
    measure_of,
    output_agreement,
)

RNG = np.random.default_rng(0)
CLASSES = OutputKind(Meaning.CLASSES, "logits", 1, "")
CHANCES = OutputKind(Meaning.PROBABILITIES, "logits", -1, "")
VALUES = OutputKind(Meaning.VALUES, "values", -1, "")
RIGHT, FOUND = RNG.normal(size=(2, 300, 5)).astype(np.float32)


def test_decisions_agree_by_their_share():
    assert output_agreement(CLASSES, RIGHT, FOUND) == pytest.approx((RIGHT.argmax(1) == FOUND.argmax(1)).mean())
    assert output_agreement(CHANCES, RIGHT, FOUND) == pytest.approx(((RIGHT > 0) == (FOUND > 0)).mean())
    maps = RNG.normal(size=(2, 7, 4, 3, 3))
    decided = maps.argmax(axis=2)
    assert output_agreement(CLASSES, *maps) == pytest.approx((decided[0] == decided[1]).mean())
    assert output_agreement(None, *decided) == pytest.approx((decided[0] == decided[1]).mean())
    assert output_agreement(None, decided[0], decided[1][:3]) == 0


def test_values_agree_by_power_and_thirty_decibels_are_a_thousandth():
    noise = RNG.normal(size=RIGHT.shape)
    noise *= np.linalg.norm(RIGHT) / np.linalg.norm(noise) * 10 ** (-30 / 20)
    assert output_agreement(VALUES, RIGHT, RIGHT + noise) == pytest.approx(0.999, abs=1e-6)
    assert output_agreement(VALUES, RIGHT, np.zeros_like(RIGHT)) == pytest.approx(0)
    assert output_agreement(VALUES, RIGHT, -RIGHT) == pytest.approx(-3)


@pytest.mark.parametrize("kind", [CLASSES, CHANCES, VALUES])
def test_an_output_agrees_with_itself_whatever_the_order_and_one_that_is_not_finite_with_none(kind):
    assert output_agreement(kind, RIGHT, RIGHT) == 1
    order = RNG.permutation(len(RIGHT))
    mixed = output_agreement(kind, RIGHT[order], FOUND[order])
    assert mixed == pytest.approx(output_agreement(kind, RIGHT, FOUND))
    broken = kind.probabilities(RIGHT).copy()
    broken[:150] = np.nan
    assert agreement(kind, kind.probabilities(RIGHT), broken) == (-np.inf if kind is VALUES else 0.5)


def test_whole_numbers_are_compared_where_there_is_nothing_else(parse):
    body = "(float[N, 5] x) => (float[N, 5] y, int64[N] k) { y = Identity (x) k = ArgMax <axis = 1, keepdims = 0> (x) }"
    graph = import_graph(parse(body, {}))
    both = {"y": RIGHT, "k": RIGHT.argmax(axis=1)}
    assert list(compared_outputs(graph, both, {})) == ["y"]
    assert compared_outputs(graph, {"k": both["k"]}, {}) == {"k": None}
    assert (measure_of(None), measure_of(VALUES)) == (DECISIONS, POWER)
    with pytest.raises(UncomparableError, match="nothing can be compared"):
        compared_outputs(graph, {}, {})


def test_a_model_of_decisions_alone_says_how_far_they_agree(parse):
    model = parse("(float[N, 5] x) => (int64[N] k) { k = ArgMax <axis = 1, keepdims = 0> (x) }", {})
    result = vsfix.optimize(model, RIGHT, method="none", eval_data=RIGHT)
    assert result.report.agreements == (Agreement("k", DECISIONS, 300, 1.0),)
    assert "On 300 samples without labels" in str(result)
