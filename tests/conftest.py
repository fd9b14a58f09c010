"""Small networks and a runtime that the tests of every package share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import pytest

from vsfix.graph_passes.ir.runtime import Array
from vsfix.trainers.export.onnxruntime_library import import_onnxruntime

onnxruntime = import_onnxruntime()  # first of all, so that no test reports anything to its makers


class PlainRunner:
    """ONNX Runtime with nothing around it."""

    name = "onnxruntime, plain"
    concurrency = 2

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def __enter__(self) -> PlainRunner:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture(scope="module")
def first_state(request) -> object:
    """The state of the generator `RNG` of a test module before its first test; None where there is none."""
    rng = getattr(request.module, "RNG", None)
    return None if rng is None else rng.bit_generator.state


@pytest.fixture(autouse=True)
def same_draws(request, first_state) -> None:
    """Each test draws the same from the generator of its module, whichever ran before."""
    if first_state is not None:
        request.module.RNG.bit_generator.state = first_state


@pytest.fixture
def open_model():
    """Opens a model in ONNX Runtime."""
    return PlainRunner


@pytest.fixture
def parse():
    """Builds a model from ONNX text; `weights` become initializers, checked in full."""

    def build(body: str, weights: Mapping[str, np.ndarray], opset: int = 18) -> onnx.ModelProto:
        model = onnx.parser.parse_model(
            f'<ir_version: {8 if opset < 21 else 10}, opset_import: ["" : {opset}]>\nmain {body}'
        )
        model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
        onnx.checker.check_model(model, full_check=True)
        return model

    return build


def batch_norm_weights(name: str, channels: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters of one BatchNorm, by the names that torch gives them."""
    return {
        f"{name}.weight": rng.uniform(0.5, 1.5, channels).astype(np.float32),
        f"{name}.bias": rng.normal(0, 0.3, channels).astype(np.float32),
        f"{name}.running_mean": rng.normal(0, 0.3, channels).astype(np.float32),
        f"{name}.running_var": rng.uniform(0.5, 2.0, channels).astype(np.float32),
    }


RESIDUAL = """(float[N, 3, 8, 8] x) => (float[N, 5] y) {
    c1 = Conv <pads: ints = [1, 1, 1, 1]> (x, "conv1.weight")
    d1 = Dropout (c1, ratio, off)
    n1 = BatchNormalization (d1, "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var")
    r1 = Relu (n1)
    c2 = Conv <pads: ints = [1, 1, 1, 1]> (r1, "conv2.weight", "conv2.bias")
    d2 = Dropout (c2, ratio, off)
    n2 = BatchNormalization (d2, "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var")
    r2 = Relu (n2)
    c3 = Conv <pads: ints = [1, 1, 1, 1]> (r2, "conv3.weight")
    s = Add (c3, c1)
    n3 = BatchNormalization (s, "bn3.weight", "bn3.bias", "bn3.running_mean", "bn3.running_var")
    r3 = Relu (n3)
    p = GlobalAveragePool (r3)
    f = Flatten (p)
    y = Gemm <transB: int = 1> (f, "fc.weight", "fc.bias")
}"""


@pytest.fixture
def residual(parse) -> onnx.ModelProto:
    """Conv-Dropout-BN twice, a residual sum into a third BN, a classifier; Dropout 0.5 marked."""
    rng = np.random.default_rng(7)
    weights = {
        "conv1.weight": rng.normal(0, 0.4, (6, 3, 3, 3)).astype(np.float32),
        "conv2.weight": rng.normal(0, 0.3, (6, 6, 3, 3)).astype(np.float32),
        "conv2.bias": rng.normal(0, 0.5, 6).astype(np.float32),
        "conv3.weight": rng.normal(0, 0.3, (6, 6, 3, 3)).astype(np.float32),
        "fc.weight": rng.normal(0, 0.5, (5, 6)).astype(np.float32),
        "fc.bias": rng.normal(0, 0.5, 5).astype(np.float32),
        "ratio": np.array(0.5, dtype=np.float32),
        "off": np.array(False),
    }
    for name in ("bn1", "bn2", "bn3"):
        weights |= batch_norm_weights(name, 6, rng)
    return parse(RESIDUAL, weights)


@pytest.fixture
def images() -> np.ndarray:
    """Sixty samples for `residual`, shape (60, 3, 8, 8)."""
    return np.random.default_rng(11).normal(0.3, 1.2, (60, 3, 8, 8)).astype(np.float32)
