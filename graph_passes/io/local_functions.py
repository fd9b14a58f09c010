"""Local functions, inlined where they are called, unless that would make far too much of a small file.

Functions of two calls each, one calling the next, stand for twice as many nodes with each function:

    bytes of a function = those of its message + the bytes of every function that it calls, once for each call
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import onnx
import onnx.inliner

from vsfix.graph_passes.errors import ModelError

_LARGE = 1 << 24  # bytes that inlined functions may come to whatever the size of the file
_MOST_GROWTH = 100
_Key = tuple[str, str, str]


def require_inlinable(model: onnx.ModelProto) -> None:
    """Refuses functions that call each other in a circle, or that come to over 100 times the model when inlined.

    Raises:
        ModelError: one of the two; the message names the circle.
    """
    functions = _functions(model)
    calls = {key: _calls(function.node, functions) for key, function in functions.items()}
    sizes: dict[_Key, int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            sizes[key] = functions[key].ByteSize() + _size(calls[key], sizes)
    except CycleError as error:
        circle = " -> ".join(f"{domain}::{name}" for domain, name, _ in reversed(error.args[1]))
        raise ModelError(f"its local functions call themselves without end: {circle}") from None
    if not sizes:
        return
    inlined = _size(_calls(model.graph.node, functions), sizes)
    if inlined > _LARGE and inlined > _MOST_GROWTH * model.ByteSize():
        raise ModelError(f"its local functions would unfold to over {_MOST_GROWTH} times its size")


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without local functions; their nodes stand where they were called.

    Raises:
        RuntimeError, ValueError: of onnx's inliner.
    """
    functions = _functions(model)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        _give_defaults(nodes, functions)
    return onnx.inliner.inline_local_functions(model)


def _functions(model: onnx.ModelProto) -> dict[_Key, onnx.FunctionProto]:
    return {(function.domain, function.name, function.overload): function for function in model.functions}


def _size(calls: Mapping[_Key, int], sizes: Mapping[_Key, int]) -> int:
    """The bytes of the functions that some calls inline."""
    return sum(count * sizes[key] for key, count in calls.items())


def _calls(nodes: Iterable[onnx.NodeProto], functions: Mapping[_Key, onnx.FunctionProto]) -> Counter[_Key]:
    """The number of calls of each function by nodes, those of subgraphs included."""
    keys = ((node.domain, node.op_type, node.overload) for node in nodes_with_subgraphs(nodes))
    return Counter(key for key in keys if key in functions)


def nodes_with_subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for subgraph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from nodes_with_subgraphs(subgraph.node)


def _give_defaults(nodes: Iterable[onnx.NodeProto], functions: Mapping[_Key, onnx.FunctionProto]) -> None:
    """Gives each call of a local function the attributes that it leaves to the function; the inliner forgets them."""
    for node in nodes_with_subgraphs(nodes):
        function = functions.get((node.domain, node.op_type, node.overload))
        given = {attribute.name for attribute in node.attribute}
        if function is not None:
            node.attribute.extend(default for default in function.attribute_proto if default.name not in given)
