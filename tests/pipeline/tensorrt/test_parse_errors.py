from __future__ import annotations

from pathlib import Path

import onnx.parser
import pytest

from vsfix.pipeline.tensorrt.parse_errors import ParseError, describe_parse_errors

MODEL = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 18]>\nmain (float[N] x) => (float[N] y) { a = Relu (x) [drop] b = Dropout (a) y = Det (b) }'
)


def describe(*errors: ParseError) -> str:
    return describe_parse_errors(Path("m.onnx"), errors, MODEL)


def test_the_node_is_named_by_its_index_where_the_version_knows_no_more():
    assert "Dropout 'drop': " in describe(ParseError("false", 1))


def test_a_node_without_a_name_is_named_by_its_output():
    assert "Det 'y': there is no Det in TensorRT; replace the operator" in describe(ParseError("false", 2, "", "Det"))


def test_a_node_inside_a_local_function_is_named_as_the_parser_names_it():
    assert "MyOp 'inner': bad" in describe(ParseError("bad", 1, "inner", "MyOp"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Assertion failed: inputs.at(2).is_weights(): only as an initializer!", "only as an initializer;"),
        ('!isTraining && "does not support training_mode == 1."', "does not support training_mode == 1;"),
        ("!mode[0]: TensorRT does not: never", ": TensorRT does not: never;"),
        ("Type: unsupported", ": Type: unsupported;"),
    ],
)
def test_the_condition_before_the_sentence_is_left_out(text, words):
    assert words in describe(ParseError(text, 1))


@pytest.mark.parametrize("operator", ["Dropout", "BatchNormalization", "Bernoulli"])
def test_what_training_left_is_cured_by_optimize(operator):
    assert "`vsfix optimize m.onnx -o OUT.onnx`" in describe(ParseError("false", -1, "n", operator))


def test_what_is_no_constant_is_cured_by_optimize():
    assert describe(ParseError("Axis must resolve to a build-time constant", 0)).count("optimize") == 1


def test_several_nodes_are_counted_once_each():
    errors = [ParseError("x", 2), ParseError("x", 2), ParseError("x", 1)]
    assert "Det 'y' (1 more nodes like it): x" in describe(*errors)


def test_an_error_about_no_node_is_told_as_it_is():
    assert (
        describe(ParseError("no memory"))
        == "m.onnx: TensorRT can't parse it: no memory; check the file with `vsfix inspect`"
    )
