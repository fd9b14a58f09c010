from __future__ import annotations

import re

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError, ModelError
from vsfix.pipeline.backends.opening import BACKENDS, open_runner

X = {"input": np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)}


def test_every_backend_of_this_machine_computes_the_same(checkpoint_path, onnx_path):
    outputs = []
    on_onnx = [("onnxruntime", onnx_path), ("reference", onnx_path)]
    for backend, path in [("torch", checkpoint_path), ("torch-compile", checkpoint_path), *on_onnx]:
        with open_runner(backend, path) as runner:
            assert runner.name.startswith(backend)
            outputs.append(runner.run(X)["logits"])
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=0, atol=4e-7 * np.abs(outputs[0]).max())


def test_a_checkpoint_takes_the_images_of_its_network_only(checkpoint_path):
    with pytest.raises(DataError, match=r"takes float32 \(\?, 1, 8, 8\), but float32 \(5, 64\)"):
        open_runner("torch", checkpoint_path).run({"input": X["input"].reshape(5, 64)})


def test_the_folder_of_a_run_stands_for_its_checkpoint(checkpoint_path):
    outputs = [open_runner("torch", path).run(X)["logits"] for path in (checkpoint_path, checkpoint_path.parent)]
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_an_unknown_backend_is_refused(onnx_path):
    with pytest.raises(InputError, match=", ".join(BACKENDS)):
        open_runner("openvino", onnx_path)


FILES = {"checkpoint": "m.pt", "onnx": "m.onnx", "engine": "m.plan"}
TAKEN = {
    **{"torch": "checkpoint", "torch-compile": "checkpoint", "reference": "onnx", "onnxruntime": "onnx"},
    **{"onnxruntime-cuda": "onnx", "onnxruntime-tensorrt": "onnx", "onnxruntime-tensorrt-rtx": "onnx"},
    **{"tensorrt": "engine", "tensorrt-rtx": "engine"},
}


def test_the_backends_are_these():
    assert set(BACKENDS) == set(TAKEN)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("backend", TAKEN)
def test_a_backend_refuses_every_other_kind_of_file_and_says_what_to_do(tmp_path, backend, kind):
    if TAKEN[backend] == kind:
        return
    remedies = {
        ("checkpoint", "onnx"): f"for {backend} export it first",
        ("checkpoint", "engine"): "build an engine of it first",
        ("onnx", "checkpoint"): "run an ONNX file with onnxruntime",
        ("onnx", "engine"): f"build one first with `vsfix build {tmp_path}/m.onnx --runtime {backend}`",
        ("engine", "checkpoint"): "run an engine with tensorrt or tensorrt-rtx",
        ("engine", "onnx"): "run an engine with tensorrt or tensorrt-rtx",
    }
    (tmp_path / FILES[kind]).write_bytes(b"anything")
    with pytest.raises(InputError, match=re.escape(remedies[kind, TAKEN[backend]])) as caught:
        open_runner(backend, tmp_path / FILES[kind])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "name"), [("torch", "gone.pt"), ("onnxruntime", "gone.onnx"), ("tensorrt", "gone.plan")]
)
def test_a_missing_file_is_named(backend, name, tmp_path):
    with pytest.raises(ModelError, match=f"{name}: no such file"):
        open_runner(backend, tmp_path / name)
