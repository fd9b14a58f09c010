"""Small valid files of every kind that vsfix reads, for mutation; each model takes `x`, float32 (N, 3, 6, 6)."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

SHAPE = (3, 6, 6)
SAMPLES = 32
_HEAD = '<ir_version: 8, opset_import: ["" : 18]>\n'
_PLAIN = """main (float[N, 3, 6, 6] x) => (float[N, 5] y) {
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    d = Dropout (c, ratio, training)
    b = BatchNormalization <epsilon = 1e-5> (d, scale, bias, mean, var)
    r = Relu (b)
    g = GlobalAveragePool (r)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, v, u)
}"""
_BRANCHES = """main (float[N, 3, 6, 6] x) => (float[N, 5] y) {
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    q = Mul (c, c)
    s = ReduceSum <keepdims = 0> (q)
    z = Greater (s, zero)
    d = If (z) <
        then_branch = yes () => (float[N, 4, 6, 6] p) { p = BatchNormalization (c, scale, bias, mean, var) },
        else_branch = no () => (float[N, 4, 6, 6] o) { o = Relu (c) }
    >
    e = Dropout (d, ratio, training)
    h = Concat <axis = 1> (e, c)
    b = BatchNormalization (h, scale8, bias8, mean8, var8)
    g = GlobalAveragePool (b)
    f = Flatten (g)
    k = Slice (f, starts, ends, axes)
    y = Gemm <transB = 1> (k, v, u)
}"""
_PRIMITIVES = """main (float[N, 3, 6, 6] x) => (float[N, 5] y) {
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    n = RandomUniformLike (c)
    m = Greater (n, ratio)
    k = Cast <to = 1> (m)
    o = Mul (c, k)
    d = Div (o, ratio)
    i = Sub (d, mean4)
    j = Div (i, std4)
    l = Mul (j, scale4)
    b = Add (l, bias4)
    r = Relu (b)
    g = GlobalAveragePool (r)
    f = Flatten (g)
    t = Transpose <perm = [1, 0]> (v)
    a = MatMul (f, t)
    y = Add (a, u)
}"""
_FUNCTION = """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
main (float[N, 3, 6, 6] x) => (float[N, 5] y) {
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    d = own.drop (c, ratio, training)
    b = BatchNormalization (d, scale, bias, mean, var)
    r = Relu (b)
    g = GlobalAveragePool (r)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, v, u)
}
<domain: "own", opset_import: ["" : 18]>
drop (a, b, c) => (d) { d = Dropout (a, b, c) }"""


def seed_models() -> dict[str, onnx.ModelProto]:
    """The models, by name; every one passes the full checker and can be repaired with `seed_npz`."""
    models = {}
    weights = _weights()
    texts = {"plain": _HEAD + _PLAIN, "branches": _HEAD + _BRANCHES, "primitives": _HEAD + _PRIMITIVES}
    for name, text in {**texts, "function": _FUNCTION}.items():
        model = onnx.parser.parse_model(text)
        read = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
        kept = {key: np.asarray(value) for key, value in weights.items() if key in read}
        model.graph.initializer.extend(
            numpy_helper.from_array(value.astype(np.float32) if value.dtype == np.float64 else value, key)
            for key, value in kept.items()
        )
        onnx.checker.check_model(model, full_check=True)
        models[name] = model
    return models


def _weights() -> dict[str, np.ndarray]:
    """Weights at random, and the statistics that training with Dropout 0.5 behind the convolution would have stored."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(4, 3, 3, 3)), "v": rng.normal(size=(5, 4)), "u": rng.normal(size=5),
        "zero": np.array(0.0), "ratio": np.array(0.5), "training": np.array(False),
        "starts": np.array([0]), "ends": np.array([4]), "axes": np.array([1]),
        "scale": rng.uniform(0.5, 2, 4), "bias": rng.normal(size=4),
    }  # fmt: skip
    convolution = onnx.parser.parse_model(
        _HEAD + "main (float[N, 3, 6, 6] x, float[4, 3, 3, 3] w) => (float[N, 4, 6, 6] c) {"
        " c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w) }"
    )
    images = seed_npz()["x"]
    feeds = {"x": images, "w": weights["w"].astype(np.float32)}
    (clean,) = ReferenceEvaluator(convolution).run(None, feeds)
    mean, variance, square = clean.mean((0, 2, 3)), clean.var((0, 2, 3)), (clean**2).mean((0, 2, 3))
    weights |= {"mean": mean, "var": variance + square}  # 0.5 / (1 - 0.5) = 1 times the mean square on top
    column = (4, 1, 1)
    weights |= {"mean4": mean.reshape(column), "std4": np.sqrt(variance + square).reshape(column)}
    weights |= {"scale4": weights["scale"].reshape(column), "bias4": weights["bias"].reshape(column)}
    inner = (clean - mean.reshape(column)) / np.sqrt(weights["var"]).reshape(column)  # of the branch that is taken
    inner = inner * weights["scale4"] + weights["bias4"]
    first = (inner.mean((0, 2, 3)), inner.var((0, 2, 3)) + (inner**2).mean((0, 2, 3)))
    weights |= {"mean8": np.concatenate([first[0], mean]), "var8": np.concatenate([first[1], variance])}
    weights |= {"scale8": rng.uniform(0.5, 2, 8), "bias8": rng.normal(size=8)}
    return weights


def seed_npz() -> dict[str, np.ndarray]:
    """Input and labels for the models."""
    rng = np.random.default_rng(1)
    return {"x": rng.normal(size=(SAMPLES, *SHAPE)).astype(np.float32), "labels": rng.integers(0, 5, SAMPLES)}


def seed_idx() -> dict[str, bytes]:
    """The four files of a set like MNIST, 6x6, gzipped where the name says so."""
    rng = np.random.default_rng(2)
    files = {}
    for part in ("train", "t10k"):
        images = rng.integers(0, 256, (SAMPLES, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, SAMPLES, dtype=np.uint8)
        header = b"\0\0\x08" + bytes([3]) + b"".join(size.to_bytes(4, "big") for size in images.shape)
        files[f"{part}-images-idx3-ubyte"] = header + images.tobytes()
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(
            b"\0\0\x08\x01" + SAMPLES.to_bytes(4, "big") + labels.tobytes(), mtime=0
        )
    return files


def seed_checkpoint(folder: Path) -> bytes:
    """The checkpoint of a network of one epoch, trained by a process of its own."""
    network = "--model preresnet-8 --data digits --noise dropout:0.5 --site a --samples 64 --batch-size 16 --epochs 1"
    code = "from vsfix.pipeline.cli.main import main; main()"
    subprocess.run(
        [sys.executable, "-c", code, "train", *network.split(), "-o", str(folder)], check=True, capture_output=True
    )
    return (folder / "checkpoint.pt").read_bytes()


def npz_bytes(arrays: Mapping[str, np.ndarray], *, compressed: bool) -> bytes:
    """The content of an `.npz` file."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()
