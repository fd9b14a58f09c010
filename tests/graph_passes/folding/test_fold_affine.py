"""A scale and a shift of each channel that are no BatchNorm: folded into the upstream layer."""

from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.folding.fold_affine import FoldAffine
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph

C = 5


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(0.5, 2, shape).astype(np.float32)


def folded(model):
    """The graph with its scales and shifts folded, as a model, and the result of the pass."""
    graph = import_graph(model)
    result = FoldAffine(FoldBatchNorm())(graph)
    return export_model(graph, model), result


def image(parse, tail: str, out=f"float[N, {C}, H, W] y"):
    weights = {"w": values(C, 3, 3, 3), "b": values(C), "s": values(1, C, 1, 1), "t": values(C, 1, 1), "k": values(1)}
    weights |= {"map": values(1, C, 4, 4), "wide": values(1, 1, 1, 4)}
    body = f"(float[N, 3, 6, 6] x) => ({out}) {{ c = Conv (x, w, b)\n {tail} }}"
    return parse(body, {name: value for name, value in weights.items() if name in body})


FOLDED = {
    "frozen BatchNorm": "m = Mul (c, s)\n y = Add (m, t)",
    "operands the other way round": "m = Mul (s, c)\n y = Add (t, m)",
    "variance merged into the scale": "m = Sub (c, t)\n p = Mul (m, s)\n y = Add (p, t)",
    "division": "m = Sub (c, t)\n y = Div (m, s)",
    "a scale alone": "y = Mul (c, s)",
    "two of them": "m = Mul (c, s)\n p = Add (m, t)\n q = Mul (p, k)\n y = Sub (q, t)",
}


@pytest.mark.parametrize("case", FOLDED)
def test_it_becomes_part_of_the_convolution(parse, open_model, case):
    model = image(parse, FOLDED[case])
    after, result = folded(model)
    assert [node.op_type for node in after.graph.node] == ["Conv"]
    assert result.modified
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
    expected, found = (open_model(each).run({"x": x})["y"] for each in (model, after))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


STAYS = {
    "read twice": "m = Mul (c, s)\n p = Add (m, t)\n y = Add (p, c)",
    "one value for each position": "m = Mul (c, map)\n y = Add (m, t)",
    "another axis than the channels": "m = Mul (c, wide)\n y = Add (m, t)",
    "a non-linearity in between": "r = Relu (c)\n m = Mul (r, s)\n y = Add (m, t)",
    "shifts alone": "y = Add (c, t)",
}


@pytest.mark.parametrize("case", STAYS)
def test_what_can_not_be_folded_stays_to_the_byte(parse, case):
    model = image(parse, STAYS[case])
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    result = FoldAffine(FoldBatchNorm())(graph)
    assert not result.modified
    assert export_model(graph, model).SerializeToString() == before


def test_a_constant_with_more_axes_than_the_data_stays(parse):
    body = f"(float[N, 3, 6, 6] x) => (float[O, N, {C}, 4, 4] y) {{ c = Conv (x, w)\n y = Mul (c, five) }}"
    graph = import_graph(parse(body, {"w": values(C, 3, 3, 3), "five": values(1, 1, C, 1, 1)}))
    assert not FoldAffine(FoldBatchNorm())(graph).modified


def test_what_folds_does_so_beside_what_does_not(parse, open_model):
    tail = """m = Mul (c, s)
        p = Add (m, t)
        r = Relu (p)
        q = Mul (r, s)
        y = Add (q, t)"""
    after, result = folded(image(parse, tail))
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Mul", "Add"]
    assert len(result.changed) == 1


def test_channels_last_between_transposes_are_folded_too(parse, open_model):
    """As Keras on torch writes them: the data is transposed after each convolution."""
    tail = "n = Transpose <perm = [0, 2, 3, 1]> (c)\n m = Sub (n, l)\n p = Mul (m, l)\n y = Add (p, l)"
    weights = {"w": values(C, 3, 3, 3), "b": values(C), "l": values(1, 1, 1, C)}
    body = f"(float[N, 3, 6, 6] x) => (float[N, H, W, {C}] y) {{ c = Conv (x, w, b)\n {tail} }}"
    model = parse(body, weights)
    after, _ = folded(model)
    assert not {"Mul", "Sub", "Add", "BatchNormalization"} & {node.op_type for node in after.graph.node}
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
    expected, found = (open_model(each).run({"x": x})["y"] for each in (model, after))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
