from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError, MissingComponentError, ModelError
from vsfix.pipeline.backends.opening import BACKENDS, open_runner

X = {"input": np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)}


def test_every_backend_of_this_machine_computes_the_same(checkpoint_path, onnx_path):
    outputs = []
    for backend, path in [("torch", checkpoint_path), ("onnxruntime", onnx_path), ("reference", onnx_path)]:
        with open_runner(backend, path) as runner:
            assert runner.name.startswith(backend)
            outputs.append(runner.run(X)["logits"])
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=0, atol=2e-6)


def test_a_checkpoint_takes_the_images_of_its_network_only(checkpoint_path):
    with pytest.raises(DataError, match=r"takes float32 \(\?, 1, 8, 8\), but float32 \(5, 64\)"):
        open_runner("torch", checkpoint_path).run({"input": X["input"].reshape(5, 64)})


def test_the_folder_of_a_run_stands_for_its_checkpoint(checkpoint_path):
    outputs = [open_runner("torch", path).run(X)["logits"] for path in (checkpoint_path, checkpoint_path.parent)]
    np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("backend", ["tensorrt", "torch-compile", "onnxruntime-tensorrt", "tensorrt-rtx"])
def test_a_backend_of_a_later_release_is_missing(backend, onnx_path):
    with pytest.raises(MissingComponentError, match="is not part of this release"):
        open_runner(backend, onnx_path)


def test_an_unknown_backend_is_refused(onnx_path):
    with pytest.raises(InputError, match=", ".join(BACKENDS)):
        open_runner("openvino", onnx_path)


def test_a_backend_refuses_the_other_kind_of_file(checkpoint_path, onnx_path):
    with pytest.raises(InputError, match="runs a checkpoint"):
        open_runner("torch", onnx_path)
    with pytest.raises(InputError, match="export it first"):
        open_runner("onnxruntime", checkpoint_path)


@pytest.mark.parametrize(("backend", "name"), [("torch", "gone.pt"), ("onnxruntime", "gone.onnx")])
def test_a_missing_file_is_named(backend, name, tmp_path):
    with pytest.raises(ModelError, match=f"{name}: no such file"):
        open_runner(backend, tmp_path / name)
