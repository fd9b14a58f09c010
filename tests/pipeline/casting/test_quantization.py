from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.reference
import pytest

from vsfix.graph_passes.errors import CheckFailedError, InputError, MissingComponentError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.precision.quantized_layers import find_quantized_layers
from vsfix.pipeline.casting.casting import cast_model
from vsfix.pipeline.casting.quantization import quantize_model, require_calibration
from vsfix.pipeline.host.quantizer import VARIABLE, find_quantizer, install_quantizer, quantizer_folder

BODY = """(float[N, 8, 6, 6] x) => (float[N, 20] y) {
    c = Conv <pads: ints = [1, 1, 1, 1]> (x, "conv.weight", "conv.bias")
    r = Relu (c)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm <transB: int = 1> (f, "fc.weight", "fc.bias")
}"""


@pytest.fixture
def network(parse):
    rng = np.random.default_rng(2)
    spread = np.float32(10.0) ** rng.uniform(-4, 0, (16, 1, 1, 1)).astype(np.float32)  # as a fold leaves channels
    model = parse(
        BODY,
        {
            "conv.weight": spread * rng.normal(0, 0.3, (16, 8, 3, 3)).astype(np.float32),
            "conv.bias": rng.normal(0, 0.1, 16).astype(np.float32),
            "fc.weight": rng.normal(0, 0.3, (20, 16)).astype(np.float32),
            "fc.bias": rng.normal(0, 0.1, 20).astype(np.float32),
        },
    )
    onnx.helper.set_model_props(model, {"vsfix.repair": "{}"})
    return model


@pytest.fixture
def batches():
    rng = np.random.default_rng(3)
    return [{"x": rng.normal(size=(32, 8, 6, 6)).astype(np.float32)} for _ in range(2)]


@pytest.fixture
def fake_modelopt(monkeypatch, tmp_path):
    """Puts the fake in the place of ModelOpt's Python."""

    def behave(behaviour: str) -> None:
        script = tmp_path / "python"
        source = Path(__file__).with_name("fake_modelopt.py").read_text()
        script.write_text(source.replace("/usr/bin/env python", sys.executable))
        script.chmod(0o755)
        monkeypatch.setenv(VARIABLE, str(script))
        monkeypatch.setenv("FAKE_MODELOPT", behaviour)

    return behave


def test_what_comes_back_is_counted_judged_and_says_what_the_model_said(fake_modelopt, network, batches, open_model):
    fake_modelopt("good")
    found = quantize_model(network, "int8", batches, open_model)
    report = found.report
    assert report.layers == {"int8": 2, "float32": 0}
    assert (report.precision, report.opset, report.samples) == ("int8", 19, 64)
    assert report.calibration in ("max over 64 samples", "entropy over 64 samples")
    assert 20 < report.snr_db < 30
    assert {entry.key for entry in found.model.metadata_props} == {"vsfix.repair"}


@pytest.mark.long
@pytest.mark.parametrize("name", ["a b,c/d:0", "file", " x ", "vsfix_input_1"])
def test_an_input_may_have_any_name(fake_modelopt, network, batches, open_model, name):
    fake_modelopt("good")
    graph = import_graph(network)
    graph.inputs[0].name = name
    renamed = export_model(graph, network)
    found = quantize_model(renamed, "int8", [{name: batch["x"]} for batch in batches], open_model)
    assert [value.name for value in found.model.graph.input] == [name]
    before = quantize_model(network, "int8", batches, open_model)
    assert found.report.snr_db == pytest.approx(before.report.snr_db, abs=1e-9)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("killed", r"ModelOpt was killed \(SIGKILL\), as happens where memory ends"),
        ("nothing", "--precision int8: of 2 layers with a weight ModelOpt quantised 0, the graph is fp32"),
        ("per_tensor", "gave the weight of '.*' one scale for all of its channels"),
        ("coarse", "refused: in int8 the model differs from what it was"),
        ("renamed", r"renamed an output: \['y'\] became \['other'\]"),
        ("no_file", "ended without a file: INFO - done"),
        ("fails", "can't quantise the model: ValueError: no quantiser for this operator; nothing is written"),
    ],
)
def test_what_modelopt_gets_wrong_is_refused(fake_modelopt, network, batches, open_model, behaviour, words):
    fake_modelopt(behaviour)
    with pytest.raises(CheckFailedError, match=words):
        quantize_model(network, "int8", batches, open_model)


@pytest.mark.parametrize(("behaviour", "method"), [("entropy", "entropy"), ("good", "max")])
def test_of_two_calibrations_the_nearer_one_is_kept(fake_modelopt, network, batches, open_model, behaviour, method):
    fake_modelopt(behaviour)
    assert quantize_model(network, "int8", batches, open_model).report.calibration == f"{method} over 64 samples"


def test_a_batch_norm_that_is_cut_off_from_its_convolution_is_refused(fake_modelopt, parse, batches, open_model):
    body = BODY.replace("c = Conv", "k = Conv").replace(
        "r = Relu", "c = BatchNormalization (k, g, b, m, v)\n    r = Relu"
    )
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (16, 8, 3, 3), "conv.bias": (16,), "fc.weight": (20, 16), "fc.bias": (20,)}
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    unfolded = parse(body, weights | {name: np.ones(16, np.float32) for name in "gbmv"})
    fake_modelopt("split")
    with pytest.raises(CheckFailedError, match="put Q/DQ before BatchNorm 'c', which no runtime can fold then"):
        quantize_model(unfolded, "int8", batches, open_model)
    fake_modelopt("good")
    assert quantize_model(unfolded, "int8", batches, open_model).report.layers == {"int8": 2, "float32": 0}


def test_there_is_no_calibration_on_random_numbers(call, onnx_path, tmp_path):
    result = call("optimize", onnx_path, "-o", tmp_path / "q.onnx", "--precision", "int8", "--method", "match")
    assert result.exit_code == 2
    assert "--precision int8: the ranges of activations come from data; give it with --data" in result.stderr
    assert not (tmp_path / "q.onnx").exists()


def test_a_machine_without_modelopt_says_how_to_get_it(call, onnx_path, npz_path, tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = call("optimize", onnx_path, "-o", tmp_path / "q.onnx", "--precision", "int8", "--data", npz_path)
    assert result.exit_code == 3
    assert "ModelOpt, which quantises, is not installed; run: vsfix doctor --install quantizer" in result.stderr
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"VSFIX_QUANTIZER=.*gone: no such file"):
        require_calibration("int8", [{"x": np.zeros(1)}])


def test_a_python_may_be_named_from_the_current_folder_and_must_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "python")
    (tmp_path / "python").write_text("#!/bin/sh")
    with pytest.raises(InputError, match=r"VSFIX_QUANTIZER=python: can't be run"):
        find_quantizer()
    (tmp_path / "python").chmod(0o755)
    assert find_quantizer() == tmp_path / "python"


def test_an_input_without_a_batch_axis_is_refused_before_any_work(fake_modelopt):
    fake_modelopt("good")
    with pytest.raises(InputError, match="--precision int8: input 't' has no batch axis"):
        require_calibration("int8", [{"x": np.zeros((2, 3)), "t": np.float32(2)}])


@pytest.mark.long
@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_cut_into_batches_does_not_change_the_verdict(fake_modelopt, network, batches, open_model, size):
    fake_modelopt("good")
    samples = np.concatenate([batch["x"] for batch in batches])
    cut = [{"x": samples[start : start + size]} for start in range(0, len(samples), size)]
    report = quantize_model(network, "int8", cut, open_model).report
    whole = quantize_model(network, "int8", [{"x": samples}], open_model).report
    assert report.samples == 64
    assert report.snr_db == pytest.approx(whole.snr_db, abs=1e-3)


def test_an_environment_that_was_not_finished_does_not_count(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = quantizer_folder() / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("half made")
    with pytest.raises(MissingComponentError):
        find_quantizer()
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(MissingComponentError, match="the environment of ModelOpt can't be made"):
        install_quantizer()
    assert not python.exists()


def test_a_model_that_is_not_float32_is_not_quantised(fake_modelopt, network, batches, open_model):
    fake_modelopt("good")
    half = cast_model(network, "fp16", batches[0], open_model).model
    with pytest.raises(InputError, match="wants a float32 model, and this one is fp16"):
        quantize_model(half, "int8", batches, open_model)


@pytest.fixture
def modelopt():
    """The real one."""
    try:
        return find_quantizer()
    except MissingComponentError as error:
        pytest.skip(str(error))


def quantized_value(values, scale, axis=None):
    """Quantised and back, in float64."""
    if axis is not None:
        scale = scale.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
    return np.clip(np.round(values / scale), -128, 127) * scale


@pytest.mark.long
@pytest.mark.usefixtures("modelopt")
def test_the_weights_of_modelopt_are_those_of_float64_by_their_scales(network, batches, open_model):
    found = quantize_model(network, "int8", batches, open_model)
    graph = import_graph(found.model)
    layers = find_quantized_layers(graph)
    assert (len(layers.quantized), layers.plain, layers.per_tensor, layers.split) == (2, (), (), ())
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in found.model.graph.initializer}
    conv = next(node for node in graph.nodes if node.op == "Conv")
    quantizer = conv.inputs[1].inputs[0].inputs[0].inputs[0]
    weight, scale = (np.asarray(values[tensor.name], np.float64) for tensor in quantizer.inputs[:2])
    np.testing.assert_array_equal(weight, onnx.numpy_helper.to_array(network.graph.initializer[0]))
    np.testing.assert_allclose(scale, np.abs(weight).max(axis=(1, 2, 3)) / 127, rtol=1e-5)
    fetch = onnx.reference.ReferenceEvaluator(found.model).run(None, batches[0], intermediate=True)
    wanted = quantized_value(weight, scale, axis=0)
    np.testing.assert_allclose(fetch[conv.inputs[1].name], wanted, atol=1e-7)
    one_scale = quantized_value(weight, scale.max())
    lost = [np.abs(one_scale[channel]).max() == 0 for channel in range(16)]
    assert any(lost)  # what one scale for all channels would have done


@pytest.mark.long
@pytest.mark.usefixtures("modelopt")
def test_float8_is_run_as_the_reference_evaluator_does(network, batches, open_runner_of):
    found = quantize_model(network, "fp8", batches, open_runner_of)
    (output,) = open_runner_of(found.model).run(batches[0]).values()
    (wanted,) = onnx.reference.ReferenceEvaluator(found.model).run(None, batches[0])
    np.testing.assert_allclose(output, wanted, atol=1e-4)
    assert found.report.layers["fp8"] >= 1


@pytest.fixture
def open_runner_of():
    from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs

    return open_for_small_runs


@pytest.mark.long
@pytest.mark.usefixtures("modelopt")
def test_the_command_line_quantises_and_writes_a_file_that_says_so(call, onnx_path, tmp_path):
    target = tmp_path / "q.onnx"
    result = call("optimize", onnx_path, "-o", target, "--precision", "int8", "--data", "digits", "--samples", 64)
    assert result.exit_code == 0, result.output
    assert "layers in int8" in result.stdout
    model = onnx.load(target)
    assert {"vsfix.repair", "vsfix.preprocessing"} <= {entry.key for entry in model.metadata_props}
    assert find_quantized_layers(import_graph(model)).quantized


def test_what_lies_in_the_current_folder_is_not_run_by_the_installation(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    commands: list[list[str]] = []

    def record(command):
        commands.append(command)
        quantizer_folder().mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr("vsfix.pipeline.host.quantizer._install", record)
    install_quantizer()
    assert [command[1:4] for command in commands] == [["-I", "-m", "venv"], ["-I", "-m", "pip"], ["-I", "-m", "pip"]]
