from __future__ import annotations

from pathlib import Path

import onnx.parser
import pytest

from vsfix.pipeline.tensorrt.parse_errors import ParseError, describe_build_failure, describe_parse_errors

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


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (IConvolutionLayer conv_1: conv_1: output "
            "cannot be negative (axis 2 is -2) In processCheck at /_src/optimizer/graph.cpp:1066 In a at /_src/b.cpp:5)",
            "Convolution 'conv_1': output cannot be negative (axis 2 is -2); -vv shows all that it says",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (IElementWiseLayer /a/Add: broadcast "
            "dimensions must be conformable In operator() at /_src/optimizer/shape.cpp:2699)",
            "ElementWise '/a/Add': broadcast dimensions must be conformable; give shapes that the network takes "
            "(--shapes, --min-shapes, --max-shapes)",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1676: enumerate_tactics] Tactic "
            "Selection: no tactics within workspace limit.; [tactic.cpp:264: run] Error during tactic selection. In "
            "compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)",
            "Tactic Selection: no tactics within workspace limit; Error during tactic selection; give a larger "
            "--workspace, or none",
        ),
        (
            "10: [optimizer.cpp::computeCosts::3873] Error Code 10: Internal Error (Could not find any implementation "
            "for node {ForeignNode[a...b]}.)",
            "Could not find any implementation for node {ForeignNode[a...b]}; give a larger --workspace, or none, or "
            "take another precision",
        ),
        ("something else\nin two lines", "something else in two lines; -vv shows all that it says"),
        ("", "it does not say why; -vv shows all that it says"),
    ],
)
def test_the_reason_of_the_builder_is_told_without_its_sources(said, words):
    assert describe_build_failure(said) == words
