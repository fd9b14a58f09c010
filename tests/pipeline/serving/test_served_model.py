"""The description for a server, read from ONNX files and from engines."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.helper
import pytest

from tests.pipeline.building.two_norm_network import build_network, network_weights, write_network
from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.serving.served_model import ServedTensor, read_served_model

RELU = "({type}[{sides}] x) => ({type}[{sides}] y) {{ y = {op} (x) }}"


@pytest.fixture
def save(parse, tmp_path):
    def write(body, weights=None, opset=18):
        onnx.save(parse(body, weights or {}, opset), tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    return write


@pytest.fixture
def engine(install_tensorrt, parse, tmp_path, monkeypatch):
    """Builds an engine on a GPU of some compute capability."""

    def build(gpu="sm89", name="e.plan", version="10", **settings):
        install_tensorrt(version)
        monkeypatch.setattr("vsfix.pipeline.building.building.visible_capability", lambda: gpu)
        model = write_network(parse, tmp_path / "m.onnx", network_weights())
        build_network(model, tmp_path / name, **settings)
        return tmp_path / name

    return build


@pytest.mark.parametrize(
    ("sides", "largest", "usual"),
    [
        ("N, 3, 8", None, (1, 3, 8)),
        ("4, 3, 8", 0, (4, 3, 8)),
        ("1, 3, 8", 0, (1, 3, 8)),
        ("N, 3, W", None, None),
        ("4, 3, W", 0, None),
    ],
)
def test_a_free_first_side_is_a_batch_of_any_size(save, sides, largest, usual):
    found = read_served_model([save(RELU.format(type="float", sides=sides, op="Relu"))])
    assert found.largest_batch == largest
    assert found.usual_shapes == ({} if usual is None else {"x": usual})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("float", "FP32"), ("float16", "FP16"), ("bfloat16", "BF16"), ("double", "FP64"), ("int64", "INT64")),
        *(("uint8", "UINT8"), ("bool", "BOOL"), ("string", "STRING"), ("int32", "INT32")),
    ],
)
def test_types_have_the_names_of_the_inference_protocol(save, kind, name):
    found = read_served_model([save(RELU.format(type=kind, sides="N, 2", op="Identity"), opset=22)])
    assert found.inputs == (ServedTensor("x", name, (-1, 2)),)
    assert found.outputs == (ServedTensor("y", name, (-1, 2)),)


def test_sides_of_two_names_are_no_batch(save):
    path = save("(float[N, 2] a, float[M, 2] b) => (float[K, 2] y) { y = Concat <axis: int = 0> (a, b) }")
    assert read_served_model([path]).largest_batch == 0


def test_an_output_without_a_free_first_side_is_no_batch(save):
    path = save("(float[N, 2] x) => (float[1, 2] y) { y = ReduceMean (x, a) }", {"a": np.array([0])})
    assert read_served_model([path]).largest_batch == 0


def test_an_initializer_that_is_listed_among_the_inputs_is_none(save):
    path = save("(float[N, 2] x) => (float[N, 2] y) { y = Add (x, b) }", {"b": np.ones(2, np.float32)})
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("b", 1, [2]))
    onnx.save(model, path)
    found = read_served_model([path])
    assert ([tensor.name for tensor in found.inputs], found.largest_batch) == (["x"], None)


def test_an_output_that_is_no_tensor_is_refused(save):
    path = save("(float[N, 2] x) => (seq(float[N, 2]) y) { y = SequenceConstruct (x) }")
    with pytest.raises(InputError, match="'y' is no tensor, and a server exchanges nothing else"):
        read_served_model([path])


def test_the_batch_of_an_engine_is_that_of_its_profile(engine):
    found = read_served_model([engine()])
    assert (found.largest_batch, found.usual_shapes) == (4, {"x": (2, 3, 8, 8)})
    assert found.inputs == (ServedTensor("x", "FP32", (-1, 3, 8, 8)),)
    assert found.capabilities == {"8.9": "model.plan.sm89"}


def test_an_engine_that_does_not_take_a_batch_of_one_has_none(engine):
    path = engine()
    sidecar = path.with_name("e.plan.json")
    document = json.loads(sidecar.read_text())
    document["profile"]["x"]["minimum"][0] = 2
    sidecar.write_text(json.dumps(document))
    assert read_served_model([path]).largest_batch == 0


def test_engines_of_several_gpus_stand_side_by_side(engine):
    paths = [engine("sm89", "a.plan"), engine("sm120", "b.plan"), engine("sm90", "c.plan")]
    found = read_served_model(paths)
    assert found.capabilities == {"8.9": "model.plan.sm89", "12.0": "model.plan.sm120", "9.0": "model.plan.sm90"}
    assert list(found.files.values()) == paths


def test_engines_that_do_not_go_together_are_refused(engine, tmp_path):
    first = engine("sm89", "a.plan")
    with pytest.raises(InputError, match=r"b\.plan: is for 8\.9, as .*a\.plan is"):
        read_served_model([first, engine("sm89", "b.plan")])
    other = engine("sm90", "c.plan")
    sidecar = other.with_name("c.plan.json")
    sidecar.write_text(sidecar.read_text().replace('"name": "y"', '"name": "z"'))
    with pytest.raises(InputError, match="has other inputs or outputs"):
        read_served_model([first, other])
    with pytest.raises(InputError, match="an ONNX file serves every GPU and is packaged alone"):
        read_served_model([first, tmp_path / "m.onnx"])


def test_a_capability_that_the_sidecar_does_not_say_must_be_given(engine):
    path = engine(None)
    with pytest.raises(InputError, match=r"does not say for which GPU it is; pass --compute-capability"):
        read_served_model([path])
    assert read_served_model([path], "8.9").capabilities == {"8.9": "model.plan.sm89"}
    for wrong in ("sm89", "8", "8.x"):
        with pytest.raises(InputError, match=r"write it as 8\.9"):
            read_served_model([path], wrong)


def test_a_capability_that_contradicts_the_sidecar_is_refused(engine):
    with pytest.raises(InputError, match=r"was built on a GPU of 8\.9, not 9\.0"):
        read_served_model([engine()], "9.0")


def test_an_engine_of_tensorrt_rtx_is_refused_with_the_reason(engine):
    path = engine()
    sidecar = path.with_name("e.plan.json")
    sidecar.write_text(sidecar.read_text().replace('"runtime": "tensorrt"', '"runtime": "tensorrt-rtx"'))
    with pytest.raises(InputError, match=r"tensorrt-rtx, which Triton has no backend for.*package the ONNX file"):
        read_served_model([path])


def test_an_engine_with_an_input_that_is_one_number_has_no_batch(engine):
    path = engine()
    sidecar = path.with_name("e.plan.json")
    document = json.loads(sidecar.read_text())
    document["profile"]["x"] = {"minimum": [], "optimum": [], "maximum": []}
    sidecar.write_text(json.dumps(document))
    assert read_served_model([path]).largest_batch == 0
