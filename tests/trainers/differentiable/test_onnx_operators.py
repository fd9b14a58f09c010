"""Each operator against ONNX Runtime, and its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper

from vsfix.trainers.differentiable.onnx_call import UnsupportedOperatorError
from vsfix.trainers.differentiable.onnx_evaluation import OnnxModule

from .operator_case import CUBE, IMAGE, KERNEL, MATRIX, VECTOR, Array, Case, normal, run_onnxruntime, run_torch


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> Array:
    return np.array(values, dtype=np.float32)


def positive(*shape: int) -> Array:
    return np.abs(normal(*shape)) + np.float32(0.3)


ELEMENTWISE = [
    Case("Add", CUBE, normal(3, 1)),
    Case("Sub", CUBE, normal(4)),
    Case("Mul", CUBE, normal(2, 1, 1)),
    Case("Div", CUBE, positive(3, 4)),
    Case("Div", ints(7, -7, 9), ints(2, 2, -4)),
    Case("Pow", positive(2, 3), floats(1.7)),
    Case("Pow", normal(2, 3), floats(2)),
    Case("Pow", positive(2, 3), positive(2, 3)),
    Case("Mod", ints(7, -7, 9), ints(3, 3, -4)),
    Case("Mod", CUBE, positive(4), fmod=1),
    Case("Sum", CUBE, normal(4), normal(3, 1)),
    Case("Min", CUBE, normal(4), normal(3, 1)),
    Case("Max", CUBE, normal(4), normal(3, 1)),
    Case("Mean", CUBE, normal(4), normal(3, 1)),
    *[Case(op, CUBE) for op in "Neg Abs Exp Erf Sin Cos Floor Ceil Sign Relu Sigmoid Tanh Softplus Softsign".split()],
    *[Case(op, positive(3, 2)) for op in "Sqrt Log Reciprocal".split()],
    *[Case(op, CUBE) for op in "HardSwish Mish LeakyRelu ThresholdedRelu Elu Celu Selu HardSigmoid".split()],
    Case("Round", floats(0.5, 1.5, -2.5, 2.3)),
    Case("LeakyRelu", CUBE, alpha=0.3),
    Case("Elu", CUBE, alpha=0.7),
    Case("Selu", CUBE, alpha=1.1, gamma=0.9),
    Case("HardSigmoid", CUBE, alpha=0.4, beta=0.3),
    Case("PRelu", IMAGE, positive(4, 1, 1)),
    Case("PRelu", IMAGE, positive(1)),
    Case("HardSwish", 4 * CUBE),
    Case("Softplus", 40 * CUBE),
    Case("Mish", 40 * CUBE),
    Case("LogSoftmax", 100 * CUBE, axis=-1),
    Case("Where", np.array([[True], [False]]), normal(3, 1, 4), normal(2, 1)),
    Case("Gelu", CUBE, opset=20),
    Case("Gelu", CUBE, opset=20, approximate="tanh"),
    Case("Clip", CUBE, np.float32(-0.5), np.float32(0.7)),
    Case("Clip", CUBE, None, np.float32(0.7)),
    Case("Clip", CUBE, opset=10, min=-0.2, max=0.4),
    *[Case(op, MATRIX, MATRIX[:1] + 0) for op in "Equal Less LessOrEqual Greater GreaterOrEqual".split()],
    Case("Where", np.array([True, False, True]), floats(1, 2, 3), floats(4)),
    Case("Not", np.array([True, False])),
    *[Case(op, np.array([True, False, True]), np.array([True, True, False])) for op in ("And", "Or", "Xor")],
    *[Case(op, CUBE, axis=axis, opset=opset) for op in ("Softmax", "LogSoftmax") for axis, opset in ((1, 18), (1, 11))],
    Case("Softmax", CUBE),
    Case("Softmax", CUBE, opset=11),
]


REDUCTIONS = [
    *[Case(op, CUBE, ints(-1, 0)) for op in "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2".split()],
    *[Case(op, CUBE, ints(1), keepdims=0) for op in "ReduceSumSquare ReduceLogSumExp ReduceProd ReduceMean".split()],
    Case("ReduceMean", CUBE, opset=13, axes=[2], keepdims=0),
    Case("ReduceMean", CUBE),
    Case("ReduceMean", CUBE, noop_with_empty_axes=1),
    Case("ArgMax", CUBE, axis=1),
    Case("ArgMin", CUBE, axis=-1, keepdims=0),
    Case("Gemm", MATRIX, normal(5, 4), normal(4), alpha=0.5, beta=2.0),
    Case("Gemm", MATRIX, normal(4, 3), transA=1, transB=1),
    Case("MatMul", CUBE, normal(4, 5)),
    Case("MatMul", CUBE, normal(4)),
    Case("Einsum", CUBE, normal(2, 4, 5), equation="bij,bjk->bik"),
    Case("InstanceNormalization", IMAGE, normal(4), normal(4), epsilon=1e-3),
    Case("LayerNormalization", CUBE, normal(3, 4), normal(3, 4), axis=1, epsilon=1e-3),
    Case("LayerNormalization", CUBE, normal(4)),
    Case("GroupNormalization", IMAGE, normal(2), normal(2), num_groups=2),
    Case("GroupNormalization", IMAGE, normal(4), normal(4), num_groups=2, opset=21),
    Case("LpNormalization", CUBE, axis=1, p=2),
    Case("LpNormalization", CUBE, axis=-1, p=1),
    Case("MeanVarianceNormalization", IMAGE),
    Case("MeanVarianceNormalization", CUBE, axes=[1, 2]),
    Case("ReduceLogSum", positive(2, 3, 4), ints(1)),
    Case("ReduceL2", CUBE, ints(-1), keepdims=0),
    Case("MatMul", normal(2, 3, 4, 5), normal(2, 1, 5, 6)),
    Case("MatMul", normal(3, 4), normal(2, 4, 5)),
    Case("MatMul", normal(4), normal(2, 4, 5)),
    Case("Gemm", MATRIX, normal(5, 4), normal(3, 1)),
    Case("Einsum", normal(2, 3, 4, 5), normal(2, 6, 4, 5), equation="bqhd,bkhd->bhqk"),
    Case("Einsum", MATRIX, normal(4, 5), equation="...i,oi->...o"),
    Case("InstanceNormalization", normal(2, 4, 9), normal(4), normal(4)),
    Case("GroupNormalization", normal(2, 4, 9), normal(4), normal(4), num_groups=2, opset=21),
    Case("LRN", IMAGE, size=3, alpha=0.3, beta=0.6, bias=1.5),
]


WINDOWS = [
    Case("Conv", IMAGE, KERNEL, normal(6)),
    Case("Conv", IMAGE, KERNEL, None, pads=[1, 0, 2, 1], strides=[2, 1], dilations=[2, 1]),
    Case("Conv", IMAGE, normal(6, 2, 3, 3), group=2, auto_pad="SAME_UPPER", strides=[2, 2]),
    Case("Conv", IMAGE, normal(6, 2, 2, 2), group=2, auto_pad="SAME_LOWER"),
    Case("Conv", IMAGE, KERNEL, auto_pad="VALID"),
    Case("Conv", normal(2, 3, 9), normal(5, 3, 3), pads=[1, 1]),
    Case("Conv", normal(1, 2, 5, 4, 6), normal(3, 2, 2, 3, 2), normal(3), pads=[1, 0, 1, 0, 1, 1]),
    Case("ConvTranspose", IMAGE, normal(4, 3, 3, 3), normal(3), strides=[2, 2], pads=[1, 0, 1, 1]),
    Case("ConvTranspose", IMAGE, normal(4, 2, 3, 3), strides=[3, 2], output_padding=[2, 1], group=2),
    Case(
        "ConvTranspose", IMAGE, normal(4, 2, 3, 3), normal(2), pads=[1, 1, 0, 1], output_padding=[1, 1], strides=[2, 2]
    ),
    Case("ConvTranspose", IMAGE, normal(4, 2, 3, 3), dilations=[2, 1]),
    Case("ConvTranspose", normal(1, 2, 5), normal(2, 3, 4), strides=[2]),
    Case("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    Case("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 3], ceil_mode=1),
    Case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, dilations=[1, 1]),
    Case("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3]),
    Case("MaxPool", normal(2, 3, 9), kernel_shape=[3], auto_pad="SAME_UPPER", strides=[2]),
    Case("AveragePool", IMAGE, kernel_shape=[2, 3], strides=[2, 1]),
    Case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    Case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 1], count_include_pad=1),
    Case("AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    Case("AveragePool", normal(1, 2, 5, 6, 4), kernel_shape=[2, 2, 2], auto_pad="SAME_LOWER"),
    Case("GlobalAveragePool", IMAGE),
    Case("GlobalMaxPool", IMAGE),
]


SHAPES = [
    Case("Reshape", CUBE, ints(0, -1)),
    Case("Flatten", IMAGE, axis=2),
    Case("Flatten", IMAGE, axis=-1),
    Case("Squeeze", normal(1, 3, 1), ints(-1)),
    Case("Squeeze", normal(1, 3, 1), opset=11, axes=[0]),
    Case("Squeeze", normal(1, 3, 1)),
    Case("Unsqueeze", MATRIX, ints(0, -1)),
    Case("Unsqueeze", MATRIX, opset=11, axes=[1, 3]),
    Case("Transpose", CUBE, perm=[2, 0, 1]),
    Case("Transpose", CUBE),
    Case("Expand", normal(3, 1), ints(2, 1, 4)),
    Case("Tile", MATRIX, ints(2, 1)),
    Case("Concat", CUBE, normal(2, 1, 4), axis=-2),
    Case("Split", VECTOR, ints(1, 5), outputs=2, axis=0),
    Case("Split", normal(7), outputs=3, num_outputs=3),
    Case("Split", VECTOR, opset=11, outputs=2, split=[2, 4]),
    Case("Slice", IMAGE, ints(1, -100), ints(3, 100), ints(1, -1)),
    Case("Slice", IMAGE, ints(-1), ints(-100), ints(2), ints(-2)),
    Case("Slice", IMAGE, opset=9, starts=[1], ends=[-1], axes=[3]),
    Case("Gather", CUBE, np.array([[0, -1], [1, 1]]), axis=1),
    Case("Gather", CUBE, np.array(1), axis=2),
    Case("Gather", np.arange(20).reshape(4, 5), ints(-1, 0), axis=0),
    Case("GatherND", CUBE, np.array([[[0, -1]], [[1, 1]]])),
    Case("GatherND", MATRIX, np.array([[0, -1], [2, 1]])),
    Case("ScatterElements", MATRIX, np.array([[0, -1]]), normal(1, 2), axis=1),
    Case("ScatterElements", MATRIX, np.array([[1, 1, 0, 2, 1]]), normal(1, 5), axis=0, reduction="add"),
    Case("ScatterND", CUBE, np.array([[1], [0]]), normal(2, 3, 4)),
    Case("ScatterND", MATRIX, np.array([[1, 1], [1, -4]]), normal(2), reduction="add"),
    Case("OneHot", ints(0, 2, -1, 7), np.array(4), floats(-0.5, 1.5)),
    Case("OneHot", np.array([[0, 2], [1, 3]]), np.array(4), ints(0, 1), axis=0),
    Case("Trilu", CUBE),
    Case("Trilu", CUBE, np.array(-1), upper=0),
    Case("GatherElements", MATRIX, np.array([[0, -1, 1, 2, 0]]), axis=0),
    Case("GatherElements", CUBE, np.array([[[1, 0]], [[2, -1]]]), axis=2),
    Case("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 0, -1), np.float32(0.5)),
    Case("Pad", IMAGE, ints(1, 2, 0, 1), None, ints(2, 3), mode="reflect"),
    Case("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 3, 1), mode="edge"),
    Case("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 3, 1), mode="wrap", opset=19),
    Case("Pad", IMAGE, opset=10, pads=[0, 0, 1, 1, 0, 0, 0, 1], value=2.0),
    Case("Shape", IMAGE),
    Case("Shape", IMAGE, start=1, end=-1),
    Case("Size", IMAGE),
    Case("Cast", CUBE, to=TensorProto.INT64),
    Case("Cast", ints(1, 0), to=TensorProto.FLOAT),
    Case("CastLike", CUBE, ints(1)),
    Case("ConstantOfShape", ints(2, 3), value=numpy_helper.from_array(floats(1.5))),
    Case("Range", np.array(2), np.array(9), np.array(3)),
    Case("Identity", CUBE),
    Case("Dropout", CUBE, np.float32(0.5)),
    Case("DepthToSpace", normal(1, 8, 2, 3), blocksize=2),
    Case("DepthToSpace", normal(1, 8, 2, 3), blocksize=2, mode="CRD"),
    Case("SpaceToDepth", normal(1, 2, 4, 6), blocksize=2),
]


UP, DOWN = floats(1, 1, 2, 1.5), floats(1, 1, 0.6, 0.5)


RESIZING = [
    *[
        Case("Resize", IMAGE, None, scales, mode="linear", coordinate_transformation_mode=mode)
        for mode in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        for scales in (UP, DOWN)
    ],
    *[
        Case("Resize", IMAGE, None, UP, mode="nearest", nearest_mode=mode)
        for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ],
    Case("Resize", IMAGE, None, None, ints(2, 4, 10, 9), mode="linear"),
    Case("Resize", IMAGE, None, None, ints(10, 9), mode="linear", axes=[2, 3]),
    Case("Resize", IMAGE, floats(1, 1, 2, 2), opset=10, mode="nearest"),
    Case("Upsample", IMAGE, floats(1, 1, 2, 3), opset=9, mode="nearest"),
    Case("Upsample", IMAGE, floats(1, 1, 2, 2), opset=9, mode="linear"),
]


@pytest.mark.parametrize("case", [*ELEMENTWISE, *REDUCTIONS, *WINDOWS, *SHAPES, *RESIZING], ids=str)
def test_an_operator_gives_what_onnxruntime_gives(case: Case) -> None:
    model = case.model()
    for ours, theirs in zip(run_torch(model, case.inputs[0]), run_onnxruntime(model, case.inputs[0]), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


DIFFERENTIABLE = [
    Case("Conv", IMAGE, KERNEL, None, pads=[1, 0, 2, 1], strides=[2, 1]),
    Case("ConvTranspose", IMAGE, normal(4, 2, 3, 3), strides=[2, 2], pads=[1, 0, 0, 1]),
    Case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    Case("Resize", IMAGE, None, UP, mode="linear"),
    Case("Pad", IMAGE, ints(1, 2, 0, 1), None, ints(2, 3), mode="reflect"),
    Case("GroupNormalization", IMAGE, normal(2), normal(2), num_groups=2),
    Case("LRN", IMAGE, size=3, alpha=0.3),
    Case("Mish", CUBE),
    Case("Softmax", CUBE, axis=1, opset=11),
    Case("ReduceL2", CUBE, ints(1)),
    Case("LayerNormalization", CUBE, normal(4)),
    Case("InstanceNormalization", IMAGE, normal(4), normal(4)),
    Case("Gelu", CUBE, opset=20),
    Case("Einsum", CUBE, normal(2, 4, 5), equation="bij,bjk->bik"),
    Case("ScatterND", CUBE, np.array([[0]]), normal(1, 3, 4)),
    Case("GatherND", CUBE, np.array([[0, -1], [0, 2]])),
    Case("Trilu", CUBE),
    Case("LpNormalization", CUBE, axis=1, p=2),
]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_the_gradient_is_that_of_finite_differences(case: Case) -> None:
    model = case.model()
    module = OnnxModule(model, dtype=torch.float64)
    x = torch.from_numpy(np.array(case.inputs[0][:1], dtype=np.float64)).requires_grad_()  # type: ignore[index]
    name = model.graph.input[0].name
    assert torch.autograd.gradcheck(lambda x: next(iter(module({name: x}).outputs.values())), (x,), fast_mode=True)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("TopK", VECTOR, ints(2), outputs=2), "not supported"),
        (Case("Resize", IMAGE, None, UP, mode="cubic"), "mode = cubic"),
        (Case("MaxPool", IMAGE, kernel_shape=[2, 2], outputs=2), "output 2"),
        (Case("AveragePool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2], opset=19), "dilations"),
        (Case("ConvTranspose", IMAGE, normal(4, 2, 3, 3), output_shape=[9, 8]), "output_shape"),
        (Case("ScatterND", MATRIX, np.array([[1, 1]]), normal(1), reduction="max"), "reduction = max"),
        (Case("GatherND", CUBE, np.array([[0], [1]]), batch_dims=1), "batch_dims"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_before_anything_runs_and_by_name(case: Case, reason: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=f"{case.op} 'the_node'.*{reason}"):
        OnnxModule(case.model())


def test_padding_on_the_wrong_side_would_show() -> None:
    right, wrong = (
        Case("MaxPool", IMAGE, kernel_shape=[2, 2], auto_pad=side).model() for side in ("SAME_UPPER", "SAME_LOWER")
    )
    assert not np.allclose(run_torch(wrong, IMAGE)[0], run_onnxruntime(right, IMAGE)[0], rtol=2e-5, atol=2e-6)
