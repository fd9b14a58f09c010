from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.parser
import onnx.shape_inference
import pytest

from vsfix.graph_passes.errors import InputError, ModelError, OutputExistsError
from vsfix.graph_passes.io import external_data
from vsfix.graph_passes.io.model_file import (
    check_without_weights,
    export_model,
    import_graph,
    read_metadata,
    read_model,
    write_model,
)


def test_a_model_survives_the_round_trip(residual, tmp_path, images, open_model):
    onnx.helper.set_model_props(residual, {"a": "1"})
    residual.doc_string = "said"
    write_model(residual, tmp_path / "m.onnx", force=False)
    back = read_model(tmp_path / "m.onnx")
    again = export_model(import_graph(back), back, {"b": "2"})
    assert read_metadata(again) == {"a": "1", "b": "2"}
    assert again.doc_string == "said"
    assert again.ir_version == residual.ir_version
    np.testing.assert_array_equal(
        open_model(again).run({"x": images})["y"], open_model(residual).run({"x": images})["y"]
    )


@pytest.mark.parametrize(
    "word",
    [
        lambda model: setattr(model.graph.node[0], "name", "QQQQ"),
        lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "QQQQ"),
        lambda model: onnx.helper.set_model_props(model, {"a": "QQQQ"}),
        lambda model: model.graph.node[0].input.append("QQQQ"),
    ],
)
def test_a_text_that_is_not_utf_8_is_one_clear_error(residual, tmp_path, word):
    word(residual)
    (tmp_path / "m.onnx").write_bytes(residual.SerializeToString().replace(b"QQQQ", b"Q\xff\xfeQ"))
    with pytest.raises(ModelError, match=r"m\.onnx: holds a text that is not UTF-8.*Q\\xff\\xfeQ"):
        read_model(tmp_path / "m.onnx")


def test_a_missing_file_an_empty_one_and_noise_are_errors(tmp_path):
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(4096))
    (tmp_path / "text.onnx").write_text("this is not a model\n" * 50)
    for name in ("missing.onnx", "empty.onnx", "noise.onnx", "text.onnx"):
        with pytest.raises(ModelError, match=name) as caught:
            read_model(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_truncated_file_is_an_error(residual, tmp_path):
    data = residual.SerializeToString()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ModelError):
            read_model(tmp_path / "cut.onnx")


def test_an_invalid_graph_is_refused_by_the_checker(residual, tmp_path):
    residual.graph.node[3].input[0] = "nowhere"
    onnx.save(residual, tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match="checker"):
        read_model(tmp_path / "bad.onnx")


def test_a_name_that_onnx_can_t_take_is_refused(residual, tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.onnx"))
    path.write_bytes(residual.SerializeToString())
    with pytest.raises(ModelError, match=r"udcff\.onnx': its name is not UTF-8"):
        read_model(path)


def test_what_the_checker_refuses_is_not_written(residual, tmp_path):
    residual.graph.node[3].input[0] = "nowhere"
    with pytest.raises(ModelError):
        write_model(residual, tmp_path / "out.onnx", force=False)
    assert list(tmp_path.iterdir()) == []


def _weight(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == "conv2.weight")


FAULTS = {
    "a name that nothing writes": lambda model: model.graph.node[3].input.__setitem__(0, "nowhere"),
    "a weight of other sides": lambda model: _weight(model).dims.__setitem__(slice(0, 2), [4, 9]),
    "a weight of another type": lambda model: setattr(_weight(model), "data_type", onnx.TensorProto.INT32),
    "a weight twice": lambda model: model.graph.initializer.append(_weight(model)),
    "an attribute that is not there": lambda model: model.graph.node[0].attribute.add(name="no", i=1, type=2),
    "an operator that is not there": lambda model: setattr(model.graph.node[3], "op_type", "Nothing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_without_the_weights_the_checker_refuses_what_it_refuses_with_them(residual, fault):
    assert len(_weight(residual).raw_data) >= external_data.INLINE_BELOW
    before = residual.SerializeToString(deterministic=True)
    check_without_weights(residual, Path("m.onnx"))
    assert residual.SerializeToString(deterministic=True) == before
    FAULTS[fault](residual)
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        onnx.checker.check_model(residual, full_check=True)
    with pytest.raises(ModelError, match=r"m\.onnx: the ONNX checker refuses it"):
        check_without_weights(residual, Path("m.onnx"))


def test_an_existing_output_needs_force(residual, tmp_path):
    write_model(residual, tmp_path / "m.onnx", force=False)
    with pytest.raises(OutputExistsError):
        write_model(residual, tmp_path / "m.onnx", force=False)
    write_model(residual, tmp_path / "m.onnx", force=True)


def test_local_functions_are_inlined(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18, "local" : 1]>\n'
        "main (float[N, 3] x) => (float[N, 3] y) { y = local.twice (x) }\n"
        '<domain: "local", opset_import: ["" : 18]>\n'
        "twice (a) => (b) { b = Add (a, a) }"
    )
    onnx.save(model, tmp_path / "f.onnx")
    assert [node.op_type for node in read_model(tmp_path / "f.onnx").graph.node] == ["Add"]


def content(model: onnx.ModelProto) -> bytes:
    """The bytes of a model; a tensor that was read from another file says that it no longer is, which the original doesn't."""
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
    return model.SerializeToString()


@pytest.fixture
def tiny_limit(monkeypatch):
    """Every model with weights is past the limit of a single file."""
    monkeypatch.setattr(external_data, "MAX_SINGLE_FILE_WEIGHTS", 100)
    monkeypatch.setattr(external_data, "INLINE_BELOW", 16)


def test_a_model_past_the_limit_is_written_as_a_pair(residual, tmp_path, tiny_limit):
    write_model(residual, tmp_path / "m.onnx", force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert content(read_model(tmp_path / "m.onnx")) == residual.SerializeToString()


def test_force_replaces_the_pair_and_nothing_less(residual, tmp_path, tiny_limit):
    write_model(residual, tmp_path / "m.onnx", force=False)
    residual.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.ones((6, 3, 3, 3), np.float32), residual.graph.initializer[0].name)
    )
    with pytest.raises(OutputExistsError):
        write_model(residual, tmp_path / "m.onnx", force=False)
    write_model(residual, tmp_path / "m.onnx", force=True)
    assert content(read_model(tmp_path / "m.onnx")) == residual.SerializeToString()
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_that_belong_to_another_model_are_never_replaced(residual, tmp_path, tiny_limit):
    (tmp_path / "m.onnx.data").write_bytes(b"precious")
    for force in (False, True):
        with pytest.raises(InputError, match=r"m\.onnx\.data"):
            write_model(residual, tmp_path / "m.onnx", force=force)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


def test_the_weights_of_the_input_are_never_replaced(residual, tmp_path, tiny_limit):
    write_model(residual, tmp_path / "in.onnx", force=False)
    onnx.save(onnx.load(tmp_path / "in.onnx", load_external_data=False), tmp_path / "copy.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for inputs, output in (("copy", "in.onnx"), ("in", "in.onnx"), ("in", "in.onnx.data")):
        with pytest.raises(InputError, match="never written"):
            write_model(residual, tmp_path / output, force=True, inputs=[tmp_path / f"{inputs}.onnx"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_the_checker_refuses_leaves_the_old_pair(residual, tmp_path, tiny_limit):
    write_model(residual, tmp_path / "m.onnx", force=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    residual.graph.node[3].input[0] = "nowhere"
    with pytest.raises(ModelError, match="checker"):
        write_model(residual, tmp_path / "m.onnx", force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_missing_or_short_weights_are_an_error_of_one_line(residual, tmp_path, tiny_limit):
    write_model(residual, tmp_path / "m.onnx", force=False)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"m\.onnx") as short:
        read_model(tmp_path / "m.onnx")
    data.unlink()
    with pytest.raises(ModelError, match=r"m\.onnx") as missing:
        read_model(tmp_path / "m.onnx")
    assert "\n" not in str(short.value) + str(missing.value)


def test_local_functions_are_inlined_with_external_weights(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18, "local" : 1]>\n'
        "main (float[N, 300] x) => (float[N, 300] y) { y = local.twice (x, w) }\n"
        '<domain: "local", opset_import: ["" : 18]>\n'
        "twice (a, c) => (b) { b = Add (a, c) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(300, dtype=np.float32), "w"))
    onnx.save(model, tmp_path / "f.onnx", save_as_external_data=True, location="f.data", size_threshold=0)
    read = read_model(tmp_path / "f.onnx")
    assert [node.op_type for node in read.graph.node] == ["Add"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(read.graph.initializer[0]), np.arange(300))


def test_a_function_that_is_called_with_too_many_inputs_is_one_clear_error(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "own" : 1]>\n'
        "main (float[N] x) => (float[N] y) { y = own.f (x, x) }\n"
        '<domain: "own", opset_import: ["" : 18]>\nf (a) => (b) { b = Relu (a) }'
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        ModelError, match=r"m\.onnx: (its local functions can't be inlined|the ONNX checker refuses it)"
    ):
        read_model(tmp_path / "m.onnx")


def test_an_attribute_that_refers_to_a_function_outside_of_one_is_refused(parse, tmp_path):
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = Cast <to: int = 1> (x) }", {})
    model.graph.node[0].attribute[0].ref_attr_name = "kind"
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="Cast 'y': its attribute 'to' refers to one of a function"):
        read_model(tmp_path / "net.onnx")


def node(text: str, name: str) -> onnx.NodeProto:
    made = onnx.parser.parse_node(text)
    made.name = name
    return made


GRAPHS = {
    "cycle": ((node("a = Add(x, y)", "first"), node("y = Relu(a)", "second")), "input 'y' of node: name: first"),
    "dangling": ((node("y = Add(x, nowhere)", "first"),), "input 'nowhere' of node: name: first"),
    "written twice": (
        (node("y = Relu(x)", "first"), node("y = Abs(x)", "second")),
        "'y' has been used as output names",
    ),
    "unknown operator": ((node("y = Bogus(x)", "first"),), "Bogus"),
    "wrong type": ((node("y = Not(x)", "first"),), "node name: first"),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_that_can_t_be_run_is_refused_by_node_or_tensor(kind, tmp_path, parse):
    nodes, said = GRAPHS[kind]
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }", {})
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=said) as caught:
        read_model(tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)


def test_a_function_that_calls_itself_is_refused_by_name(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
main (float[N, 3] x) => (float[N, 3] y) { y = own.f (x) }
<domain: "own", opset_import: ["" : 18, "own" : 1]>
f (a) => (b) { b = own.f (a) }"""
    (tmp_path / "net.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    with pytest.raises(ModelError, match="own::f -> own::f"):
        read_model(tmp_path / "net.onnx")


def test_what_a_call_leaves_to_its_function_is_the_functions_default(tmp_path, open_model):
    text = """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
main (float[N, 3] x, bool c) => (float[N, 3] y) {
    a = own.outer (x)
    y = If (c) <then_branch = g () => (float[N, 3] t) { t = own.leaky (a) },
                else_branch = h () => (float[N, 3] e) { e = own.leaky <slope: float = 0.25> (a) }>
}
<domain: "own", opset_import: ["" : 18]>
leaky <slope: float = 0.5> (a) => (b) { b = LeakyRelu <alpha: float = @slope> (a) }
<domain: "own", opset_import: ["" : 18, "own" : 1]>
outer (a) => (b) { b = own.leaky (a) }"""
    model = onnx.parser.parse_model(text)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    x = np.float32([[-1, 2, -3]])
    read = open_model(read_model(tmp_path / "net.onnx"))
    np.testing.assert_array_equal(read.run({"x": x, "c": np.array(True)})["y"], [[-0.25, 2, -0.75]])
    np.testing.assert_array_equal(read.run({"x": x, "c": np.array(False)})["y"], [[-0.125, 2, -0.375]])


def test_a_side_of_minus_one_is_a_free_one(parse, tmp_path):
    model = parse("(float[2, 3] x) => (float[N, 3] y) { y = Relu (x) }", {})
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, tmp_path / "m.onnx")
    sides = read_model(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [side.HasField("dim_value") for side in sides] == [False, True]


def test_a_pipe_is_not_waited_for_and_what_no_protobuf_can_hold_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "sparse.onnx").touch()
    os.truncate(tmp_path / "sparse.onnx", 1 << 40)
    for name, said in (("pipe.onnx", "is a pipe"), ("sparse.onnx", "no file of this kind is larger than 2048 MiB")):
        with pytest.raises(ModelError, match=f"{name}: .*{said}"):
            read_model(tmp_path / name)
        assert external_data.external_data_files(tmp_path / name) == ()
