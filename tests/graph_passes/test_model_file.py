from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import pytest

from vsfix.graph_passes.errors import ModelError, OutputExistsError
from vsfix.graph_passes.model_file import export_model, import_graph, read_metadata, read_model, write_model


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


def test_what_the_checker_refuses_is_not_written(residual, tmp_path):
    residual.graph.node[3].input[0] = "nowhere"
    with pytest.raises(ModelError):
        write_model(residual, tmp_path / "out.onnx", force=False)
    assert list(tmp_path.iterdir()) == []


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
