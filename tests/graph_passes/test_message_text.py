from __future__ import annotations

import onnx
import onnx.helper
import pytest

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.message_text import unreadable_text
from vsfix.graph_passes.model_file import read_model


@pytest.mark.parametrize(
    ("place", "word"),
    [
        ("NodeProto.name", lambda model: setattr(model.graph.node[0], "name", "QQQQ")),
        ("NodeProto.domain", lambda model: setattr(model.graph.node[0], "domain", "QQQQ")),
        ("TensorProto.name", lambda model: setattr(model.graph.initializer[0], "name", "QQQQ")),
        ("ValueInfoProto.doc_string", lambda model: setattr(model.graph.input[0], "doc_string", "QQQQ")),
        ("StringStringEntryProto.value", lambda model: onnx.helper.set_model_props(model, {"a": "QQQQ"})),
        ("NodeProto.input", lambda model: model.graph.node[0].input.append("QQQQ")),
    ],
)
def test_a_text_that_is_not_utf_8_is_found_and_its_model_refused(residual, tmp_path, place, word):
    assert unreadable_text(residual) is None
    word(residual)
    text = b"Q\xff\xfeQ"
    broken = residual.SerializeToString().replace(b"QQQQ", text)
    assert unreadable_text(onnx.ModelProto.FromString(broken)) == f"{place} {text!r}"
    (tmp_path / "m.onnx").write_bytes(broken)
    with pytest.raises(ModelError, match=rf"^{tmp_path}/m\.onnx: holds a text that is not UTF-8.* {place}"):
        read_model(tmp_path / "m.onnx")
