"""The answers of `vsfix optimize` to calibration data and statistics that are out of the ordinary.

docs/reliability.md says the same as these tables.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

RNG = np.random.default_rng(3)
SHAPE = (3, 6, 6)
BODY = """(float[N, 3, 6, 6] x) => (float[N, 5] y) {
    c = Conv (x, w)
    d = Dropout (c, ratio, training)
    b = BatchNormalization <epsilon = EPSILON> (d, gamma, beta, mean, var)
    r = Relu (b)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, v)
}"""
WEIGHTS = {
    "w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "v": RNG.normal(size=(5, 4)).astype(np.float32),
    "ratio": np.float32(0.5),
    "training": np.array(False),
}
SAMPLES = RNG.normal(0.2, 1, (64, *SHAPE)).astype(np.float32)


def trained(open_model, parse, *, epsilon: str = "1e-5", **channels: tuple[str, float]) -> onnx.ModelProto:
    """A network with the statistics that training with Dropout 0.5 stores, but for what `channels` puts into channel 0."""
    no_bn = parse("(float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] c) { c = Conv (x, w) }", {"w": WEIGHTS["w"]})
    c = open_model(no_bn).run({"x": SAMPLES})["c"].astype(np.float64)
    mean, variance = c.mean(axis=(0, 2, 3)), c.var(axis=(0, 2, 3))
    weights = WEIGHTS | {
        "gamma": np.array([1.5, 0.5, 1.0, 2.0], np.float32),
        "beta": np.array([0.1, -0.2, 0.3, 0.0], np.float32),
        "mean": mean.astype(np.float32),
        "var": (2 * variance + mean**2).astype(np.float32),
    }
    for name, value in channels.items():
        weights[name] = weights[name].copy()
        weights[name][0] = value
    return parse(BODY.replace("EPSILON", epsilon), weights)


def poisoned(value: float) -> np.ndarray:
    array = SAMPLES.copy()
    array[5, 1, 2, 3] = value
    return array


OTHER_DATA = "from what its noise explains: is it the data of the training"
DATA = {
    "NaN": (poisoned(np.nan), 2, "is not finite in 1 of 64 samples, the first is sample 5"),
    "infinite": (poisoned(-np.inf), 2, "is not finite in 1 of 64 samples, the first is sample 5"),
    "overflows": (SAMPLES * np.float32(6e37), 2, "holds a value that is not finite"),
    "one sample": (SAMPLES[:1], 2, "give at least 8 samples"),
    "no sample": (SAMPLES[:0], 2, "holds no sample"),
    "constant": (np.full_like(SAMPLES, 0.3), 2, "only 1 of the 64 samples differ"),
    "copies": (np.repeat(SAMPLES[:2], 32, axis=0), 2, "only 2 of the 64 samples differ"),
    "times 255": (SAMPLES * 255, 1, OTHER_DATA),
    "over 255": (SAMPLES / 255, 1, OTHER_DATA),
    "channels last": (SAMPLES.transpose(0, 2, 3, 1).copy(), 2, "has samples of 6x6x3, the model takes 3x6x6"),
    "flat": (SAMPLES.reshape(64, -1), 2, "has samples of 108, the model takes 3x6x6"),
    "too large for float32": (SAMPLES.astype(float) * 1e300, 2, "is float64, the model takes float32, which"),
    "uint8": ((SAMPLES * 30 + 128).clip(0, 255).astype(np.uint8), 2, "is uint8, the model takes float32"),
    "text": (np.full((64, *SHAPE), "a"), 2, "numbers are needed"),
}


@pytest.mark.parametrize("method", ["paired", "exact"])
@pytest.mark.parametrize("kind", DATA)
def test_data_that_carries_no_repair_is_refused_in_one_line(kind, method, parse, open_model, call, tmp_path):
    data, exit_code, said = DATA[kind]
    onnx.save(trained(open_model, parse), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=data)
    output = tmp_path / "out.onnx"
    result = call("optimize", tmp_path / "net.onnx", "--data", tmp_path / "data.npz", "--method", method, "-o", output)
    assert (result.exit_code, output.exists()) == (exit_code, False), result.output
    (line,) = result.stderr.splitlines()
    assert said in line


@pytest.mark.parametrize("method", ["paired", "exact"])
def test_the_same_network_is_repaired_by_its_own_data(method, parse, open_model, call, tmp_path):
    onnx.save(trained(open_model, parse), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=SAMPLES)
    result = call(
        "optimize",
        tmp_path / "net.onnx",
        "--data",
        tmp_path / "data.npz",
        "--method",
        method,
        "-o",
        tmp_path / "o.onnx",
    )
    assert result.exit_code == 0
    assert re.search(rf"^(PASS|WARN) Repaired 1 of 1 BatchNorms \({method}, ", result.output, re.MULTILINE)
    assert "stores a variance" not in result.output


def test_data_on_which_nothing_varies_is_told(parse, open_model, call, tmp_path):
    onnx.save(trained(open_model, parse), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=SAMPLES * np.float32(1e-30))
    result = call("optimize", tmp_path / "net.onnx", "--data", tmp_path / "data.npz", "--method", "exact", "--dry-run")
    assert result.exit_code == 0
    assert "WARN no channel of 1 BatchNorms varies on this data" in result.output
    assert "WARN Nothing repaired" in result.output


REFUSED = {
    "NaN gamma": ({"gamma": np.nan}, "1e-5", 1, "'gamma', channel 0: 1 value is NaN"),
    "NaN variance": ({"var": np.nan}, "1e-5", 2, "BatchNorm 'b'"),
    "negative variance": ({"var": -1e-3}, "1e-5", 2, "BatchNorm 'b'"),
    "infinite mean": ({"mean": np.inf}, "1e-5", 2, "BatchNorm 'b'"),
    "no variance, no epsilon": ({"var": 0.0}, "0.0", 1, "channel 0: 1 value is infinite"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_statistics_that_divide_by_nothing_are_refused(kind, parse, open_model, call, tmp_path):
    channels, epsilon, exit_code, said = REFUSED[kind]
    onnx.save(trained(open_model, parse, epsilon=epsilon, **channels), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=SAMPLES)
    output = tmp_path / "out.onnx"
    result = call("optimize", tmp_path / "net.onnx", "--data", tmp_path / "data.npz", "-o", output)
    assert (result.exit_code, output.exists()) == (exit_code, False), result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("vsfix: error")]
    assert said in line
    looked = call("inspect", tmp_path / "net.onnx")
    assert "FAIL The weights can't be deployed" in looked.output


@pytest.mark.parametrize("value", [np.inf, np.nan, -1e-9])
@pytest.mark.parametrize("options", [("--fold",), ("--no-fold",), ("--no-fold", "--precision", "fp16")])
def test_a_variance_that_is_none_is_refused_where_nothing_is_repaired_too(
    value, options, parse, open_model, call, tmp_path
):
    onnx.save(trained(open_model, parse, var=value), tmp_path / "net.onnx")  # 1 / sqrt(inf) would be a finite 0
    output = tmp_path / "out.onnx"
    result = call("optimize", tmp_path / "net.onnx", "--method", "none", *options, "-o", output)
    assert (result.exit_code, output.exists()) == (2, False), result.output
    assert f"BatchNorm 'b', channel 0: a running variance of {value:g}" in result.stderr
    assert "FAIL The weights can't be deployed" in call("inspect", tmp_path / "net.onnx").output


WORKING = {
    "no variance": ({"var": 0.0}, "1e-5"),
    "gamma 0": ({"gamma": 0.0}, "1e-5"),
    "negative gamma": ({"gamma": -1.5}, "1e-5"),
    "dead channel": ({"w": 0.0}, "1e-5"),
    "epsilon 0": ({}, "0.0"),
}


@pytest.mark.parametrize("method", ["paired", "exact"])
@pytest.mark.parametrize("kind", WORKING)
def test_channels_that_are_out_of_the_ordinary_are_carried_through(kind, method, parse, open_model, call, tmp_path):
    channels, epsilon = WORKING[kind]
    model = trained(open_model, parse, epsilon=epsilon, **channels)
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=SAMPLES)
    files = (tmp_path / "plain.onnx", tmp_path / "folded.onnx")
    for output, fold in zip(files, ("--no-fold", "--fold"), strict=True):
        result = call(
            "optimize", tmp_path / "net.onnx", "--data", tmp_path / "data.npz", "--method", method, fold, "-o", output
        )
        assert result.exit_code == 0, result.output
        assert "Repaired 1 of 1" in result.output
    plain, folded = (onnx.load(file) for file in files)
    for written in (plain, folded):
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
        assert all(np.isfinite(array).all() for array in arrays.values())
    outputs = [open_model(written).run({"x": SAMPLES})["y"] for written in (plain, folded)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-4 * np.abs(outputs[0]).max())
    if kind in ("no variance", "dead channel"):  # nothing can be said of such a channel, which keeps what it stores
        variance = {t.name: onnx.numpy_helper.to_array(t) for t in plain.graph.initializer}["var"]
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}["var"]
        assert variance[0] == stored[0]
        assert variance[1:] == pytest.approx(stored[1:] / 2, rel=0.2)


@pytest.mark.parametrize(("method", "exit_code"), [("exact", 0), ("paired", 1)])
def test_a_stored_variance_far_below_the_real_one_is_measured_anew_or_refused(
    method, exit_code, parse, open_model, call, tmp_path
):
    onnx.save(trained(open_model, parse, var=1e-42), tmp_path / "net.onnx")  # what paired moves stays as small
    np.savez(tmp_path / "data.npz", x=SAMPLES)
    output = tmp_path / "out.onnx"
    result = call("optimize", tmp_path / "net.onnx", "--data", tmp_path / "data.npz", "--method", method, "-o", output)
    assert (result.exit_code, output.exists()) == (exit_code, not exit_code), result.output
    assert "BatchNorm 'b' still stores a variance that is off" in result.stderr or not exit_code


def test_statistics_that_were_never_trained_are_replaced_where_that_is_asked_for(parse, call, tmp_path):
    body = BODY.replace("d = Dropout (c, ratio, training)", "d = Identity (c)").replace("EPSILON", "1e-5")
    ones = {name: np.ones(4, np.float32) for name in ("gamma", "var")}
    zeros = {name: np.zeros(4, np.float32) for name in ("beta", "mean")}
    weights = {name: value for name, value in WEIGHTS.items() if name in "wv"}
    onnx.save(parse(body, weights | ones | zeros), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=SAMPLES * 255)
    result = call(
        *("optimize", tmp_path / "net.onnx", "--data", tmp_path / "data.npz", "--method", "exact"),
        *("--layers", "all", "-o", tmp_path / "out.onnx"),
    )
    assert result.exit_code == 0, result.output
    assert "Repaired 1 of 1" in result.output


def test_labelled_data_outweighs_a_variance_that_nothing_explains(parse, open_model, call, tmp_path, monkeypatch):
    onnx.save(trained(open_model, parse), tmp_path / "net.onnx")
    scaled = SAMPLES * 255
    np.savez(tmp_path / "data.npz", x=scaled)
    with monkeypatch.context() as lifted:
        lifted.setattr("vsfix.pipeline.repair.verdict.MAX_UNEXPLAINED", np.inf)
        unchecked = call(
            *("optimize", tmp_path / "net.onnx", "--data", tmp_path / "data.npz", "--method", "exact"),
            *("-o", tmp_path / "unchecked.onnx"),
        )
    assert unchecked.exit_code == 0
    labels = open_model(onnx.load(tmp_path / "unchecked.onnx")).run({"x": scaled})["y"].argmax(axis=1)
    np.savez(tmp_path / "data.npz", x=scaled, labels=labels)
    command = ("optimize", tmp_path / "net.onnx", "--data", tmp_path / "data.npz", "--method", "exact")
    refused = call(*command, "-o", tmp_path / "out.onnx")
    assert refused.exit_code == 1
    assert "--eval-data" in refused.stderr
    judged = call(*command, "--eval-data", tmp_path / "data.npz", "-o", tmp_path / "out.onnx")
    assert judged.exit_code == 0, judged.output
    assert "-> 100.0 %" in judged.output
