from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.estimators.paired import paired
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing
from vsfix.trainers.differentiable.image_prior import draw_dead_leaves
from vsfix.trainers.differentiable.onnx_call import UnsupportedOperatorError
from vsfix.trainers.differentiable.synthetic_inputs import SyntheticConfig, SyntheticInputs, synthesize_inputs

C, SIDE, KEEP = 6, 8, 0.5
QUICK = SyntheticConfig(inputs=16, steps=40)


def convolution(rng: np.random.Generator, c_in: int, c_out: int) -> Any:
    return (rng.standard_normal((c_out, c_in, 3, 3)) / np.sqrt(9 * c_in)).astype(np.float32)


def network(marked: bool = True, shape: tuple[Any, ...] = ("n", 1, SIDE, SIDE), op: str = "Relu") -> onnx.ModelProto:
    """Conv, BN, ReLU, Dropout, BN, ReLU, Conv, BN; the statistics are those of smooth images under the noise."""
    rng = np.random.default_rng(0)
    arrays = {
        "w0": convolution(rng, 1, C),
        "w1": convolution(rng, C, C),
        "ratio": np.array(1 - KEEP if marked else 0.0, dtype=np.float32),
        "off": np.array(False),
    }
    for number in range(3):
        arrays |= {f"g{number}": np.full(C, 1, np.float32), f"b{number}": np.full(C, 0.3, np.float32)}
    images = training_images(2000, seed=5)
    with torch.no_grad():
        torch.manual_seed(0)
        arrays |= training_statistics(images, arrays)
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c0", "g0", "b0", "m0", "v0"], ["n0"]),
        helper.make_node(op, ["n0"], ["r0"]),
        helper.make_node("Dropout", ["r0", "ratio", "off"], ["d0"], name="noise"),
        helper.make_node("BatchNormalization", ["d0", "g1", "b1", "m1", "v1"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "g2", "b2", "m2", "v2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def training_images(count: int, seed: int) -> torch.Tensor:
    """Bright, of little contrast, and smooth: what no start looks like."""
    leaves = draw_dead_leaves(count, 1, (SIDE, SIDE), torch.Generator().manual_seed(seed))
    return 1.5 + 0.5 * torch.nn.functional.avg_pool2d(leaves, 3, 1, 1)


def forward(x: torch.Tensor, arrays: dict[str, Any], keep: float) -> list[torch.Tensor]:
    """The inputs of the three BNs, each normalised over all of x, in float64."""

    def batch_norm(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.batch_norm(x, None, None, training=True) + 0.3

    w0, w1 = (torch.tensor(arrays[name]).double() for name in ("w0", "w1"))
    c0 = torch.nn.functional.conv2d(x.double(), w0, padding=1)
    d0 = torch.nn.functional.dropout(batch_norm(c0).relu(), 1 - keep)
    c1 = torch.nn.functional.conv2d(batch_norm(d0).relu(), w1, padding=1)
    return [c0, d0, c1]


def training_statistics(images: torch.Tensor, arrays: dict[str, Any], keep: float = KEEP) -> dict[str, Any]:
    statistics = {}
    for number, x in enumerate(forward(images, arrays, keep)):
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        statistics |= {f"m{number}": mean.numpy().astype(np.float32), f"v{number}": variance.numpy().astype(np.float32)}
    return statistics


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network()


@pytest.fixture(scope="module")
def synthetic(model: onnx.ModelProto) -> SyntheticInputs:
    return synthesize_inputs(model, QUICK)


def error_of_repair(model: onnx.ModelProto, inputs: Any) -> float:
    """The mean error of the log variance of the two BNs downstream of the noise, after a paired repair on the inputs."""
    graph = import_graph(model)
    estimates = paired(graph, [{"x": inputs}], open_for_small_runs, ["n1", "y"])
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    truth = training_statistics(training_images(2000, seed=6), arrays, keep=1.0)
    errors = [np.log(estimates[name].variance / truth[f"v{number}"]) for name, number in (("n1", 1), ("y", 2))]
    return float(np.abs(np.concatenate(errors)).mean())


def test_the_loss_falls(synthetic: SyntheticInputs) -> None:
    assert len(synthetic.losses) == QUICK.steps
    assert synthetic.total_loss < 0.2 * synthetic.losses[0]
    assert synthetic.inputs["x"].shape == (16, 1, SIDE, SIDE)
    assert synthetic.inputs["x"].dtype == np.float32


def test_two_runs_give_the_same_bits(model: onnx.ModelProto, synthetic: SyntheticInputs) -> None:
    again = synthesize_inputs(model, QUICK)
    assert again.inputs["x"].tobytes() == synthetic.inputs["x"].tobytes()
    assert again.losses == synthetic.losses


def test_synthetic_inputs_repair_the_shift_better_than_white_noise(
    model: onnx.ModelProto, synthetic: SyntheticInputs
) -> None:
    white = np.random.default_rng(3).standard_normal((16, 1, SIDE, SIDE)).astype(np.float32)
    error = error_of_repair(model, synthetic.inputs["x"])
    assert error < 0.1
    assert error < 0.5 * error_of_repair(model, white)


def test_matching_with_the_noise_off_is_a_mistake_that_shows(
    model: onnx.ModelProto, synthetic: SyntheticInputs
) -> None:
    mistaken = synthesize_inputs(network(marked=False), QUICK)
    assert mistaken.total_loss > 3 * synthetic.total_loss
    assert error_of_repair(model, mistaken.inputs["x"]) > 1.5 * error_of_repair(model, synthetic.inputs["x"])


def test_pixels_stay_in_the_range_that_the_file_describes(model: onnx.ModelProto) -> None:
    described = onnx.ModelProto()
    described.CopyFrom(model)
    preprocessing = Preprocessing(channels=1, size=(SIDE, SIDE), mean=(0.4,), std=(0.2,))
    helper.set_model_props(described, {METADATA_KEY: preprocessing.to_json()})
    x = synthesize_inputs(described, SyntheticConfig(inputs=4, steps=5, learning_rate=5.0)).inputs["x"]
    assert x.min() >= -0.4 / 0.2 - 1e-5
    assert x.max() <= 0.6 / 0.2 + 1e-5


def test_a_shape_that_is_not_known_must_be_given() -> None:
    unknown = network(shape=("n", 1, "h", "w"))
    with pytest.raises(InputError, match=r"'x'.*--input-shape"):
        synthesize_inputs(unknown)
    given = synthesize_inputs(unknown, SyntheticConfig(inputs=2, steps=1, input_shape=(1, SIDE, SIDE)))
    assert given.inputs["x"].shape == (2, 1, SIDE, SIDE)


def test_an_input_of_whole_numbers_is_refused(model: onnx.ModelProto) -> None:
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(InputError, match="'x' is not floating point"):
        synthesize_inputs(whole)


def test_an_operator_that_is_not_supported_is_named() -> None:
    with pytest.raises(UnsupportedOperatorError, match="Asinh 'r0'"):
        synthesize_inputs(network(op="Asinh"))


def test_a_model_without_batch_norms_says_nothing_of_its_data() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3))
    graph = helper.make_graph([node], "relu", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    with pytest.raises(ModelError, match="no BatchNorm"):
        synthesize_inputs(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def test_few_positions_take_more_inputs(model: onnx.ModelProto) -> None:
    assert len(synthesize_inputs(model, SyntheticConfig(steps=1)).inputs["x"]) == 64  # 64 positions each
    tiny = network(shape=("n", 1, 2, 2))
    assert len(synthesize_inputs(tiny, SyntheticConfig(steps=1)).inputs["x"]) == 256


@pytest.mark.parametrize("wrong", [{"inputs": 1}, {"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": np.inf}])
def test_a_configuration_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="synthetic inputs"):
        SyntheticConfig(**wrong)
