from __future__ import annotations

import math

import numpy as np
import onnx
import onnx.parser
import pytest

from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.rounding import DEAD, RoundingError, round_channels, round_outputs, snr_db

HALF = """<ir_version: 8, opset_import: ["" : 18]>
main (float16[N, 3] x) => (float16[N, 2] y) {
    h = Gemm <transB: int = 1> (x, w)
    y = BatchNormalization (h, g, b, m, v)
}"""


def half_network(gamma: float, variance: float = 1.0) -> onnx.ModelProto:
    """A float16 network whose second channel has this gain."""
    model = onnx.parser.parse_model(HALF)
    one = np.ones(2, np.float16)
    values = {"w": np.full((2, 3), 0.01, np.float16), "g": one * np.float16([1, gamma]), "b": one, "m": one * 0}
    values["v"] = one * np.float16([1, variance])
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in values.items())
    return model


@pytest.mark.parametrize(
    ("gamma", "words"), [(6e4, None), (1e-3, "channel 1 would lose its digits in float16, its largest value is 1e-05")]
)
def test_a_fold_into_subnormal_numbers_is_refused_with_the_channel(gamma, words):
    model = half_network(gamma)
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    result = FoldBatchNorm()(graph)
    if words is None:
        assert len(result.changed) == 1
    else:
        assert words in result.skipped[0].reason
        assert export_model(graph, model).SerializeToString() == before


def test_a_channel_that_is_nothing_beside_the_others_is_dead_and_may_vanish():
    rows = np.array([[1.0, 2.0], [1.5 * 2.0**-23, 0.0], [2.0**-25, 0.0], [0.0, 0.0]])
    with pytest.raises(RoundingError, match="channel 1 would lose"):
        round_outputs(rows, np.float16)
    rows[1] = DEAD
    np.testing.assert_array_equal(round_outputs(rows, np.float16), rows.astype(np.float16))
    assert round_outputs(rows, np.float32).dtype == np.float32


def test_rounding_is_to_nearest_and_names_what_overflows():
    values = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 65504.0])
    np.testing.assert_array_equal(round_channels(values, np.float16), np.float16([1, 1 + 2.0**-9, 65504]))
    with pytest.raises(RoundingError, match="channel 2 would overflow float16"):
        round_channels(values * [1, 1, 1.1], np.float16)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_smallest_normal_number_keeps_its_digits_whatever_its_sign(sign):
    rows = sign * np.array([[1.0, 0.5], [2.0**-14, 2.0**-15]])
    np.testing.assert_array_equal(round_outputs(rows, np.float16), rows.astype(np.float16))
    rows[1, 0] = sign * np.nextafter(2.0**-14, 0)
    with pytest.raises(RoundingError, match="channel 1 would lose its digits in float16, its largest value is 6"):
        round_outputs(rows, np.float16)


def test_several_positions_may_make_one_channel():
    with pytest.raises(RoundingError, match="channel 2 would be NaN in float32"):
        round_channels(np.array([0.0, 0, 0, 0, 0, np.nan]), np.float32, per=2)


@pytest.mark.parametrize("decibels", [20, 60, 100, 140])
@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])  # whose squares leave float64
def test_the_snr_of_noise_of_known_strength_is_known(decibels, size):
    reference = np.random.default_rng(0).normal(size=(50, 7))
    noise = np.random.default_rng(1).normal(size=(50, 7))
    noise *= 10 ** (-decibels / 20) * np.linalg.norm(reference) / np.linalg.norm(noise)
    assert snr_db(size * reference, size * (reference + noise)) == pytest.approx(decibels, abs=1e-3)


@pytest.mark.parametrize(
    ("reference", "output", "expected"),
    [
        ([0, 0], [0, 0], math.inf),
        ([], [], math.inf),
        ([1, 1], [1, math.nan], -math.inf),
        ([1, 1], [1, math.inf], -math.inf),
        ([0, 0], [1, 1], -math.inf),
    ],
)
def test_the_snr_has_no_number_where_there_is_no_noise_or_no_signal(reference, output, expected):
    assert snr_db(np.array(reference, np.float32), np.array(output, np.float32)) == expected
