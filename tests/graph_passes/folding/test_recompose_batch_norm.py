"""BatchNorm as real exporters spell it out. Truth: the formula in float64, and the file as it was in two runtimes."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.checker
import onnx.reference
import pytest
import torch

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.folding.recompose_batch_norm import LeaveChannelsLast, RecomposeBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.graph_pass import PassPipeline

C = 5
RNG = np.random.default_rng(5)
MEAN, GAMMA, BETA = (RNG.normal(size=C).astype(np.float32) for _ in range(3))
VAR = RNG.uniform(0.2, 3, C).astype(np.float32)
EPS = np.float32(1e-3)
ROW = (C, 1, 1)
CHANNELS = {2: (C,), 3: (C, 1), 4: (1, C, 1, 1), 5: (C, 1, 1, 1)}
POSITIONS = {2: "", 3: ", 4", 4: ", 4, 3", 5: ", 4, 3, 2"}

DIVISION = "a = Sub (h, m)\n b = Add (v, e)\n s = Sqrt (b)\n d = Div (a, s)\n"
RSQRT = "b = Add (e, v)\n s = Sqrt (b)\n r = Reciprocal (s)\n i = Mul (r, g)\n p = Mul (h, i)\n q = Mul (m, i)\n"
SPELLINGS = {
    "division": (DIVISION + "f = Mul (d, g)\n y = Add (f, c)", "mvgce"),
    "division, operands turned": (DIVISION + "f = Mul (g, d)\n y = Add (c, f)", "mvgce"),
    "no gamma": (DIVISION + "y = Add (d, c)", "mvce"),
    "no beta": (DIVISION + "y = Mul (d, g)", "mvge"),
    "neither": ("a = Sub (h, m)\n b = Add (v, e)\n s = Sqrt (b)\n y = Div (a, s)", "mve"),
    "gamma before the division": (
        "a = Sub (h, m)\n f = Mul (a, g)\n b = Add (v, e)\n s = Sqrt (b)\n d = Div (f, s)\n y = Add (d, c)",
        "mvgce",
    ),
    "reciprocal": (
        "a = Sub (h, m)\n b = Add (v, e)\n s = Sqrt (b)\n r = Reciprocal (s)\n d = Mul (r, a)\n f = Mul (d, g)\n y = Add (f, c)",
        "mvgce",
    ),
    "power": (
        "a = Sub (h, m)\n b = Add (v, e)\n s = Pow (b, k)\n d = Mul (a, s)\n f = Mul (d, g)\n y = Add (f, c)",
        "mvgcek",
    ),
    "power of a half": (
        "a = Sub (h, m)\n b = Add (v, e)\n s = Pow (b, l)\n d = Div (a, s)\n f = Mul (d, g)\n y = Add (f, c)",
        "mvgcel",
    ),
    "the negative mean is added": (
        "n = Neg (m)\n a = Add (n, h)\n b = Add (v, e)\n s = Sqrt (b)\n d = Div (a, s)\n f = Mul (d, g)\n y = Add (f, c)",
        "mvgce",
    ),
    "gamma over the root": (
        "a = Sub (h, m)\n b = Add (v, e)\n s = Sqrt (b)\n i = Div (g, s)\n f = Mul (a, i)\n y = Add (f, c)",
        "mvgce",
    ),
    "rsqrt": (RSQRT + "z = Sub (c, q)\n y = Add (p, z)", "mvgce"),
    "rsqrt, operands turned": (RSQRT + "z = Sub (c, q)\n y = Add (z, p)", "mvgce"),
    "rsqrt, negated": (RSQRT + "w = Neg (q)\n z = Add (w, c)\n y = Add (p, z)", "mvgce"),
    "rsqrt without beta": (RSQRT + "y = Sub (p, q)", "mvge"),
    "root merged": ("a = Sub (h, m)\n d = Div (a, u)\n f = Mul (d, g)\n y = Add (f, c)", "mgcu"),
    "sum merged": ("a = Sub (h, m)\n s = Sqrt (t)\n d = Div (a, s)\n f = Mul (d, g)\n y = Add (f, c)", "mgct"),
    "rsqrt, sum merged": (
        RSQRT.replace("b = Add (e, v)\n s = Sqrt (b)", "s = Sqrt (t)") + "z = Sub (c, q)\n y = Add (p, z)",
        "mgct",
    ),
}


def build(body: str, weights: dict[str, np.ndarray], rank: int, *, shape: str = "", opset: int = 18) -> onnx.ModelProto:
    """`body` computes y from h, which is Abs of the input; without value_info inside."""
    sides = shape or f"N, {C}{POSITIONS[rank]}"
    text = f"main (float[{sides}] x) => (float[{sides}] y) {{ h = Abs (x)\n {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def constants(letters: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """m mean, v var, g gamma, c beta, e epsilon, k and l powers, t = v + e, u its root."""
    rows = {"m": MEAN, "v": VAR, "g": GAMMA, "c": BETA, "t": VAR + EPS, "u": np.sqrt(VAR + EPS)}
    scalars = {"e": EPS, "k": np.float32(-0.5), "l": np.array([0.5], np.float32)}
    return {k: rows[k].reshape(shape) if k in rows else scalars[k] for k in letters}


def formula(x: np.ndarray, letters: str, axis: int) -> np.ndarray:
    along = [1] * x.ndim
    along[axis] = C
    mean, var, gamma, beta = (values.astype(np.float64).reshape(along) for values in (MEAN, VAR, GAMMA, BETA))
    normalised = (np.abs(x.astype(np.float64)) - mean) / np.sqrt(var + np.float64(EPS))
    return normalised * (gamma if "g" in letters else 1) + (beta if "c" in letters else 0)


def recompose(model: onnx.ModelProto):
    graph = import_graph(model)
    result = RecomposeBatchNorm()(graph)
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    assert not RecomposeBatchNorm()(graph).modified
    return result, after, graph


def random_input(model: onnx.ModelProto) -> np.ndarray:
    shape = [side.dim_value or 6 for side in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_becomes_one_node_with_the_same_numbers(spelling, rank, open_model):
    body, letters = SPELLINGS[spelling]
    model = build(body, constants(letters, CHANNELS[rank]), rank)
    result, after, graph = recompose(model)
    assert (len(result.changed), result.skipped) == (1, ())
    assert [node.op_type for node in after.graph.node] == ["Abs", "BatchNormalization"]
    x = random_input(model)
    for run in (open_model(after).run({"x": x})["y"], onnx.reference.ReferenceEvaluator(after).run(None, {"x": x})[0]):
        np.testing.assert_allclose(run, formula(x, letters, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(open_model(model).run({"x": x})["y"], formula(x, letters, 1), rtol=1e-5, atol=1e-5)
    (batch_norm,) = find_batch_norms(graph)
    np.testing.assert_array_equal(batch_norm.mean, MEAN)
    if "v" in letters:
        np.testing.assert_array_equal(batch_norm.variance, VAR)
        assert batch_norm.epsilon == EPS
    else:
        np.testing.assert_allclose(batch_norm.variance, VAR + EPS, rtol=1e-6)
        assert batch_norm.epsilon == 0
        assert "epsilon is 0 now" in result.changed[0].action


def test_a_planted_mistake_is_seen(open_model):
    body, letters = SPELLINGS["division"]
    model = build(body, constants(letters, CHANNELS[4]), 4)
    _, _, graph = recompose(model)
    (batch_norm,) = find_batch_norms(graph)
    batch_norm.with_statistics(batch_norm.mean, batch_norm.variance * 1.001)
    x = random_input(model)
    wrong = open_model(export_model(graph, model)).run({"x": x})["y"]
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(wrong, formula(x, letters, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("sides", ["N, 4, 5", "N, 4, 3, 5", "N, 4, 3, 2, 5"])
def test_channels_on_the_last_axis_get_transposes_around(spelling, sides, open_model):
    body, letters = SPELLINGS[spelling]
    model = build(body, constants(letters, (C,)), 0, shape=sides)
    _, after, _ = recompose(model)
    assert [node.op_type for node in after.graph.node] == ["Abs", "Transpose", "BatchNormalization", "Transpose"]
    x = random_input(model)
    np.testing.assert_allclose(open_model(after).run({"x": x})["y"], formula(x, letters, -1), rtol=1e-5, atol=1e-5)


def test_downstream_of_a_transpose_the_batch_norm_takes_its_input_and_folds_into_the_convolution(open_model):
    text = "w1 = Conv (x, w)\n t1 = Transpose <perm = [0, 2, 3, 1]> (w1)\n " + SPELLINGS["rsqrt"][0].replace(
        "(h,", "(t1,"
    )
    weights = constants("mvgce", (C,)) | {"w": np.random.default_rng(2).normal(size=(C, 3, 2, 2)).astype(np.float32)}
    body = f"main (float[N, 3, 6, 6] x) => (float[N, 5, 5, {C}] y) {{ {text} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{body}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    _, after, graph = recompose(model)
    assert [node.op_type for node in after.graph.node] == ["Conv", "BatchNormalization", "Transpose"]
    FoldBatchNorm()(graph)
    folded = export_model(graph, model)
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Transpose"]
    x = random_input(model)
    before = open_model(model).run({"x": x})["y"]
    for candidate in (after, folded):
        np.testing.assert_allclose(open_model(candidate).run({"x": x})["y"], before, rtol=1e-4, atol=1e-5)


def test_many_are_found_where_the_file_states_no_shapes_inside(open_model):
    body, letters = SPELLINGS["division"]
    blocks = [body.replace("(h,", f"(h{number},") for number in range(3)]
    for number in range(3):
        for name in "absdfy":
            blocks[number] = re.sub(rf"\b{name}\b(?= =|,|\))", f"{name}{number}", blocks[number])
    text = "h0 = Abs (x)\n" + "\n".join(
        f"{block}\n h{number + 1} = Relu (y{number})" for number, block in enumerate(blocks)
    )
    model = build(text.replace("h0 = Abs (x)", "h0 = Identity (h)") + "\n y = Neg (h3)", constants(letters, ROW), 4)
    result, after, _ = recompose(model)
    assert len(result.changed) == 3
    assert [node.op_type for node in after.graph.node].count("BatchNormalization") == 3
    x = random_input(model)
    np.testing.assert_allclose(
        open_model(after).run({"x": x})["y"], open_model(model).run({"x": x})["y"], rtol=1e-5, atol=1e-5
    )


def test_parameters_that_torch_reshapes_in_the_graph_keep_their_names(open_model):
    body = """mm = Reshape ("bn.running_mean", r)\n vv = Unsqueeze ("bn.running_var", ax)\n a = Sub (h, mm)
    b = Add (vv, e)\n s = Sqrt (b)\n d = Div (a, s)\n gg = Cast <to = 1> (half)\n f = Mul (d, gg)\n y = Add (f, c)"""
    weights = constants("ce", (C, 1, 1)) | {
        "bn.running_mean": MEAN,
        "bn.running_var": VAR,
        "r": np.array([1, C, 1, 1]),
        "ax": np.array([1, 2]),
        "half": GAMMA.astype(np.float16).reshape(C, 1, 1),
    }
    model = build(body, weights, 4)
    _, after, graph = recompose(model)
    (batch_norm,) = find_batch_norms(graph)
    assert batch_norm.name == "bn"
    np.testing.assert_array_equal(batch_norm.gamma, GAMMA.astype(np.float16))
    x = random_input(model)
    np.testing.assert_allclose(
        open_model(after).run({"x": x})["y"], open_model(model).run({"x": x})["y"], rtol=1e-5, atol=1e-5
    )


def test_two_in_a_row_and_an_upstream_bias_are_distinguished(open_model):
    first = SPELLINGS["rsqrt"][0].replace("(h,", "(o,").replace("y =", "y1 =")
    second = "a2 = Sub (y1, m)\n s2 = Sqrt (b)\n d2 = Div (a2, s2)\n f2 = Mul (d2, g)\n y = Add (f2, c)"
    body = f"o = Add (h, bias)\n {first}\n {second}"
    model = build(body, constants("mvgce", (C, 1, 1)) | {"bias": np.ones((C, 1, 1), np.float32)}, 4)
    _, after, graph = recompose(model)
    assert [node.op_type for node in after.graph.node] == ["Abs", "Add", "BatchNormalization", "BatchNormalization"]
    for batch_norm in find_batch_norms(graph):
        np.testing.assert_array_equal(batch_norm.mean, MEAN)
        np.testing.assert_array_equal(batch_norm.variance, VAR)
    x = random_input(model)
    np.testing.assert_allclose(
        open_model(after).run({"x": x})["y"], open_model(model).run({"x": x})["y"], rtol=1e-5, atol=1e-5
    )


LEFT = {
    "scale and shift": ("p = Mul (h, g)\n y = Add (p, c)", "gc", "no mean and variance is in the file"),
    "variance and scale in one": (
        "a = Sub (h, m)\n p = Mul (a, g)\n y = Add (p, c)",
        "mgc",
        "merged into its scale.*KERAS_BACKEND=torch.*optimize=False",
    ),
    "preprocessing": ("a = Sub (x, m)\n y = Div (a, u)", "mu", "as preprocessing does"),
    "an inner tensor is read elsewhere": (DIVISION + "f = Mul (d, g)\n z = Add (f, c)\n y = Add (z, a)", "mvgce", None),
    "no mean": ("b = Add (v, e)\n s = Sqrt (b)\n d = Div (h, s)\n y = Mul (d, g)", "vge", "no mean is subtracted"),
    "mean merged with beta": (
        RSQRT.replace("q = Mul (m, i)\n", "") + "y = Add (p, c)",
        "mvgce",
        "no mean is subtracted",
    ),
    "variance that is computed": (
        "j = ReduceMean (h)\n a = Sub (h, m)\n b = Add (j, e)\n s = Sqrt (b)\n d = Div (a, s)\n y = Add (d, c)",
        "mce",
        None,
    ),
    "negative variance": (DIVISION.replace("(v, e)", "(m, e)") + "y = Add (d, c)", "mce", "is not positive|not finite"),
    "affine part of a normalisation": (
        "i1 = InstanceNormalization (h, o1, o2)\n p = Mul (i1, g)\n y = Add (p, c)",
        "gc",
        None,
    ),
    "scalars": ("a = Sub (h, e)\n d = Div (a, e)\n y = Add (d, e)", "e", None),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_not_certain_stays_with_the_reason(case):
    body, letters, reason = LEFT[case]
    weights = constants(letters, ROW)
    if "o1" in body:
        weights |= {"o1": np.ones(C, np.float32), "o2": np.zeros(C, np.float32)}
    model = build(body, weights, 4)
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    result = RecomposeBatchNorm()(graph)
    assert result.changed == ()
    assert export_model(graph, model).SerializeToString() == before
    if reason is None:
        assert not [kept for kept in result.skipped if "no mean and variance" in kept.reason]
    else:
        (kept,) = result.skipped
        assert re.search(reason, kept.reason)


def test_channels_on_another_axis_are_reported():
    body, letters = SPELLINGS["division"]
    model = build(body, constants(letters, (C, 1)), 0, shape="N, 3, 5, 4")
    result, _, _ = recompose(model)
    assert (result.changed, result.skipped[0].reason) == (
        (),
        "its constants lie along axis 2 of 4, which is not that of the channels",
    )


@pytest.mark.parametrize("opset", [7, 9, 13, 22])
def test_the_node_fits_the_opset(opset, open_model):
    body, letters = SPELLINGS["reciprocal"]
    model = build(body, constants(letters, (C, 1, 1)), 4, opset=opset)
    _, after, _ = recompose(model)
    assert after.opset_import[0].version == opset
    x = random_input(model)
    np.testing.assert_allclose(open_model(after).run({"x": x})["y"], formula(x, letters, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_decomposition_that_torch_exports_is_found(open_model):
    class Spelled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, C, 3)
            self.bn = torch.nn.BatchNorm2d(C)
            with torch.no_grad():
                self.bn.running_mean.copy_(torch.from_numpy(MEAN))
                self.bn.running_var.copy_(torch.from_numpy(VAR))

        def forward(self, x):
            h = torch.relu(self.conv(x))
            scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
            shift = self.bn.bias - self.bn.running_mean * scale
            return h * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = Spelled().eval()
    program = torch.onnx.export(network, (x,), dynamo=True, optimize=False, verbose=False)
    _, after, graph = recompose(program.model_proto)
    (batch_norm,) = find_batch_norms(graph)
    np.testing.assert_array_equal(batch_norm.variance, VAR)
    with torch.no_grad():
        np.testing.assert_allclose(
            open_model(after).run({"x": x.numpy()}).popitem()[1], network(x).numpy(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("code", [onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE])
def test_the_constants_get_the_type_of_the_data(code):
    body, letters = SPELLINGS["division"]
    model = build(body, constants(letters, (C, 1)), 3)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = code
    _, after, _ = recompose(model)
    assert {tensor.data_type for tensor in after.graph.initializer} == {code}
    x = random_input(model).astype(dtype)
    (y,) = onnx.reference.ReferenceEvaluator(after).run(None, {"x": x})
    np.testing.assert_allclose(y, formula(x, letters, 1), rtol=2e-2 if dtype == np.float16 else 1e-6, atol=2e-2)


def test_a_type_that_is_not_served_is_reported_without_noise(capfd):
    body, letters = SPELLINGS["division"]
    model = build(body, constants(letters, (C, 1)), 3)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).ravel().tolist()
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, onnx.TensorProto.BFLOAT16, tensor.dims, values))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    result, after, _ = recompose(model)
    assert "bfloat16 is not float16" in result.skipped[0].reason
    assert {tensor.data_type for tensor in after.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    assert capfd.readouterr() == ("", "")


def test_a_standardisation_at_the_output_is_no_batch_norm(parse):
    body = "(float[N, 3] x) => (float[N, 4] y) { h = MatMul (x, w)\n a = Sub (h, m)\n y = Div (a, s) }"
    weights = {"w": np.ones((3, 4), np.float32), "m": np.arange(4, dtype=np.float32), "s": np.full(4, 2, np.float32)}
    weights["s"][1] = 3
    graph = import_graph(parse(body, weights))
    result = RecomposeBatchNorm()(graph)
    assert not result.changed
    assert "says BatchNorm" in result.skipped[0].reason


@pytest.mark.parametrize("sides", ["N, 4, 5", "N, 4, 3, 5", "N, 4, 3, 2, 5"])
def test_what_could_not_be_folded_leaves_the_last_axis_without_transposes(sides, open_model):
    body, letters = SPELLINGS["division"]
    rank = sides.count(",") + 1
    model = build(body, constants(letters, (C,)), rank, shape=sides)
    graph = import_graph(model)
    PassPipeline([RecomposeBatchNorm(), LeaveChannelsLast()])(graph)
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    operators = [node.op_type for node in after.graph.node]
    assert operators.count("Transpose") == operators.count("BatchNormalization") == 0
    assert operators[-2:] == ["Mul", "Add"]
    x = random_input(model)
    expected = open_model(model).run({"x": x})["y"]
    np.testing.assert_allclose(open_model(after).run({"x": x})["y"], expected, rtol=1e-5, atol=1e-5)
    assert not LeaveChannelsLast()(graph).modified


def test_what_is_read_between_the_transposes_keeps_them(parse):
    body = """(float[N, 4, 5] x) => (float[N, 4, 5] y, float[N, 5, 4] z) {
        a = Transpose <perm: ints = [0, 2, 1]> (x)
        b = BatchNormalization (a, g, c, m, v)
        y = Transpose <perm: ints = [0, 2, 1]> (b)
        z = Relu (b)
    }"""
    graph = import_graph(parse(body, {"g": GAMMA, "c": BETA, "m": MEAN, "v": VAR}))
    assert not LeaveChannelsLast()(graph).modified
