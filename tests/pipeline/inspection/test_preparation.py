"""The preparation of a file before anything looks at it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.io.model_file import export_model
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.inspection.preparation import prepare_model
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig

ONES = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")} | {"b": np.zeros(3, np.float32)}
ONES["m"] = np.zeros(3, np.float32)
KEPT = RepairConfig(method="none")


@pytest.mark.parametrize("sides", ["N, 3", "N, 3, 2, 2"])
def test_one_statistic_for_each_channel_is_read_whatever_spatial_says(sides, parse, open_model):
    body = f"(float[{sides}] x) => (float[{sides}] y) {{ y = BatchNormalization <spatial: int = 0> (x, g, b, m, v) }}"
    model = parse(body, ONES, opset=8)
    prepared = prepare_model(model)
    assert [found.name for found in find_batch_norms(prepared.graph)] == ["y"]
    after = export_model(prepared.graph, model)
    x = np.random.default_rng(0).normal(size=(5, 3, 2, 2)[: sides.count(",") + 1]).astype(np.float32)
    np.testing.assert_allclose(open_model(after).run({"x": x})["y"], x / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_a_dropout_whose_ratio_is_an_input_is_the_identity_with_a_word(parse):
    body = """(float[N, 3] x, float r) => (float[N, 3] y)
    { d = Dropout (x, r)  y = BatchNormalization (d, g, b, m, v) }"""
    prepared = prepare_model(parse(body, ONES))
    assert any(
        "its ratio is not in the file" in line and "--noise 'd=dropout:RATIO'" in line for line in prepared.warnings
    )
    told = prepare_model(parse(body, ONES), ["d=dropout:0.25"])
    assert told.shows_its_noise


def test_a_constant_that_a_caller_may_replace_is_not_folded_away_in_silence(parse):
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, g, b, m, v) }", ONES)
    assert prepare_model(model).warnings == ()
    for name in ("m", "v"):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]))
    (warning,) = prepare_model(model).warnings
    assert warning.startswith("'m' and 1 more is an input with a default, which is folded in")
    model.ir_version = 3  # where every constant had to be an input
    assert prepare_model(model).warnings == ()


@pytest.mark.parametrize("fold", [True, False])
def test_nodes_that_lead_nowhere_go(fold, parse):
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = Relu (x)  e = Exp (x)  l = Log (e) }", {})
    repair = repair_model(model, [], open_for_small_runs, RepairConfig(method="none", fold=fold))
    assert [node.op_type for node in repair.model.graph.node] == ["Relu"]
