"""Constant expressions of a file: the whole clean-up, held against ONNX Runtime and onnx's own evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from vsfix.graph_passes.cleaning.deployment import deployment_passes
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.fold_constants import FoldConstants
from vsfix.graph_passes.ir.graph_pass import PassPipeline
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.noise.marker import RemoveMarkers

RNG = np.random.default_rng(3)
X = RNG.normal(size=(2, 4, 8, 8)).astype(np.float32)
W = RNG.normal(size=(6, 4, 3, 3)).astype(np.float32)
NORM = {name: RNG.uniform(0.5, 2, 6).astype(np.float32) for name in ("g", "b", "m", "v")}
CONV = "h = Conv (x, w)\n y = BatchNormalization (h, g, b, m, v)"
BIASED = "h = Conv (x, W, q)\n y = BatchNormalization (h, g, b, m, v)"
CHOICE = """w = If (k) <then_branch = t () => (float[6, 4, 3, 3] p) { p = Identity (W) },
    else_branch = e () => (float[6, 4, 3, 3] n) { n = Neg (W) }>"""
WEIGHTS = {
    "a branch": (CHOICE, {"k": np.array(True)}),
    "the other branch": (CHOICE, {"k": np.array(False)}),
    "a branch, by a comparison": (f"k = Less (three, three)\n {CHOICE}", {"three": np.array(3)}),
    "a branch, by a side that is known": (
        f"s = Shape (x)\n one = Constant <value_ints: ints = [1]> ()\n c = Gather (s, one)\n k = Equal (c, four)\n {CHOICE}",
        {"four": np.array([4])},
    ),
    "g v / |v|": (
        "n = ReduceL2 <keepdims: int = 1> (W, axes)\n d = Div (W, n)\n w = Mul (d, gain)",
        {"axes": np.array([1, 2, 3]), "gain": RNG.normal(size=(6, 1, 1, 1)).astype(np.float32)},
    ),
    "v / (u^T v u)": (
        "f = Reshape (W, flat)\n r = MatMul (f, right)\n s = MatMul (left, r)\n w = Div (W, s)",
        {
            "flat": np.array([6, 36]),
            "right": RNG.normal(size=(36, 1)).astype(np.float32),
            "left": RNG.normal(size=(1, 6)).astype(np.float32),
        },
    ),
    "one value": ("w = ConstantOfShape <value: tensor = float[1] {0.5}> (s)", {"s": np.array([6, 4, 3, 3])}),
    "a frame of zeros": (
        "c = Slice (W, from, to, on)\n w = Pad (c, pads, zero, on)",
        {
            "from": np.array([1, 1]),
            "to": np.array([2, 2]),
            "on": np.array([2, 3]),
            "pads": np.array([1, 1, 1, 1]),
            "zero": np.array(0, np.float32),
        },
    ),
    "a triangle": ("w = Trilu (W)", {}),
    "a reversal": ("w = Gather <axis: int = 1> (W, turned)", {"turned": np.array([3, 2, 1, 0])}),
}
BIASES = {
    "zeros": ("q = ConstantOfShape (six)", {"six": np.array([6])}),
    "squeezed": ("q = Squeeze (row, zero)", {"row": RNG.normal(size=(1, 6)).astype(np.float32), "zero": np.array([0])}),
}


def cleaned(model: onnx.ModelProto, open_model) -> tuple[onnx.ModelProto, str]:
    """The deployed model, and why BatchNorms are left; both runtimes find what they find in the model as it came."""
    graph = import_graph(model)
    constants = PassPipeline([*deployment_passes(), FoldConstants()])
    constants(graph)
    fold = PassPipeline([RemoveMarkers(), RemoveIdentities(), FoldBatchNorm()])
    kept = fold(graph).skipped
    for again in (constants, fold):
        assert not again(graph).modified
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    expected = open_model(model).run({"x": X})
    reference = dict(zip(expected, ReferenceEvaluator(after).run(list(expected), {"x": X}), strict=True))
    for found in (open_model(after).run({"x": X}), reference):
        assert list(found) == list(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)
    return after, "; ".join(reason.reason for reason in kept)


def operators(graph: onnx.GraphProto) -> list[str]:
    """The operators of a graph, then those of the subgraphs in it."""
    subgraphs = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [node.op_type for node in graph.node] + [name for body in subgraphs for name in operators(body)]


@pytest.mark.parametrize("case", [*WEIGHTS, *BIASES])
def test_a_weight_or_bias_that_is_computed_takes_the_batch_norm(case, parse, open_model):
    body, values = (WEIGHTS | BIASES)[case]
    body = f"{body}\n {CONV if case in WEIGHTS else BIASED}"
    stored = NORM | values | ({"W": W} if "W" in body else {})
    after, _ = cleaned(parse(f"(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) {{ {body} }}", stored), open_model)
    assert operators(after.graph) == ["Conv"]


def test_a_branch_shows_the_side_on_which_the_next_condition_rests(parse, open_model):
    body = f"""a = If (yes) <then_branch = t1 () => (float[N, C, H, V] p1) {{ p1 = Relu (x) }},
            else_branch = e1 () => (float[N, C, H, V] n1) {{ n1 = MaxPool <kernel_shape: ints = [2, 2]> (x) }}>
        s = Shape <start: int = 1, end: int = 2> (a)\n k = Equal (s, known)\n {CHOICE}
        h = Conv (a, w)\n y = BatchNormalization (h, g, b, m, v)"""
    stored = NORM | {"W": W, "yes": np.array(True), "known": np.array([4])}
    after, _ = cleaned(parse(f"(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) {{ {body} }}", stored), open_model)
    assert operators(after.graph) == ["Relu", "Conv"]


def test_weights_in_eight_bits_stay_and_the_batch_norm_says_so(parse, open_model):
    stored = NORM | {"q": np.clip(np.round(W * 40), -127, 127).astype(np.int8), "s": np.float32(1 / 40)}
    body = f"w = DequantizeLinear (q, s)\n {CONV}"
    after, kept = cleaned(
        parse(f"(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) {{ {body} }}", stored, opset=19), open_model
    )
    assert operators(after.graph) == ["DequantizeLinear", "Conv", "BatchNormalization"]
    assert "the weight of Conv is quantised, and unchanged" in kept


@pytest.mark.parametrize(
    ("outputs", "rest"),
    [
        (", bool[N, 6, 6, 6] mask", "y = BatchNormalization (d, g, b, m, v)"),
        ("", "f = Cast <to: int = 1> (mask)\n e = Mul (d, f)\n y = BatchNormalization (e, g, b, m, v)"),
    ],
)
def test_a_dropout_whose_mask_is_wanted_stays_one(outputs, rest, parse, open_model):
    body = f"h = Conv (x, W)\n d, mask = Dropout (h)\n {rest}"
    after, _ = cleaned(
        parse(f"(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y{outputs}) {{ {body} }}", NORM | {"W": W}), open_model
    )
    assert "Dropout" in operators(after.graph)


LOOP = """y = Loop (three, yes, x) <body = l (int64 i, bool ci, float[N, 4, 8, 8] c) => (bool co, float[N, 4, 8, 8] r) {
    co = Identity (ci)\n BODY }>"""
SCAN = "y = Scan <num_scan_inputs: int = 1, body = l (float[4, 8, 8] c) => (float[4, 8, 8] r) { BODY }> (x)"
BRANCH = """t = ReduceMax <keepdims: int = 0> (x)\n k = Cast <to: int = 9> (t)\n y = If (k) <
    then_branch = t () => (float[N, 4, 8, 8] r) { BODY }, else_branch = e () => (float[N, 4, 8, 8] n) { n = Neg (x) }>"""
INNER = "w16 = Constant <value_float: float = 0.5> ()\n s = Mul (w16, w16)\n"
LAYER = """d = Cast <to: int = 1> (half)\n e = Conv <pads: ints = [1, 1, 1, 1]> (c, d)
    r = BatchNormalization (e, g4, b4, m4, v4)"""
SUBGRAPHS = {
    "loop": (LOOP.replace("BODY", "d = Identity (c)\n e = Dropout (d)\n f = Tanh (e)\n r = Identity (f)"), ["Tanh"]),
    "loop, computed": (LOOP.replace("BODY", f"{INNER} r = Mul (c, s)"), ["Mul"]),
    "scan": (SCAN.replace("BODY", "d = Identity (c)\n f = Tanh (d)\n r = Dropout (f)"), ["Tanh"]),
    "branch": (BRANCH.replace("BODY", "d = Dropout (x)\n f = Tanh (d)\n r = Identity (f)"), ["Tanh", "Neg"]),
    "branch, computed": (BRANCH.replace("BODY", f"{INNER} r = Mul (x, s)"), ["Mul", "Neg"]),
    "a copy of what stands outside": (BRANCH.replace("BODY", "r = Identity (x)"), ["Identity", "Neg"]),
    "a constant": (
        """t = ReduceMax <keepdims: int = 0> (x)\n k = Cast <to: int = 9> (t)\n y = If (k) <
        then_branch = t () => (float r) { w16 = Constant <value_float: float = 0.5> ()\n r = Mul (w16, w16) },
        else_branch = e () => (float n) { n = Neg (t) }>""",
        ["Constant", "Neg"],
    ),
    "loop, a layer": (LOOP.replace("BODY", LAYER), ["Conv"]),
}


@pytest.mark.parametrize("case", SUBGRAPHS)
def test_subgraphs_are_cleaned_like_the_graph_around_them(case, parse, open_model):
    body, left = SUBGRAPHS[case]
    stored = {"three": np.array(3), "yes": np.array(True), "half": (W[:4] / 16).astype(np.float16)}
    stored |= {f"{name}4": values[:4] for name, values in NORM.items()}
    used = {name: value for name, value in stored.items() if f"({name}" in body or f", {name}" in body}
    shape = "float" if case == "a constant" else "float[N, 4, 8, 8]"
    after, _ = cleaned(parse(f"(float[N, 4, 8, 8] x) => ({shape} y) {{ {body} }}", used), open_model)
    found = operators(after.graph)
    carried = ["Identity"] if "Loop" in found else []  # of the condition, an input that is an output of the subgraph
    assert found[-len(left) - len(carried) :] == [*carried, *left]


def test_what_a_subgraph_reads_is_skipped(parse, open_model):
    body = "a = Abs (x)\n d = Dropout (a)\n i = Identity (d)\n" + BRANCH.replace("BODY", "r = Exp (i)")
    after, _ = cleaned(parse(f"(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ {body} }}", {}), open_model)
    assert operators(after.graph) == ["Abs", "ReduceMax", "Cast", "If", "Exp", "Neg"]
