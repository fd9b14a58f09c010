from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.trainers.export.onnx_cleaning import convert_down, remove_clutter

FLATTEN = """(float[N, 3, 4] x) => (float[N, 12] y) {
    size = Shape <start: int = 0, end: int = 1> (x)
    shape = Concat <axis: int = 0> (size, rest)
    y = Reshape (x, shape)
}"""
CONVOLUTION = """(float[N, 2, 5, 5] x) => (float[N, 3, 3, 3] y) {
    y = Conv (x, weight, bias)
}"""


def cleaned(model: onnx.ModelProto, parameters: tuple[str, ...] = ()) -> onnx.ModelProto:
    graph = import_graph(model)
    remove_clutter(graph, parameters)
    result = export_model(graph, model)
    onnx.checker.check_model(result, full_check=True)
    return result


def kernels(bias: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "weight": rng.normal(size=(3, 2, 3, 3)).astype(np.float32),
        "bias": np.array([0, bias, 0], dtype=np.float32),
    }


@pytest.mark.parametrize("batch", [1, 5])
def test_a_shape_that_is_read_at_run_time_becomes_a_constant_with_the_same_numbers(parse, open_model, batch):
    model = parse(FLATTEN, {"rest": np.array([12])})
    result = cleaned(model)
    assert [node.op_type for node in result.graph.node] == ["Reshape"]
    x = {"x": np.random.default_rng(0).normal(size=(batch, 3, 4)).astype(np.float32)}
    with open_model(model) as before, open_model(result) as after:
        np.testing.assert_array_equal(after.run(x)["y"], before.run(x)["y"])


@pytest.mark.parametrize("rest", [[3, -1], [0, 4]])
def test_a_shape_that_leaves_more_than_one_length_open_stays(parse, rest):
    body = FLATTEN.replace("float[N, 12] y", "float[N, 3, 4] y")
    result = cleaned(parse(body, {"rest": np.array(rest)}))
    assert [node.op_type for node in result.graph.node] == ["Shape", "Concat", "Reshape"]


def test_a_bias_of_zeros_that_no_module_owns_is_left_out(parse, open_model):
    model = parse(CONVOLUTION, kernels(0))
    result = cleaned(model)
    assert list(result.graph.node[0].input) == ["x", "weight"]
    assert [tensor.name for tensor in result.graph.initializer] == ["weight"]
    x = {"x": np.random.default_rng(1).normal(size=(2, 2, 5, 5)).astype(np.float32)}
    with open_model(model) as before, open_model(result) as after:
        np.testing.assert_array_equal(after.run(x)["y"], before.run(x)["y"])


@pytest.mark.parametrize(("bias", "parameters"), [(0, ("bias",)), (1e-30, ())])
def test_a_bias_of_the_module_or_with_a_value_stays(parse, bias, parameters):
    result = cleaned(parse(CONVOLUTION, kernels(bias)), parameters)
    assert list(result.graph.node[0].input) == ["x", "weight", "bias"]


def test_a_second_run_changes_nothing(parse):
    once = cleaned(parse(FLATTEN, {"rest": np.array([12])}))
    assert cleaned(once).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_a_model_is_converted_to_an_older_opset_with_the_same_numbers(parse, open_model):
    body = "(float[N, 4, 6] x) => (float[N, 4] y) { y = ReduceMean <keepdims: int = 0, noop_with_empty_axes: int = 0> (x, axes) }"
    model = parse(body, {"axes": np.array([2])})
    older = convert_down(parse(body, {"axes": np.array([2])}), 15)
    onnx.checker.check_model(older, full_check=True)
    assert [entry.version for entry in older.opset_import] == [15]
    x = {"x": np.random.default_rng(2).normal(size=(3, 4, 6)).astype(np.float32)}
    with open_model(model) as before, open_model(older) as after:
        np.testing.assert_array_equal(after.run(x)["y"], before.run(x)["y"])


def test_the_opset_of_the_exporter_is_left_alone(parse):
    model = parse(FLATTEN, {"rest": np.array([12])})
    assert convert_down(model, 18) is model


def test_an_operator_without_an_older_form_is_an_error_of_one_line(parse):
    body = "(float[N, 4] x) => (float[N, 4] y) { y = Mish (x) }"
    with pytest.raises(InputError, match="opset 15: this model can't be written so low") as caught:
        convert_down(parse(body, {}), 15)
    assert "\n" not in str(caught.value)
