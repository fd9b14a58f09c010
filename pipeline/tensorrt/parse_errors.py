"""The refusals of TensorRT's parser and builder as one line: the node, the operator, the reason, and the remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

_OPTIMIZE = "`vsfix optimize {model} -o OUT.onnx` {does}"
_TRAINING = frozenset({"BatchNormalization", "Dropout", "Bernoulli", "RandomUniformLike", "RandomNormalLike"})
_CURES = {
    "BatchNormalization": "writes it in inference form",
    "Dropout": "removes it",
    "Bernoulli": "removes the noise of training",
    "RandomUniformLike": "removes the noise of training",
    "RandomNormalLike": "removes the noise of training",
}
_NOT_CONSTANT = re.compile(r"build-time constant|is_weights\(\)|(as|be) an initializer", re.IGNORECASE)
_UNINFORMATIVE = ("", "false", "0")
_BUILD_ERROR = re.compile(r"^.*?Error Code \d+: [\w ]+ \((?P<body>.*)\)$")
_SOURCE = re.compile(r" In [^\s()]+(?:\(\))? at \S+?\.(?:cpp|cu|h):\d+|\[[\w/]+\.(?:cpp|cu|h):\d+: \w+\] ?")
_LAYER = re.compile(r"^I(?P<kind>\w+)Layer (?P<name>[^:]+): (?:(?P=name): )?(?P<reason>.*)$")
_LARGER_WORKSPACE = "give a larger --workspace, or none"
_BUILD_REMEDIES = (
    (re.compile(r"workspace", re.IGNORECASE), _LARGER_WORKSPACE),
    (re.compile(r"find any implementation"), f"{_LARGER_WORKSPACE}, or take another precision"),
    (
        re.compile(r"dimension|shape|broadcast|out of bounds|profile", re.IGNORECASE),
        "give shapes that the network takes (--shapes, --min-shapes, --max-shapes)",
    ),
)


@dataclass(frozen=True)
class ParseError:
    """One error of the parser.

    Attributes:
        text: what it says.
        node: the index of the node in the file; -1 where it is about none.
        name: of the node; empty where it has none, or where TensorRT (8.6) does not say.
        operator: of the node; empty as the name.
    """

    text: str
    node: int = -1
    name: str = ""
    operator: str = ""


def describe_parse_errors(path: Path, errors: Sequence[ParseError], model: onnx.ModelProto) -> str:
    """One line for all of them, led by the first.

    Args:
        path: the file, for the advice.
        errors: at least one.
        model: the graph that was parsed, for the names of its nodes.
    """
    first = _first(errors)
    remedy = _remedy(path, first, _identify(first, model.graph)[0])
    return f"{path}: TensorRT can't parse it: {describe_refusal(errors, model)}; {remedy}"


def describe_refusal(errors: Sequence[ParseError], model: onnx.ModelProto) -> str:
    """The parser's reason for the first node that it refuses, and how many more there are.

    Args:
        errors: at least one.
        model: the graph that was parsed, for the names of its nodes.
    """
    first = _first(errors)
    operator, name = _identify(first, model.graph)
    nodes = {(error.node, error.name, error.operator) for error in errors if error.node >= 0 or error.operator}
    more = f" ({len(nodes) - 1} more nodes like it)" if len(nodes) > 1 else ""
    return (f"{operator} '{name}'{more}: " if operator else "") + _reason(first.text, operator)


def describe_build_failure(error: str) -> str:
    """The builder's reason, and the remedy.

    Args:
        error: the first in its log; empty where there is none.
    """
    message = " ".join(error.split())
    found = _BUILD_ERROR.match(message)
    message = _SOURCE.sub("", found["body"] if found else message).replace(".;", ";").strip(" .;")
    layer = _LAYER.match(message)
    reason = f"{layer['kind']} '{layer['name']}': {layer['reason']}" if layer else message
    remedy = next((remedy for pattern, remedy in _BUILD_REMEDIES if pattern.search(message)), "")
    return f"{reason or 'it does not say why'}; {remedy or '-vv shows all that it says'}"


def _first(errors: Sequence[ParseError]) -> ParseError:
    """The first error that is about a node, where one is."""
    return next((error for error in errors if error.node >= 0 or error.operator), errors[0])


def _identify(error: ParseError, graph: onnx.GraphProto) -> tuple[str, str]:
    """The operator and the name of the node; the name of its output where it has none."""
    if 0 <= error.node < len(graph.node):
        node = graph.node[error.node]
        if not error.operator or error.operator == node.op_type:
            return node.op_type, node.name or next(iter(node.output), "")
    return error.operator, error.name


def _reason(text: str, operator: str) -> str:
    """The parser's reason without its assertion and its white space."""
    message = re.sub(r"^Assertion failed:\s*", "", " ".join(text.split()))
    quoted = re.search(r'&&\s*"(.+?)"$', message)
    if quoted is not None:
        message = quoted[1]
    head, colon, tail = message.partition(": ")
    if colon and re.search(r"[(\[!=<>&]", head):  # the condition in C++ before the sentence
        message = tail
    if message in _UNINFORMATIVE:
        return f"there is no {operator} in TensorRT" if operator else "it does not say why"
    return message.rstrip(".!")


def _remedy(path: Path, error: ParseError, operator: str) -> str:
    """The remedy."""
    if operator in _TRAINING:
        return _OPTIMIZE.format(model=path, does=_CURES[operator])
    if _NOT_CONSTANT.search(error.text):
        return _OPTIMIZE.format(model=path, does="computes what is constant; if it is an input, make it a constant")
    if operator:
        return "replace the operator before the export, or leave it out"
    return "check the file with `vsfix inspect`"
