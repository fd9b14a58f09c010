from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.comparison.rounding_floor import rounding_floor
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig

INPUTS = {"x": np.random.default_rng(0).normal(size=(16, 3, 6, 6)).astype(np.float32)}
FOLD_ONLY = RepairConfig(method="none")


def network(steps: int) -> onnx.ModelProto:
    """Conv, BatchNorm, Sigmoid, and so many steps of the logistic map y = 4 y (1 - y), each of which makes an error larger."""
    nodes = [f"a{k} = Sub (one, y{k})  m{k} = Mul (y{k}, a{k})  y{k + 1} = Mul (four, m{k})" for k in range(steps)]
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) {{
        c = Conv (x, w)
        b = BatchNormalization (c, gamma, beta, mean, var)
        y0 = Sigmoid (b)
        {" ".join(nodes)}
        y = Neg (y{steps})
    }}""")
    rng = np.random.default_rng(1)
    values = {
        "w": rng.normal(size=(4, 3, 3, 3)),
        "gamma": rng.uniform(0.5, 1.5, 4),
        "beta": rng.normal(size=4),
        "mean": rng.normal(size=4),
        "var": rng.uniform(15, 30, 4),
        "one": np.array(1.0),
        "four": np.array(4.0),
    }
    for name, array in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return model


def floor_of(model):
    with OnnxRuntimeRunner(model) as runner:
        return rounding_floor(model, runner.run(INPUTS), INPUTS, open_for_small_runs, 0)


def test_the_floor_is_that_of_rounding_and_falls_with_what_is_lost():
    floors = [floor_of(network(steps)) for steps in (0, 4, 8, 12)]
    assert 125 < floors[0] < 150  # 24 bits
    # The mean square of the derivative 4 - 8 y is 8 under the distribution that the map keeps: 9.03 dB a step.
    assert np.diff(floors[1:]) == pytest.approx([-36.1, -36.1], abs=2)


def test_the_model_itself_is_left_as_it_is():
    model = network(1)
    before = model.SerializeToString()
    floor_of(model)
    assert model.SerializeToString() == before


def test_a_right_fold_of_a_network_that_amplifies_rounding_is_written_with_a_warning():
    repair = repair_model(network(12), [INPUTS], open_for_small_runs, FOLD_ONLY)
    assert "BatchNormalization" not in [node.op_type for node in repair.model.graph.node]
    assert repair.report.fold_snr_db is not None
    assert repair.report.fold_snr_db < 80
    assert "amplifies rounding" in repair.report.warnings[-1]
    assert not any(
        "rounding" in warning
        for warning in repair_model(network(1), [INPUTS], open_for_small_runs, FOLD_ONLY).report.warnings
    )


@pytest.mark.parametrize("steps", [0, 12])
def test_a_wrong_fold_is_refused_all_the_same(monkeypatch, steps):
    fold = FoldBatchNorm.__call__

    def fold_wrongly(self, graph):
        result = fold(self, graph)
        conv = graph.nodes[0]
        conv.inputs[1].values = conv.inputs[1].values * np.float32(1.01)
        return result

    monkeypatch.setattr(FoldBatchNorm, "__call__", fold_wrongly)
    with pytest.raises(CheckFailedError, match="the folded graph differs"):
        repair_model(network(steps), [INPUTS], open_for_small_runs, FOLD_ONLY)
