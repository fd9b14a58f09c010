"""Cases that other tools fold wrongly, crash on, or leave, one by one; `test_fold_matrix` has the types and opsets.

Found by running onnxruntime 1.32, onnxslim 0.1.98, onnxoptimizer 0.4.2 and onnxscript 0.7.2.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model

RNG = np.random.default_rng(4)
HALF = {"g", "b", "m", "v"}


def model_of(body: str, *, opset: int = 18, dtype=np.float32, statistics=None, **weights) -> onnx.ModelProto:
    """A checked model: `g`, `b`, `m`, `v` are drawn for six channels where nothing else is given."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain {body}')
    rng = np.random.default_rng(1)
    drawn = {"g": rng.uniform(0.5, 2, 6), "b": rng.normal(size=6), "m": rng.normal(size=6), "v": rng.uniform(0.5, 2, 6)}
    for name, values in (drawn | weights).items():
        kind = statistics if statistics is not None and name in HALF else dtype
        array = np.asarray(values)
        array = array.astype(kind) if array.dtype == np.float64 else array
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def fold(model: onnx.ModelProto):
    """The folded model, checked in full, and what the pass says."""
    graph = import_graph(model)
    result = FoldBatchNorm()(graph)
    folded = export_model(graph, model)
    onnx.checker.check_model(folded, full_check=True)
    return folded, result


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def require_same(model: onnx.ModelProto, folded: onnx.ModelProto, shape: tuple[int, ...], rtol: float = 1e-5) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    x = {"x": np.random.default_rng(2).normal(size=shape).astype(dtype)}
    for wanted, found in zip(
        ReferenceEvaluator(model).run(None, x), ReferenceEvaluator(folded).run(None, x), strict=True
    ):
        np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), rtol=rtol, atol=rtol)


CONV = """(float[N, 4, 7, 7] x) => (float[N, 6, 5, 5] y) {
    h = Conv (x, w)
    y = BatchNormalization (h, g, b, m, v)
}"""
W = RNG.normal(size=(6, 4, 3, 3))


def test_a_batch_norm_in_training_form_is_not_folded_as_onnxscript_does():
    training = "y, rm, rv = BatchNormalization <training_mode: int = 1> (h, g, b, m, v)"
    folded, result = fold(model_of(CONV.replace("y = BatchNormalization (h, g, b, m, v)", training), w=W))
    assert operators(folded) == ["Conv", "BatchNormalization"]
    assert "it is in training form" in result.skipped[0].reason


def test_five_outputs_of_an_old_opset_are_training_form_too():
    body = CONV.replace("y = Batch", "y, a1, a2, a3, a4 = Batch")
    folded, result = fold(model_of(body, opset=9, w=W))
    assert operators(folded) == ["Conv", "BatchNormalization"]
    assert "it is in training form" in result.skipped[0].reason


def test_a_convolution_with_an_empty_bias_on_which_onnxscript_crashes():
    model = model_of(CONV.replace("Conv (x, w)", "Conv (x, w, bias)"), w=W, bias=np.zeros(6))
    model.graph.node[0].input[2] = ""
    folded, _ = fold(model)
    assert operators(folded) == ["Conv"]
    require_same(model, folded, (2, 4, 7, 7))


def test_float16_data_with_float32_statistics_of_which_onnxslim_and_onnxscript_make_invalid_models():
    body = CONV.replace("float[", "float16[")
    model = model_of(body, dtype=np.float16, statistics=np.float32, w=W)
    folded, _ = fold(model)
    assert operators(folded) == ["Conv"]
    assert {tensor.data_type for tensor in folded.graph.initializer} == {onnx.TensorProto.FLOAT16}
    g = [onnx.numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer[:4]]
    weight = onnx.numpy_helper.to_array(model.graph.initializer[4]).astype(np.float64)
    wanted = weight * (g[0] / np.sqrt(g[3] + 1e-5)).reshape(-1, 1, 1, 1)
    found = onnx.numpy_helper.to_array(
        next(t for t in folded.graph.initializer if t.name == folded.graph.node[0].input[1])
    )
    error = np.abs(found.astype(np.float64) - wanted) / np.abs(wanted)
    assert error.max() <= 2.0**-11  # one rounding to float16; folded in float16 it is up to 1.4e-3
    half_way = (
        weight.astype(np.float16) * (g[0] / np.sqrt(g[3] + 1e-5)).astype(np.float16).reshape(-1, 1, 1, 1)
    ).astype(np.float64)
    assert (np.abs(half_way - wanted) / np.abs(wanted)).max() > 2.0**-11


def test_a_weight_that_two_convolutions_share_is_cloned_where_onnxscript_skips():
    body = """(float[N, 4, 7, 7] x) => (float[N, 6, 5, 5] y, float[N, 6, 5, 5] z) {
        h = Conv (x, w)
        y = BatchNormalization (h, g, b, m, v)
        z = Conv (x, w)
    }"""
    model = model_of(body, w=W)
    folded, _ = fold(model)
    assert operators(folded) == ["Conv", "Conv"]
    require_same(model, folded, (2, 4, 7, 7))


def test_a_convolution_whose_output_is_used_twice_stays_and_says_why():
    body = """(float[N, 4, 7, 7] x) => (float[N, 6, 5, 5] y, float[N, 6, 5, 5] z) {
        h = Conv (x, w)
        y = BatchNormalization (h, g, b, m, v)
        z = Relu (h)
    }"""
    model = model_of(body, w=W)
    folded, result = fold(model)
    assert folded.SerializeToString() == export_model(import_graph(model), model).SerializeToString()
    assert "the output of the upstream Conv" in result.skipped[0].reason


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        ("h = Gemm <transB: int = 1, alpha: float = 0.5, beta: float = 2.0> (x, w, c)", RNG.normal(size=(6, 4))),
        ("h = Gemm (x, w)", RNG.normal(size=(4, 6))),
        ("h = MatMul (x, w)", RNG.normal(size=(4, 6))),
        ("p = MatMul (x, w)\n h = Add (p, c)", RNG.normal(size=(4, 6))),
        ("p = MatMul (x, w)\n h = Add (c, p)", RNG.normal(size=(4, 6))),
    ],
    ids=["Gemm", "Gemm without bias", "MatMul", "MatMul and Add", "Add and MatMul"],
)
def test_every_product_is_folded_of_which_the_others_fold_few(layer, weight):
    body = f"(float[N, 4] x) => (float[N, 6] y) {{ {layer}\n y = BatchNormalization (h, g, b, m, v) }}"
    model = model_of(body, w=weight, c=RNG.normal(size=6))
    folded, _ = fold(model)
    assert "BatchNormalization" not in operators(folded)
    require_same(model, folded, (3, 4))


def test_a_grouped_transposed_convolution_which_onnxoptimizer_leaves(open_model):
    body = """(float[N, 4, 5, 5] x) => (float[N, 6, H, W] y) {
        h = ConvTranspose <group: int = 2, strides: ints = [2, 2]> (x, w)
        y = BatchNormalization (h, g, b, m, v)
    }"""
    model = model_of(body, w=RNG.normal(size=(4, 3, 3, 3)))
    folded, _ = fold(model)
    assert operators(folded) == ["ConvTranspose"]
    x = {"x": RNG.normal(size=(2, 4, 5, 5)).astype(np.float32)}
    with open_model(model) as before, open_model(folded) as after:  # onnx's evaluator knows no groups here
        np.testing.assert_allclose(after.run(x)["y"], before.run(x)["y"], rtol=1e-5, atol=1e-5)


FORWARD = """(float[N, 6, 7, 7] x) => (float[N, 4, H, W] y) {
    r = Relu (x)
    h = BatchNormalization (r, g, b, m, v)
    y = Conv PADS (h, w)
}"""


def test_a_batch_norm_upstream_of_a_convolution_that_no_other_tool_folds():
    model = model_of(FORWARD.replace("PADS", ""), w=RNG.normal(size=(4, 6, 3, 3)))
    folded, _ = fold(model)
    assert operators(folded) == ["Relu", "Conv"]
    require_same(model, folded, (2, 6, 7, 7))


def test_padding_is_a_reason_unless_nothing_is_shifted():
    padded = FORWARD.replace("PADS", "<pads: ints = [1, 1, 1, 1]>")
    weight = RNG.normal(size=(4, 6, 3, 3))
    folded, result = fold(model_of(padded, w=weight))
    assert operators(folded) == ["Relu", "BatchNormalization", "Conv"]
    assert "pads with zeros, which the shift of the BatchNorm would change" in result.skipped[0].reason
    model = model_of(padded, w=weight, b=np.zeros(6), m=np.zeros(6))
    folded, _ = fold(model)
    assert operators(folded) == ["Relu", "Conv"]
    require_same(model, folded, (2, 6, 7, 7))


@pytest.mark.parametrize("join", ["Add (p, q)", "Concat <axis: int = 1> (p, p2)"])
def test_downstream_of_a_residual_sum_and_a_concat_of_shared_branches_it_stays_and_says_why(join):
    body = f"""(float[N, 4, 7, 7] x) => (float[N, 6, 5, 5] y, float[N, C, 5, 5] z) {{
        p = Conv (x, w)
        q = Conv (x, u)
        p2 = Conv (x, half)
        h = {join}
        n = BatchNormalization (h, g, b, m, v)
        y = Relu (n)
        z = Relu (p)
    }}"""
    channels = 3 if "Concat" in join else 6
    body = body.replace("float[N, C,", f"float[N, {channels},")
    first = RNG.normal(size=(channels, 4, 3, 3))
    model = model_of(body, w=first, u=RNG.normal(size=(6, 4, 3, 3)), half=RNG.normal(size=(3, 4, 3, 3)))
    folded, result = fold(model)
    assert "BatchNormalization" in operators(folded)
    assert join.split()[0] in result.skipped[0].reason


def test_subgraphs_and_nodes_without_names():
    body = """(float[N, 4, 7, 7] x, bool k) => (float[N, 6, 5, 5] y) {
        y = If (k) <
            then_branch = t () => (float[N, 6, 5, 5] p) { h = Conv (x, w)  p = BatchNormalization (h, g, b, m, v) },
            else_branch = e () => (float[N, 6, 5, 5] q) { q = Conv (x, w) }>
    }"""
    model = model_of(body, w=W)
    assert all(not node.name for node in model.graph.node)
    folded, result = fold(model)
    assert [change.action for change in result.changed] == ["folded into Conv 'Conv'"]
    for choice in (True, False):
        x = {"x": RNG.normal(size=(1, 4, 7, 7)).astype(np.float32), "k": np.array(choice)}
        (wanted,), (found,) = (ReferenceEvaluator(each).run(None, x) for each in (model, folded))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_subgraph_of_a_scan_is_folded_too():
    body = """(float[T, 4] x) => (float[T, 6] y) {
        y = Scan <num_scan_inputs: int = 1, body = step (float[4] row) => (float[6] out) {
            r = Unsqueeze (row, zero)
            h = Gemm (r, w)
            n = BatchNormalization (h, g, b, m, v)
            out = Squeeze (n, zero)
        }> (x)
    }"""
    model = model_of(body, w=RNG.normal(size=(4, 6)), zero=np.array([0]))
    folded, result = fold(model)
    assert len(result.changed) == 1
    require_same(model, folded, (5, 4))


def test_a_local_function_is_inlined_when_the_file_is_read_and_folded_then(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
    main (float[N, 4] x) => (float[N, 6] y) { y = own.Block (x, w, g, b, m, v) }
    <domain: "own", opset_import: ["" : 18]>
    Block (x, w, g, b, m, v) => (y) {
        h = MatMul (x, w)
        y = BatchNormalization (h, g, b, m, v)
    }"""
    model = onnx.parser.parse_model(text)
    source = model_of("(float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", w=RNG.normal(size=(4, 6)))
    model.graph.initializer.extend(source.graph.initializer)
    onnx.save(model, tmp_path / "m.onnx")
    flat = read_model(tmp_path / "m.onnx")
    folded, result = fold(flat)
    assert len(result.changed) == 1
    assert "BatchNormalization" not in operators(folded)
    require_same(model, folded, (3, 4))


SEVERAL = """(float[N, 6, 7, 7] x) => (float[N, 4, 5, 5] y, float[N, 3, 7, 7] z) {
    r = Relu (x)
    h = BatchNormalization (r, g, b, m, v)
    y = Conv (h, w)
    z = Conv (h, u)
}"""


def test_a_batch_norm_that_several_convolutions_read_goes_into_all_of_them():
    model = model_of(SEVERAL, w=RNG.normal(size=(4, 6, 3, 3)), u=RNG.normal(size=(3, 6, 1, 1)))
    folded, result = fold(model)
    assert operators(folded) == ["Relu", "Conv", "Conv"]
    assert result.changed[0].action == "folded into the downstream Conv 'Conv', Conv 'Conv'"
    require_same(model, folded, (2, 6, 7, 7))


def test_readers_that_share_a_weight_get_their_own_numbers_once():
    body = SEVERAL.replace("Conv (h, u)", "Conv (h, w)").replace("float[N, 3, 7, 7] z", "float[N, 4, 5, 5] z")
    model = model_of(body, w=RNG.normal(size=(4, 6, 3, 3)))
    folded, _ = fold(model)
    assert operators(folded) == ["Relu", "Conv", "Conv"]
    require_same(model, folded, (2, 6, 7, 7))


def test_one_reader_that_can_not_take_it_keeps_it_whole():
    body = SEVERAL.replace("z = Conv (h, u)", "z = Neg (h)").replace("float[N, 3, 7, 7] z", "float[N, 6, 7, 7] z")
    model = model_of(body, w=RNG.normal(size=(4, 6, 3, 3)))
    folded, result = fold(model)
    assert folded.SerializeToString() == export_model(import_graph(model), model).SerializeToString()
    assert "its output goes to Neg" in result.skipped[0].reason
