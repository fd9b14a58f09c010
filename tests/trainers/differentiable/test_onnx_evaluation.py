from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import TensorProto, helper

from vsfix.graph_passes.errors import DataError, InputError, ModelError
from vsfix.trainers.differentiable.onnx_call import UnsupportedOperatorError
from vsfix.trainers.differentiable.onnx_evaluation import OnnxModule

from .operator_case import IMAGE, KERNEL, MATRIX, Case, normal, run_onnxruntime, run_torch

BATCH_NORM = """
<ir_version: 9, opset_import: ["" : 18]>
net (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y)
<float[3] g = {1.0, 0.5, 2.0}, float[3] b = {0.0, 1.0, -1.0}, float[3] mean = {0.1, 0.2, 0.3},
 float[3] var = {1.0, 2.0, 0.5}, float half = {0.5}, bool off = {0}>
{
    r = Relu(x)
    n = Dropout(r, half, off)
    y = BatchNormalization<epsilon = 0.001>(n, g, b, mean, var)
}
"""


@pytest.fixture
def batch_norm() -> OnnxModule:
    return OnnxModule(onnx.parser.parse_model(BATCH_NORM))


def test_a_batch_norm_normalises_with_what_it_stores(batch_norm: OnnxModule) -> None:
    x = normal(5, 3, 4, 4)
    y = batch_norm({"x": torch.from_numpy(x)}).outputs["y"].numpy()
    expected = run_onnxruntime(onnx.parser.parse_model(BATCH_NORM), x)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_norm_normalises_with_the_batch_as_torch_does_in_training(batch_norm: OnnxModule) -> None:
    x = torch.from_numpy(normal(5, 3, 4, 4))
    gamma, beta = torch.tensor([1.0, 0.5, 2.0]), torch.tensor([0.0, 1.0, -1.0])
    truth = torch.nn.functional.batch_norm(x.relu(), None, None, gamma, beta, training=True, eps=1e-3)
    torch.testing.assert_close(batch_norm({"x": x}, statistics="batch").outputs["y"], truth, rtol=1e-5, atol=1e-6)


def test_the_moments_of_a_batch_norm_input_are_biased_and_differentiable(batch_norm: OnnxModule) -> None:
    x = torch.from_numpy(normal(5, 3, 4, 4)).requires_grad_()
    moments = batch_norm({"x": x}).batch_norms["y"]
    rows = np.maximum(x.detach().numpy(), 0).transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(moments.mean.detach().numpy(), rows.mean(1), rtol=1e-5)
    np.testing.assert_allclose(moments.variance.detach().numpy(), rows.var(1), rtol=1e-5)
    moments.variance.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_the_noise_is_there_when_a_generator_is_and_its_seed_repeats_it(batch_norm: OnnxModule) -> None:
    x = {"x": torch.ones(50, 3, 4, 4)}
    first, again = (batch_norm(x, noise=np.random.default_rng(1)).batch_norms["y"] for _ in range(2))
    assert torch.equal(first.variance, again.variance)
    torch.testing.assert_close(first.variance, torch.ones(3), rtol=0.05, atol=0)  # (1 - p) / p = 1
    assert (batch_norm(x).batch_norms["y"].variance == 0).all()


def test_an_evaluation_ends_with_the_last_batch_norm_that_is_wanted(batch_norm: OnnxModule) -> None:
    evaluation = batch_norm({"x": torch.ones(2, 3, 4, 4)}, until=["y"])
    assert not evaluation.outputs
    assert list(evaluation.batch_norms) == ["y"]


def test_a_half_precision_graph_is_evaluated_in_one_type() -> None:
    case = Case("Conv", IMAGE.astype(np.float16), KERNEL.astype(np.float16))
    y = run_torch(case.model(), IMAGE.astype(np.float16))[0]
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, run_onnxruntime(case.model(), case.inputs[0])[0], rtol=1e-2, atol=2e-2)


def test_another_domain_is_refused_by_name() -> None:
    text = (
        '<ir_version: 9, opset_import: ["" : 18, "my.ops" : 1]> net (float[N] x) => (float[N] y) { y = my.ops.Relu(x) }'
    )
    with pytest.raises(UnsupportedOperatorError, match=r"my\.ops"):
        OnnxModule(onnx.parser.parse_model(text))


def test_a_dropout_in_training_mode_is_refused() -> None:
    with pytest.raises(ModelError, match="training mode"):
        OnnxModule(onnx.parser.parse_model(BATCH_NORM.replace("off = {0}", "off = {1}")))


def test_an_input_that_is_missing_is_named(batch_norm: OnnxModule) -> None:
    with pytest.raises(DataError, match="'x'"):
        batch_norm({})


def test_a_node_that_fails_on_its_inputs_is_named() -> None:
    module = OnnxModule(Case("Conv", IMAGE, KERNEL).model())
    with pytest.raises(ModelError, match="Conv 'the_node'"):
        module({"i0": torch.zeros(1, 3, 5, 5)})


def test_an_old_opset_is_refused() -> None:
    text = '<ir_version: 3, opset_import: ["" : 6]> net (float[N] x) => (float[N] y) { y = Relu(x) }'
    with pytest.raises(UnsupportedOperatorError, match="opset 6"):
        OnnxModule(onnx.parser.parse_model(text))


def test_a_weight_that_is_listed_among_the_inputs_need_not_be_fed() -> None:
    model = Case("Gemm", MATRIX, normal(5, 4), opset=11).model()
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("i1", TensorProto.FLOAT, (5, 4)))
    assert OnnxModule(model).input_names == ["i0"]
    np.testing.assert_allclose(run_torch(model, MATRIX)[0], MATRIX @ normal(5, 4), rtol=1e-5, atol=1e-6)


def test_what_depends_on_no_input_is_computed_once() -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 18]>
    net (float[N, 2] x) => (float[N, 3] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}>
    { v = Identity(w)  t = Transpose<perm = [1, 0]>(v)  y = MatMul(x, t) }
    """
    module = OnnxModule(onnx.parser.parse_model(text))
    assert [tuple(buffer.shape) for buffer in module.buffers()] == [(2, 3)]
    y = module({"x": torch.tensor([[1.0, 10.0]])}).outputs["y"]
    assert y.tolist() == [[21.0, 43.0, 65.0]]


def test_whole_numbers_look_up_rows_of_an_embedding_and_its_weights_can_be_free() -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 18]>
    net (int64[n, 3] tokens) => (float[n, 2] y) <float[4, 2] table = {1, 2, 3, 4, 5, 6, 7, 8}, int64[1] axis = {1}>
    { e = Gather<axis = 0>(table, tokens)  y = ReduceMean<keepdims = 0>(e, axis) }
    """
    model = onnx.parser.parse_model(text)
    tokens = np.array([[0, 1, 3], [2, 2, -1]])
    np.testing.assert_allclose(run_torch(model, tokens)[0], run_onnxruntime(model, tokens)[0], rtol=1e-6)
    table = torch.zeros(4, 2, requires_grad=True)
    OnnxModule(model, free=["table"])({"tokens": torch.from_numpy(tokens)}, parameters={"table": table}).outputs[
        "y"
    ].sum().backward()
    assert table.grad is not None
    np.testing.assert_allclose(table.grad.numpy() * 3, [[1, 1], [1, 1], [2, 2], [2, 2]], rtol=1e-6)


def test_moments_are_left_out_where_nobody_wants_them(batch_norm: OnnxModule) -> None:
    x = {"x": torch.from_numpy(normal(5, 3, 4, 4))}
    bare = batch_norm(x, moments=False)
    assert not bare.batch_norms
    assert torch.equal(bare.outputs["y"], batch_norm(x).outputs["y"])
    with pytest.raises(InputError, match="moments"):
        batch_norm(x, moments=False, statistics="batch")
    with pytest.raises(InputError, match="moments"):
        batch_norm(x, moments=False, until=["y"])


def test_scale_and_shift_of_a_batch_norm_can_be_free() -> None:
    module = OnnxModule(onnx.parser.parse_model(BATCH_NORM), free=["g", "b"])
    x = torch.from_numpy(normal(5, 3, 4, 4))
    g, b = torch.tensor([2.0, 0.1, -1.0], requires_grad=True), torch.tensor([1.0, 0.0, 3.0], requires_grad=True)
    y = module({"x": x}, parameters={"g": g, "b": b}, moments=False).outputs["y"]
    mean, var = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 0.5])
    truth = torch.nn.functional.batch_norm(x.relu(), mean, var, g, b, eps=1e-3)
    torch.testing.assert_close(y, truth, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(out.square().sum(), (g, b)) for out in (y, truth))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
