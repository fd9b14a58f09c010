"""The writer of protobuf's text format, read back by protobuf itself."""

from __future__ import annotations

import pytest
from google.protobuf import struct_pb2, text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from onnx import NodeProto, TensorProto

from vsfix.pipeline.serving.text_format import Word
from vsfix.pipeline.serving.text_format import text_format as write


@pytest.mark.parametrize(
    "text", ["", "plain", 'a "quoted" \\ name', "two\nlines\tand\r", "é ü 猫", "\x00\x01\x7f9", "'"]
)
def test_every_text_comes_back(text):
    assert text_format.Parse(write([("name", text)]), FileDescriptorProto()).name == text


def test_messages_numbers_words_and_truth_values_come_back():
    message = [("name", "f"), ("label", Word("LABEL_REPEATED")), ("number", -3), ("proto3_optional", True)]
    found = text_format.Parse(write([("name", "x"), ("extension", message)]), FileDescriptorProto())
    (field,) = found.extension
    assert (field.name, field.number, field.proto3_optional) == ("f", -3, True)
    assert field.label == FieldDescriptorProto.LABEL_REPEATED


def test_a_list_of_numbers_stands_in_one_line_and_an_empty_message_stays():
    text = write([("dims", (2, -1)), ("segment", [])])
    assert text.splitlines()[0] == "dims: [2, -1]"
    found = text_format.Parse(text, TensorProto())
    assert list(found.dims) == [2, -1]
    assert found.HasField("segment")


def test_names_that_come_again_are_repeated():
    text = write([("input", "a"), ("input", "b"), ("attribute", [("name", "p")]), ("attribute", [("name", "q")])])
    found = text_format.Parse(text, NodeProto())
    assert (list(found.input), [attribute.name for attribute in found.attribute]) == (["a", "b"], ["p", "q"])


def test_a_map_is_its_entries():
    text = write([("fields", [("key", "k"), ("value", [("bool_value", False)])])])
    assert dict(text_format.Parse(text, struct_pb2.Struct()).items()) == {"k": False}
