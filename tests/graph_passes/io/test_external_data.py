from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.external_data_helper
import onnx_graphsurgeon as gs
import onnxruntime
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.io import external_data
from vsfix.graph_passes.io.external_data import (
    export_any_size,
    external_data_files,
    external_data_path,
    save_with_external_data,
)
from vsfix.graph_passes.io.model_file import import_graph, read_model


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def content(model: onnx.ModelProto) -> bytes:
    """The bytes of a model; a tensor that was read from another file says that it no longer is, which the original doesn't."""
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
    return model.SerializeToString()


def test_large_weights_go_to_the_other_file_and_come_back_bit_equal(residual, tmp_path, monkeypatch):
    monkeypatch.setattr(external_data, "INLINE_BELOW", 25)
    before = residual.SerializeToString()
    save_with_external_data(residual, tmp_path / "m.onnx")
    assert residual.SerializeToString() == before
    alone = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    names = {t.name for t in alone.graph.initializer if onnx.external_data_helper.uses_external_data(t)}
    assert names == {"conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"}
    assert content(read_model(tmp_path / "m.onnx")) == before


def test_every_field_of_the_model_survives(residual, tmp_path):
    onnx.helper.set_model_props(residual, {"a": "1"})
    residual.producer_name, residual.model_version, residual.graph.doc_string = "p", 7, "d"
    save_with_external_data(residual, tmp_path / "m.onnx")
    assert content(onnx.load(tmp_path / "m.onnx")) == residual.SerializeToString()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "uint8", "bfloat16"])
def test_every_type_comes_back_from_either_field(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(external_data, "INLINE_BELOW", 0)
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) if dtype != "bfloat16" else onnx.TensorProto.BFLOAT16
    values = list(range(6))
    typed = onnx.helper.make_tensor("typed", code, [2, 3], values)
    raw = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(typed), "raw")
    outputs = [onnx.helper.make_tensor_value_info(name, code, [2, 3]) for name in ("typed", "raw")]
    graph = onnx.helper.make_graph([], "g", [], outputs, [typed, raw])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    save_with_external_data(model, tmp_path / "m.onnx")
    for array in stored(onnx.load(tmp_path / "m.onnx")).values():
        np.testing.assert_array_equal(array.astype(np.float64), np.arange(6.0).reshape(2, 3))


def test_a_graph_past_the_limit_is_exported_with_the_same_bytes(residual, monkeypatch):
    graph = import_graph(residual).copy()  # a copy states the type in which each constant is to be exported
    find_batch_norms(graph)[0].with_statistics(np.zeros(6), np.ones(6))
    plain = export_any_size(graph)
    monkeypatch.setattr(external_data, "MAX_SINGLE_FILE_WEIGHTS", 100)
    monkeypatch.setattr(external_data, "INLINE_BELOW", 16)
    for _ in range(2):  # the graph has its weights again
        assert export_any_size(graph).SerializeToString(deterministic=True) == plain.SerializeToString(
            deterministic=True
        )


@pytest.mark.parametrize("inline_below", [16, 10**9])
def test_the_model_is_the_one_that_onnx_graphsurgeon_writes(residual, monkeypatch, inline_below):
    monkeypatch.setattr(external_data, "INLINE_BELOW", inline_below)
    graph = import_graph(residual)
    find_batch_norms(graph)[0].with_statistics(np.zeros(6), np.ones(6))
    graph.doc_string, graph.producer_name = "said", "somebody"
    graph.nodes[0].outputs[0].shape = ("N", 4, 8, 8)
    assert export_any_size(graph) == gs.export_onnx(graph, do_type_check=False)


def test_an_export_does_not_change_the_graph(residual):
    graph = import_graph(residual)
    before = {name: tensor._values for name, tensor in graph.tensors().items() if isinstance(tensor, gs.Constant)}
    export_any_size(graph)
    assert all(graph.tensors()[name]._values is values for name, values in before.items())


def test_onnx_runtime_reads_the_pair(residual, images, tmp_path, open_model):
    save_with_external_data(residual, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": images})
    np.testing.assert_allclose(found, open_model(residual).run({"x": images})["y"], rtol=0, atol=1e-6)


def test_the_files_of_a_model_are_named_also_inside_nodes(tmp_path):
    constant = onnx.numpy_helper.from_array(np.arange(8, dtype=np.float32), "value")
    node = onnx.helper.make_node("Constant", [], ["y"], value=constant)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [8])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [output]))
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0, convert_attribute=True
    )
    assert external_data_files(tmp_path / "m.onnx") == (tmp_path / "w",)
    assert external_data_files(tmp_path / "w") == ()
    assert external_data_files(tmp_path / "missing") == ()
    assert external_data_path(tmp_path / "a.onnx") == tmp_path / "a.onnx.data"
