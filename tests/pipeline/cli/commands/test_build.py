"""`vsfix build` as a user types it; what needs no TensorRT comes first."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'"
)
NO_GPU = "the engine can't be loaded on this machine: no GPU and driver for it here"
RTX = ("--runtime", "tensorrt-rtx", "--target", "sm89")
BN = {name: np.full(4, value, np.float32) for name, value in (("g", 2), ("b", 1), ("m", 0.5), ("v", 3))}


@pytest.fixture
def model(parse, tmp_path):
    """Writes a model of the text and returns its path."""

    def write(body, weights=BN, name="m.onnx"):
        onnx.save(parse(body, weights), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def plain(model):
    return model("(float[N, 4] x) => (float[N, 4] y) { y = BatchNormalization (x, g, b, m, v) }")


def line_of(result, code):
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("vsfix: error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "'x' has no fixed size on axis 0 (N); pass --shapes x:1x4"),
        (("--shapes", "x:1x5"), "is (N, 4) in the model, (1, 5) was given"),
        (("--shapes", "z:1x4"), "has no input 'z'"),
        (("--shapes", "1x4"), "write NAME:1x3x32x32"),
        (("--shapes", "x:1x4", "--workspace", "much"), "--workspace"),
        (("--shapes", "x:1x4", "--workspace", "0"), "at least one byte"),
        (("--shapes", "x:1x4", "--target", "sm80,sm80"), "name each once"),
        ((*RTX, "--shapes", "x:1x4", "--timing-cache", "t"), "leave --timing-cache out"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(call, plain, tmp_path, arguments, words):
    line = line_of(call("build", plain, "-o", tmp_path / "e.plan", *arguments), 2)
    assert words in line
    assert list(tmp_path.iterdir()) == [plain]


@pytest.mark.parametrize("existing", ["e.plan", "e.plan.json"])
def test_an_output_that_exists_stays_without_force(call, plain, tmp_path, existing):
    (tmp_path / existing).write_text("mine")
    line = line_of(call("build", plain, "-o", tmp_path / "e.plan", "--shapes", "x:1x4"), 2)
    assert f"{existing}: exists already; pass --force" in line
    assert (tmp_path / existing).read_text() == "mine"


def test_the_model_is_never_written(call, plain):
    line = line_of(call("build", plain, "-o", plain, "--shapes", "x:1x4", "--force"), 2)
    assert "is an input" in line


@pytest.mark.parametrize(
    ("runtime", "module", "extra"), [("tensorrt", "tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")]
)
def test_a_missing_library_is_named_with_the_line_that_installs_it(
    call, plain, tmp_path, monkeypatch, runtime, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    result = call("build", plain, "-o", tmp_path / "e.plan", "--shapes", "x:1x4", "--runtime", runtime)
    assert line_of(result, 3).endswith(f"{module} is not installed; run: pip install 'vsfix[{extra}]'")


@needs_rtx
def test_a_build_prints_what_was_built_and_how_it_is_known(call, plain, tmp_path):
    result = call("build", plain, "-o", tmp_path / "e.plan", *RTX, "--min-shapes", "x:1x4", "--max-shapes", "x:[8,4]")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert "\nSCALE " in result.stdout
    assert "shapes: x 1x4 .. 8x4 .. 8x4\n" in result.stdout
    assert "PASS read back: 2 scales and shifts of BatchNorms" in result.stdout
    assert f"wrote {tmp_path / 'e.plan.json'}\n" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.plan", "e.plan.json", "m.onnx"]
    assert not (tmp_path / "e.plan").read_bytes().startswith(b"{")
    again = call("build", plain, "-o", tmp_path / "e.plan", *RTX, "--shapes", "x:1x4", "--force", "--json", "-")
    assert json.loads(again.stdout)["profile"]["x"]["maximum"] == [1, 4]


@needs_rtx
def test_a_file_that_shows_its_noise_and_was_not_repaired_is_built_with_a_warning(call, onnx_path, tmp_path):
    result = call("build", onnx_path, "-o", tmp_path / "e.plan", *RTX, "--shapes", "input:1x1x8x8")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert "WARN the file was not repaired, and the noise of its training reaches BatchNorm" in result.stdout


@needs_rtx
def test_json_on_stdout_is_the_sidecar(call, plain, tmp_path):
    result = call("build", plain, "-o", tmp_path / "e.plan", *RTX, "--shapes", "x:1x4", "--json", "-")
    document, sidecar = json.loads(result.stdout), json.loads((tmp_path / "e.plan.json").read_text())
    assert {name: document.pop(name) for name in sidecar} == sidecar
    assert (document["command"], document["status"], document["warnings"]) == ("build", "PASS", [])


@needs_rtx
@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "sm90",
            "builds for sm75, sm80, sm86, sm89, sm120, sm121 and current; an engine for it is built on such a GPU",
        ),
        ("ampere", "target 'ampere'"),
        ("", "target ''"),
    ],
)
def test_a_target_that_there_is_not_is_refused_with_those_that_there_are(call, plain, tmp_path, target, words):
    arguments = ("--runtime", "tensorrt-rtx", "--shapes", "x:1x4", "--target", target)
    assert words in line_of(call("build", plain, "-o", tmp_path / "e.plan", *arguments), 2)


@needs_rtx
def test_this_gpu_is_missing_where_there_is_none(call, plain, tmp_path):
    result = call("build", plain, "-o", tmp_path / "e.plan", "--runtime", "tensorrt-rtx", "--shapes", "x:1x4")
    if result.exit_code == 0:
        pytest.skip("there is a GPU here that TensorRT-RTX builds for")
    assert "finds no NVIDIA GPU and driver here: name the GPUs to build for with --target" in line_of(result, 3)


REFUSED = {
    "BatchNorm in training form": (
        "(float[1, 4] x) => (float[1, 4] y) { y, n, k = BatchNormalization <training_mode: int = 1> (x, g, b, m, v) }",
        BN,
        "BatchNormalization 'y': This version of TensorRT does not support training_mode == 1",
        "`vsfix optimize",
    ),
    "Dropout in training form": (
        "(float[1, 4] x) => (float[1, 4] y) { [drop] d = Dropout (x, r, t) y = Relu (d) }",
        {"r": np.float32(0.5), "t": np.array(True)},
        "Dropout 'drop': TensorRT does not support the Dropout operator in training mode",
        "`vsfix optimize",
    ),
    "unknown operator": (
        "(float[1, 4, 4] x) => (float[1] y) { y = Det (x) }",
        {},
        "Det 'y': there is no Det in TensorRT",
        "replace the operator",
    ),
    "axes that are an input": (
        "(float[1, 4] x, int64[1] a) => (float[K] y) { y = ReduceMean <keepdims: int = 0> (x, a) }",
        {},
        "ReduceMean 'y': Axis input must resolve to a build-time constant",
        "make it a constant",
    ),
}


@needs_rtx
@pytest.mark.parametrize("case", REFUSED)
def test_what_the_parser_refuses_names_the_node_and_the_remedy(call, model, tmp_path, case):
    body, weights, words, remedy = REFUSED[case]
    path = model(body, weights)
    line = line_of(call("build", path, "-o", tmp_path / "e.plan", *RTX), 4)
    assert words in line
    assert remedy in line.rpartition(";")[2]
    assert list(tmp_path.iterdir()) == [path]


@needs_rtx
def test_the_remedy_works(call, model, tmp_path):
    body = """(float[1, 4] x) => (float[1, 4] y) {
        d = Dropout (x, r, t)
        y, n, k = BatchNormalization <training_mode: int = 1> (d, g, b, m, v)
    }"""
    path = model(body, BN | {"r": np.float32(0.5), "t": np.array(True)})
    assert call("build", path, "-o", tmp_path / "e.plan", *RTX).exit_code == 4
    repaired = call("optimize", path, "-o", tmp_path / "repaired.onnx", "--method", "analytic")
    assert repaired.exit_code == 0, repaired.output
    assert call("build", tmp_path / "repaired.onnx", "-o", tmp_path / "e.plan", *RTX).exit_code == 0


@needs_rtx
def test_what_was_asked_for_and_is_not_in_the_file_is_an_error(call, plain, tmp_path):
    result = call("build", plain, "-o", tmp_path / "e.plan", *RTX, "--shapes", "x:1x4", "--precision", "fp16")
    assert "--precision fp16 was asked for" in line_of(result, 2)


@needs_rtx
def test_an_input_that_holds_a_shape_is_refused(call, model, tmp_path):
    path = model("(float[1, 4] x, int64[2] a) => (float[K, L] y) { y = Reshape (x, a) }", {})
    assert "input 'a' holds a shape" in line_of(call("build", path, "-o", tmp_path / "e.plan", *RTX), 2)


@needs_rtx
def test_weights_in_a_file_of_their_own_are_parsed_and_hashed(call, parse, tmp_path):
    proto = parse("(float[1, 4] x) => (float[1, 4] y) { y = MatMul (x, w) }", {"w": np.eye(4, dtype=np.float32)})
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.weights", size_threshold=0)
    result = call("build", tmp_path / "m.onnx", "-o", tmp_path / "e.plan", *RTX, "--json", "-")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [weight["bytes"] for weight in document["model"]["weights"]] == [64]
    assert document["read_back"]["rows"][0] | {"error": None} == {
        **{"node": "w", "kind": "CONSTANT", "value": "weights", "count": 16, "error": None},
        **{"tolerance": 1e-6, "channel": 0, "reason": "", "status": "PASS"},
    }


@needs_rtx
def test_the_command_of_the_walkthrough_runs(call, onnx_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[4] / "docs" / "walkthrough.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("vsfix build repaired.onnx"))
    (tmp_path / "repaired.onnx").write_bytes(onnx_path.read_bytes())
    result = call(*line.replace("28x28", "8x8").split()[1:])
    assert result.exit_code == 0, result.output


def test_the_json_of_a_build_can_not_be_its_sidecar(call, plain, tmp_path):
    result = call("build", plain, "-o", tmp_path / "e.plan", "--shapes", "x:1x4", "--json", tmp_path / "e.plan.json")
    assert "is another output of this command" in line_of(result, 2)
