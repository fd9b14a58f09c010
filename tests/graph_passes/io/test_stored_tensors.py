from __future__ import annotations

import os

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.external_data import external_data_files
from vsfix.graph_passes.io.model_file import read_model
from vsfix.graph_passes.io.stored_tensors import check_stored_tensors, tensors_of

ELEMENT_TYPES = [number for number in TensorProto.DataType.values() if number not in (TensorProto.UNDEFINED,)]


def model_with(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    """A model that adds its first weight, `w`, to its input."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\nmain (float[N, 4] x) => (float[N, 4] y) { y = Add (x, w) }'
    )
    model.graph.initializer.extend(tensors)
    return model


def weight() -> onnx.TensorProto:
    return numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")


def external(folder, **entries: str) -> onnx.TensorProto:
    """The weight, in the file `data` of a folder, of which the entries say where."""
    (folder / "data").write_bytes(weight().raw_data)
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "data"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("code", ELEMENT_TYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("raw", [True, False])
def test_what_onnx_itself_makes_is_taken(code, raw, tmp_path):
    if code == TensorProto.STRING:
        tensor = helper.make_tensor("w", code, [3], [b"a", b"b", b"c"])
    else:
        values = np.array([0, 1, 1]).astype(helper.tensor_dtype_to_np_dtype(code))
        tensor = numpy_helper.from_array(values, "w") if raw else helper.make_tensor("w", code, [3], values)
    check_stored_tensors(model_with(tensor), tmp_path)


@pytest.mark.parametrize("entries", [{}, {"offset": "0"}, {"length": "16"}, {"offset": "0", "length": "16"}])
def test_external_data_in_the_folder_is_taken(entries, tmp_path):
    model = model_with(external(tmp_path, **entries))
    onnx.save(model, tmp_path / "m.onnx")
    assert numpy_helper.to_array(read_model(tmp_path / "m.onnx").graph.initializer[0]).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.dims.append(-1), r"'w' of type FLOAT and shape \[4, -1\]: a side is negative"),
        (lambda tensor: tensor.dims.append(2**62), "holds 16 bytes where its shape wants"),
        (lambda tensor: setattr(tensor, "data_type", 99), "'w' of type 99 .* none that ONNX has"),
        (lambda tensor: setattr(tensor, "data_type", 0), "none that ONNX has"),
        (lambda tensor: setattr(tensor, "raw_data", tensor.raw_data[:-1]), "holds 15 bytes where its shape wants 16"),
        (lambda tensor: setattr(tensor, "data_type", TensorProto.INT4), "holds 16 bytes where its shape wants 2"),
        (lambda tensor: setattr(tensor, "data_type", TensorProto.STRING), "text as raw bytes"),
        (lambda tensor: tensor.ClearField("raw_data"), "holds 0 values where its shape wants 4"),
    ],
)
def test_a_weight_that_holds_other_values_than_it_claims_is_named(change, said, tmp_path):
    tensor = weight()
    change(tensor)
    (tmp_path / "m.onnx").write_bytes(model_with(tensor).SerializeToString())
    with pytest.raises(ModelError, match=f"^{tmp_path}/m.onnx: tensor .*{said}"):
        read_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"location": "../loot"}, "not below the model's folder"),
        ({"location": "a/../../loot"}, "not below the model's folder"),
        ({"location": "/etc/passwd"}, "not below the model's folder"),
        ({"location": "C:\\windows\\win.ini"}, "not below the model's folder"),
        ({"location": "..\\loot"}, "not below the model's folder"),
        ({"location": ""}, "not below the model's folder"),
        ({"location": "data\0"}, "not below the model's folder"),
        ({"location": "link"}, "a link out of the model's folder"),
        ({"location": "way/passwd"}, "a link out of the model's folder"),
        ({"location": "nothing"}, "no such file"),
        ({"location": "."}, "no such file"),
        ({"offset": "x"}, "is no number"),
        ({"length": "1e3"}, "is no number"),
        ({"offset": "-1"}, "would stand outside of 'data'"),
        ({"length": "-4"}, "would stand outside of 'data'"),
        ({"offset": "4", "length": "16"}, "would stand outside of 'data'"),
        ({"offset": str(2**70)}, "would stand outside of 'data'"),
        ({"length": "12"}, "'data' holds 12 bytes for it where its shape wants 16"),
        ({"offset": "4"}, "'data' holds 12 bytes for it where its shape wants 16"),
    ],
)
def test_external_data_that_lies_elsewhere_or_is_not_there_is_refused(entries, said, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "loot").write_bytes(weight().raw_data)
    (folder / "link").symlink_to(tmp_path / "loot")
    (folder / "way").symlink_to("/etc")
    (folder / "m.onnx").write_bytes(model_with(external(folder, **entries)).SerializeToString())
    with pytest.raises(ModelError, match=said):
        read_model(folder / "m.onnx")


@pytest.mark.parametrize(
    "entries", [{"offset": "x"}, {"location": "data\0"}, {"location": ""}, {"location": "../loot"}]
)
def test_the_files_of_a_damaged_output_that_is_to_be_replaced_are_listed_all_the_same(entries, tmp_path):
    onnx.save(model_with(external(tmp_path, **entries)), tmp_path / "m.onnx")
    assert all(isinstance(path.name, str) for path in external_data_files(tmp_path / "m.onnx"))


def test_tensors_in_attributes_subgraphs_and_functions_are_checked_too(tmp_path):
    names = []
    for depth in ("attribute", "body", "function"):
        constant = helper.make_node("Constant", [], ["c"], value=TensorProto(name=depth, data_type=1, dims=[7]))
        model = model_with(weight())
        if depth == "attribute":
            model.graph.node.append(constant)
        elif depth == "body":
            body = helper.make_graph([constant], "body", [], [])
            model.graph.node.append(helper.make_node("If", ["b"], ["o"], then_branch=body, else_branch=body))
        else:
            model.functions.append(helper.make_function("own", "f", [], ["c"], [constant], []))
        names.append({tensor.name for tensor in tensors_of(model)})
        with pytest.raises(ModelError, match=f"tensor '{depth}' .*holds 0 values where its shape wants 7"):
            check_stored_tensors(model, tmp_path)
    assert names == [{"w", "attribute"}, {"w", "body"}, {"w", "function"}]


@pytest.mark.parametrize("kind", ["long", "loop"])
def test_a_location_that_can_t_be_looked_at_is_refused(kind, tmp_path):
    location = "a" * 300 if kind == "long" else "loop"
    if kind == "loop":
        (tmp_path / "loop").symlink_to("loop")
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    model = onnx.ModelProto()
    model.graph.initializer.append(tensor)
    with pytest.raises(ModelError, match=r"can't be looked at|no such file|a link out"):
        check_stored_tensors(model, tmp_path)


def weights_from(folder, count: int, size: int) -> onnx.ModelProto:
    """A model with `count` weights of `size` bytes, all from the same position of one file."""
    (folder / "data").touch()
    os.truncate(folder / "data", size)
    tensors = [
        TensorProto(name=f"w{i}", data_type=TensorProto.UINT8, dims=[size], data_location=TensorProto.EXTERNAL)
        for i in range(count)
    ]
    for tensor in tensors:
        tensor.external_data.add(key="location", value="data")
    return model_with(*tensors)


def test_many_tensors_of_the_same_bytes_do_not_make_much_of_a_small_file(tmp_path):
    with pytest.raises(ModelError, match="take 2560 MiB from files of 64 MiB: over 32 times the same values"):
        check_stored_tensors(weights_from(tmp_path, 40, 64 << 20), tmp_path)


def test_tied_weights_may_stand_in_their_file_once(tmp_path):
    check_stored_tensors(weights_from(tmp_path, 4, 1 << 30), tmp_path)
    check_stored_tensors(weights_from(tmp_path, 1000, 1 << 20), tmp_path)
