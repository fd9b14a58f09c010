"""Weights that stay in their file, with a limit so low that small models are past it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.io import external_data, file_values
from vsfix.graph_passes.io.external_data import fits_one_file, save_with_external_data
from vsfix.graph_passes.io.file_values import put_into_file
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model, write_model
from vsfix.graph_passes.ir.stored_values import FileValues, file_of, stored_values, values_of
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner

LARGE = ("conv1.weight", "conv2.weight", "conv3.weight")


@pytest.fixture(autouse=True)
def low_limits(monkeypatch):
    monkeypatch.setattr(external_data, "MAX_SINGLE_FILE_WEIGHTS", 100)
    monkeypatch.setattr(external_data, "INLINE_BELOW", 16)
    monkeypatch.setattr(file_values, "LARGE", 600)


@pytest.fixture
def read(residual, tmp_path) -> onnx.ModelProto:
    save_with_external_data(residual, tmp_path / "m.onnx")
    return read_model(tmp_path / "m.onnx")


def tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def test_large_weights_stay_where_they_are_and_small_ones_are_read(read, residual, tmp_path):
    files = {name for name, tensor in tensors(read).items() if file_of(tensor) == tmp_path / "m.onnx.data"}
    assert files == set(LARGE)
    assert not fits_one_file(read)
    for name, tensor in tensors(residual).items():
        np.testing.assert_array_equal(values_of(tensors(read)[name]), onnx.numpy_helper.to_array(tensor))


def test_a_graph_maps_them_each_time_and_holds_none(read, residual):
    constants = import_graph(read).tensors()
    for name in LARGE:
        values = stored_values(constants[name])
        assert isinstance(values, np.memmap)
        assert not values.flags.writeable
        assert isinstance(constants[name]._values, FileValues)
        np.testing.assert_array_equal(values, onnx.numpy_helper.to_array(tensors(residual)[name]))


def test_a_round_trip_and_a_session_copy_no_weight(read, residual, images):
    again = export_model(import_graph(read), read)
    assert {file_of(tensors(again)[name]) for name in LARGE} == {file_of(tensors(read)[name]) for name in LARGE}
    with OnnxRuntimeRunner(residual) as expected, OnnxRuntimeRunner(again) as found:
        np.testing.assert_array_equal(found.run({"x": images})["y"], expected.run({"x": images})["y"])


def test_new_values_go_to_a_temporary_file_once(read, images, tmp_path):
    graph = import_graph(read)
    constant = graph.tensors()["conv1.weight"]
    constant.values = 2 * stored_values(constant)
    first, second = export_model(graph, read), export_model(graph, read)
    file = file_of(tensors(first)["conv1.weight"])
    assert file not in (None, tmp_path / "m.onnx.data")
    assert file == file_of(tensors(second)["conv1.weight"])
    np.testing.assert_array_equal(values_of(tensors(first)["conv1.weight"]), stored_values(constant))
    # A session takes weights of two folders: it maps those of one and copies those of the other.
    with OnnxRuntimeRunner(first) as mixed:
        doubled = mixed.run({"x": images})["y"]
    plain = onnx.ModelProto()
    plain.CopyFrom(first)
    for tensor in plain.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(values_of(tensor)), tensor.name))
    with OnnxRuntimeRunner(plain) as whole:
        np.testing.assert_array_equal(doubled, whole.run({"x": images})["y"])


def test_a_model_of_references_is_written_with_its_values(read, residual, tmp_path):
    write_model(read, tmp_path / "copy.onnx", force=False)
    (tmp_path / "m.onnx.data").unlink()
    copied = onnx.load(tmp_path / "copy.onnx")
    for name, tensor in tensors(residual).items():
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(tensors(copied)[name]), onnx.numpy_helper.to_array(tensor)
        )


@pytest.mark.parametrize("dtype", [onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.INT64])
def test_every_type_comes_back_from_a_temporary_file(dtype):
    values = np.arange(8).reshape(2, 4).astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
    tensor = put_into_file(np.asfortranarray(values))
    assert tensor.data_type == dtype
    assert values_of(tensor).tobytes() == values.tobytes()


def test_a_file_that_is_gone_or_cut_is_an_error(read, tmp_path):
    (tmp_path / "m.onnx.data").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"m\.onnx\.data: the weights of 'conv1.weight' are gone"):
        values_of(tensors(read)["conv1.weight"])


def test_a_disk_that_takes_no_weights_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(file_values._scratch, "new_path", lambda: tmp_path / "missing" / "0.bin")
    with pytest.raises(InputError, match="can't hold the weights"):
        put_into_file(np.zeros(4))
