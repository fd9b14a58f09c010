from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.io.model_file import export_subgraph
from vsfix.graph_passes.measurement.moment_taps import tap_moments
from vsfix.graph_passes.statistics.moments import SampleMoments


def measured(values: np.ndarray, open_model, opset: int = 18) -> SampleMoments:
    x = gs.Variable("x", dtype=values.dtype)
    graph = gs.Graph(inputs=[x], opset=opset, ir_version=8)
    tap = tap_moments(x, opset)
    model = export_subgraph(graph, tap.nodes, [x], tap.outputs)
    with open_model(model) as runner:
        return tap.read(runner.run({"x": values}))


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 7), (2, 4, 6, 5), (3, 2, 2, 3, 4)])
def test_a_tap_computes_what_numpy_does(open_model, shape, opset):
    values = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
    found, truth = measured(values, open_model, opset), SampleMoments.of(values)
    assert found.positions == truth.positions
    np.testing.assert_allclose(found.mean, truth.mean, rtol=1e-6)
    np.testing.assert_allclose(found.centred_sum, truth.centred_sum, rtol=2e-6, atol=1e-12)


def test_a_large_mean_does_not_cancel(open_model):
    values = (1e3 + np.random.default_rng(0).normal(size=(4, 2, 30, 30))).astype(np.float32)
    found, truth = measured(values, open_model), SampleMoments.of(values)
    np.testing.assert_allclose(found.centred_sum, truth.centred_sum, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_half_values_are_summed_in_float32_and_double_ones_in_float64(open_model, dtype):
    values = np.random.default_rng(0).normal(1, 1, (4, 2, 50, 50)).astype(dtype)
    found, truth = measured(values, open_model), SampleMoments.of(values)
    np.testing.assert_allclose(found.centred_sum, truth.centred_sum, rtol=1e-6 if dtype == np.float16 else 1e-12)


def test_a_value_that_is_not_finite_is_refused_with_its_channel(open_model):
    values = np.zeros((2, 3, 4), np.float32)
    values[1, 2, 0] = np.inf
    with pytest.raises(DataError, match="channel 2"):
        measured(values, open_model)
