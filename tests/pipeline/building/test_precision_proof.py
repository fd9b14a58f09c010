"""A precision that is asked for and not got is an error, and one that is unknown is said to be so."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vsfix.graph_passes.errors import BuildError, InputError, MissingComponentError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.pipeline.building.precision_proof import prove_precision, require_float8_targets, require_quantized_layers
from vsfix.pipeline.tensorrt.engine_layers import ParsedLayer

PATH = Path("m.onnx")
FLOAT8 = [ParsedLayer("q", "q", "QUANTIZE", ("FP8",), dict)]


def test_a_file_that_is_quantised_in_part_is_named_with_its_first_float_layer(parse, caplog):
    body = """(float[N, 4] x) => (float[N, 4] y) {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        k = DequantizeLinear (w, s, z)
        h = MatMul (d, k)
        y = MatMul (h, plain)
    }"""
    weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "plain": np.eye(4, dtype=np.float32)}
    graph = import_graph(parse(body, weights | {"w": np.eye(4, dtype=np.int8)}))
    with caplog.at_level(logging.WARNING):
        require_quantized_layers(PATH, graph, None)
        assert caplog.messages == []
        require_quantized_layers(PATH, graph, "int8")
    assert caplog.messages == ["1 of 2 layers with a weight compute in float, 'y' the first"]


def test_a_gpu_without_float8_is_refused_for_float8_alone():
    require_float8_targets(PATH, FLOAT8, ["sm89", "sm120", "current"])
    require_float8_targets(PATH, [], ["sm80"])
    with pytest.raises(InputError, match="which sm80, sm86 does not compute in"):
        require_float8_targets(PATH, FLOAT8, ["sm80", "sm86", "sm89"])


@pytest.mark.parametrize(
    ("capabilities", "error", "raises"),
    [((), BuildError("no"), True), ((), MissingComponentError("no"), False), (("sm89",), BuildError("no"), False)],
)
def test_an_engine_for_this_gpu_that_does_not_load_is_an_error_and_one_for_another_is_not(capabilities, error, raises):
    def load(plan):
        raise error

    library = SimpleNamespace(capabilities=capabilities, is_strongly_typed=True, load=load)
    parsed = SimpleNamespace(layers=FLOAT8)
    if raises:
        with pytest.raises(BuildError, match="no"):
            prove_precision(library, parsed, b"", "fp8", {})
        return
    proof = prove_precision(library, parsed, b"", "fp8", {})
    assert (proof.source, proof.reason, proof.engine) == ("parsed network", "no", None)
    assert proof.network == {"QUANTIZE": {"FP8": 1}}
