from __future__ import annotations

import io
import warnings
from collections import Counter

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import onnx.parser
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vsfix.graph_passes.cleaning.deployment import deployment_passes
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.graph_pass import PassPipeline
from vsfix.graph_passes.noise.analysis import analyse_noise
from vsfix.graph_passes.noise.marker import read_marker
from vsfix.graph_passes.training_export.decomposed_noise import MarkDecomposedNoise


def drop_path(x: torch.Tensor) -> torch.Tensor:
    return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.8).div_(0.8)


def drop_path_by_floor(x: torch.Tensor) -> torch.Tensor:
    return x.div(0.8) * (0.8 + torch.rand((x.shape[0], 1, 1, 1))).floor()


NOISES = {
    "dropout": (lambda x: F.dropout(x, 0.3), "dropout:0.3"),
    "mask": (lambda x: x * (torch.rand_like(x) < 0.7).float() / 0.7, "dropout:0.3"),
    "mask, greater": (lambda x: ((torch.rand_like(x) > 0.3).to(x.dtype) * (1 / 0.7)) * x, "dropout:0.3"),
    "where": (lambda x: torch.where(torch.rand_like(x) < 0.7, x / 0.7, torch.zeros_like(x)), "dropout:0.3"),
    "masked_fill": (lambda x: x.masked_fill(torch.rand_like(x) <= 0.3, 0) / 0.7, "dropout:0.3"),
    "bernoulli": (lambda x: x * torch.bernoulli(torch.full_like(x, 0.7)) / 0.7, "dropout:0.3"),
    "channels": (
        lambda x: torch.bernoulli(torch.full((x.shape[0], x.shape[1], 1, 1), 0.7)) / 0.7 * x,
        "feature-dropout:0.3",
    ),
    "drop_path": (drop_path, "drop-path:0.2"),
    "drop_path_by_floor": (drop_path_by_floor, "drop-path:0.2"),
    "uout": (lambda x: x * (1 + 0.1 * (2 * torch.rand_like(x) - 1)), "uout:0.1"),
    "uout, sum": (lambda x: x + x * (0.2 * torch.rand_like(x) - 0.1), "uout:0.1"),
    "gaussian": (lambda x: x * (1 + 0.5 * torch.randn_like(x)), "gaussian-dropout:0.2"),
}
ONLY_DYNAMO = {
    "dropout2d": (lambda x: F.dropout2d(x, 0.25), "feature-dropout:0.25"),
    "alpha": (lambda x: F.alpha_dropout(x, 0.3, True), "alpha-dropout:0.3"),
    "feature alpha": (lambda x: F.feature_alpha_dropout(x, 0.3, True), "feature-alpha-dropout:0.3"),
    "normal": (lambda x: x * torch.empty_like(x).normal_(1.0, 0.5), "gaussian-dropout:0.2"),
}


class Noisy(nn.Module):
    """Convolutions, each with a noise downstream that is on in training only."""

    def __init__(self, noises) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.noises = noises
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in noises)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, noise in zip(self.convolutions, self.noises, strict=True):
            x = convolution(x)
            x = torch.tanh(noise(x) if self.training else x)
        return x


def export(model: nn.Module, *, dynamo: bool, static: bool = False, **options) -> onnx.ModelProto:
    """The model in training form, with a free batch size unless it is static."""
    options |= {"training": torch.onnx.TrainingMode.TRAINING, "dynamo": dynamo, "verbose": False}
    images = (torch.zeros(2, 3, 4, 4),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},)
            return torch.onnx.export(model.train(), images, dynamic_shapes=shapes, **options).model_proto
        buffer = io.BytesIO()
        axes = {} if static else {"x": {0: "batch"}}
        torch.onnx.export(model.train(), images, buffer, input_names=["x"], dynamic_axes=axes, **options)
    return onnx.load_from_string(buffer.getvalue())


def check_deployed(model: nn.Module, exported: onnx.ModelProto, wanted: list[str], open_model) -> None:
    """The markers are those wanted, nothing random is left, the outputs are those of eval, a second run is idle."""
    graph = import_graph(exported)
    deploy = PassPipeline(deployment_passes())
    result = deploy(graph)
    assert result.skipped == ()
    after = export_model(graph, exported)
    onnx.checker.check_model(after, full_check=True)
    assert [str(source.noise) for source in analyse_noise(graph).sources] == wanted
    assert set(Counter(node.op for node in graph.nodes)) <= {"Conv", "Tanh", "Dropout", "Constant"}
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    (found,) = open_model(after).run({"x": images.numpy()}).values()
    np.testing.assert_allclose(found, model.eval()(images).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert not deploy(graph).modified


def test_every_noise_of_a_dynamo_export_is_marked(open_model):
    shared = ("where", "bernoulli", "channels", "drop_path_by_floor", "uout", "gaussian")  # its time grows with them
    noises = [NOISES[name] for name in shared] + list(ONLY_DYNAMO.values())
    model = Noisy([noise for noise, _ in noises])
    exported = export(model, dynamo=True)
    check_deployed(model, exported, [kind for _, kind in noises], open_model)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("opset", [12, 13, 17, 20])
def test_every_noise_of_a_legacy_export_is_marked(opset, static, open_model):
    noises = [pair for name, pair in NOISES.items() if opset >= 15 or name not in ("bernoulli", "channels")]
    model = Noisy([noise for noise, _ in noises])
    exported = export(model, dynamo=False, static=static, opset_version=opset)
    check_deployed(model, exported, [kind for _, kind in noises], open_model)


def test_a_wrong_marker_would_be_noticed(open_model):
    """The planted mistake: the export is compared with another list of noises."""
    model = Noisy([NOISES["mask"][0]])
    with pytest.raises(AssertionError):
        check_deployed(model, export(model, dynamo=False, opset_version=17), ["dropout:0.4"], open_model)


def mark(body: str, opset: int = 17, shape: str = "N, 3, 4, 4", **constants: float):
    """Applies the pass to ONNX text; constants become scalars."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain (float[{shape}] x) => (float[{shape}] y) {{ {body} }}'
    )
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    graph = import_graph(model)
    result = MarkDecomposedNoise()(graph)
    onnx.checker.check_model(export_model(graph, model), full_check=True)
    assert not MarkDecomposedNoise()(graph).modified
    noises = [str(noise) for noise in map(read_marker, graph.nodes) if noise is not None]
    return noises, [skipped.reason for skipped in result.skipped], graph


MASK = "u = RandomUniformLike (x)\n b = Less (u, k)\n m = Cast <to: int = 1> (b)\n "


@pytest.mark.parametrize(
    ("body", "constants", "wanted"),
    [
        (MASK + "s = Div (m, k)\n y = Mul (s, x)", {"k": 0.7}, "dropout:0.3"),
        (MASK + "a = Mul (m, x)\n y = Mul (r, a)", {"k": 0.8, "r": 1.25}, "dropout:0.2"),
        (MASK + "i = Reciprocal (k)\n s = Mul (i, m)\n y = Mul (x, s)", {"k": 0.7}, "dropout:0.3"),
        (MASK + "a = Mul (x, r)\n y = Mul (a, m)", {"k": 0.8, "r": 1.25}, "dropout:0.2"),
        (
            "u = RandomUniformLike (x)\n b = Greater (k, u)\n n = Not (b)\n y0 = Where (n, z, x)\n y = Div (y0, k)",
            {"k": 0.7, "z": 0.0},
            "dropout:0.3",
        ),
        (
            "u = RandomUniformLike <low: float = -0.25, high: float = 0.25> (x)\n f = Add (o, u)\n y = Mul (f, x)",
            {"o": 1.0},
            "uout:0.25",
        ),
        (
            "n = RandomNormalLike <mean: float = 1.0, scale: float = 0.5> (x)\n y = Mul (n, x)",
            {},
            "gaussian-dropout:0.2",
        ),
        (
            "u = RandomUniform <shape: ints = [1, 3, 4, 4]> ()\n b = Less (u, k)\n m = Cast <to: int = 1> (b)\n"
            "s = Div (m, k)\n y = Mul (s, x)",
            {"k": 0.5},
            None,
        ),
    ],
)
def test_noise_is_read_from_its_distribution(body, constants, wanted):
    noises, reasons, graph = mark(body, **constants)
    assert noises == ([] if wanted is None else [wanted])
    assert bool(reasons) == (wanted is None)
    assert wanted is None or [node.op for node in graph.nodes] == ["Dropout"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("n = RandomNormalLike (x)\n s = Mul (n, k)\n y = Add (x, s)", "additive noise"),
        (MASK + "y = Mul (x, m)", "the mean of the noise is 0.7, not 1"),
        (MASK + "s = Div (m, k)\n t = Mul (s, x)\n e = Exp (m)\n y = Mul (t, e)", "something else reads"),
        ("b = Bernoulli (x)\n y = Mul (b, x)", "an expression that vsfix does not know"),
        (
            "u = RandomUniformLike (x)\n b = Less (u, x)\n m = Cast <to: int = 1> (b)\n y = Mul (x, m)",
            "an expression that vsfix does",
        ),
        (
            "u = RandomUniform <shape: ints = [3, 1, 1]> ()\n b = Less (u, k)\n m = Cast <to: int = 1> (b)\n"
            "s = Div (m, k)\n y = Mul (x, s)",
            "have the shape (1, 3, 1, 1)",
        ),
        (
            "n = RandomUniform <shape: ints = [1, 1, 1, 1], low: float = 0.5, high: float = 1.5> ()\n y = Mul (n, x)",
            "share",
        ),
    ],
)
def test_what_is_uncertain_is_skipped_with_its_reason(body, reason):
    noises, reasons, _ = mark(body, **({"k": 0.7} if "k)" in body else {}))
    assert len(noises) == ("something else" in reason)
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_a_broadcast_threshold_does_not_make_one_draw_per_sample_many():
    body = """i = Shape <start: int = 0, end: int = 1> (x)
        o = Constant <value = int64[3] {1, 1, 1}> ()
        s = Concat <axis: int = 0> (i, o)
        e = ConstantOfShape (s)
        u = RandomUniformLike (e)
        w = Shape (x)
        t = Expand (k, w)
        b = Less (u, t)
        m = Cast <to: int = 1> (b)
        f = Div (m, k)
        y = Mul (x, f)"""
    assert mark(body, k=0.7)[0] == ["drop-path:0.3"]


def test_a_mask_in_its_own_shape_is_followed_through_unsqueeze():
    body = """i = Shape <start: int = 0, end: int = 2> (x)
        e = ConstantOfShape (i)
        u = RandomUniformLike (e)
        b = Less (u, k)
        m = Cast <to: int = 1> (b)
        a = Constant <value = int64[2] {2, 3}> ()
        v = Unsqueeze (m, a)
        f = Div (v, k)
        y = Mul (x, f)"""
    assert mark(body, k=0.7)[0] == ["feature-dropout:0.3"]


def test_opset_seven_gets_the_marker_of_its_time():
    noises, _, graph = mark("m = RandomUniformLike <low: float = 0.5, high: float = 1.5> (x)\n y = Mul (x, m)", opset=7)
    assert noises == ["uout:0.5"]
    assert len(graph.nodes[0].inputs) == 1


def test_noise_in_a_subgraph_is_named():
    body = """c = ReduceMax <keepdims: int = 0> (x)
        q = Cast <to: int = 9> (c)
        y = If (q) <then_branch = t () => (float[N, 3, 4, 4] p) { p = RandomNormalLike (x) },
                    else_branch = e () => (float[N, 3, 4, 4] r) { r = Abs (x) }>"""
    noises, reasons, _ = mark(body)
    assert noises == []
    assert "subgraph of a control-flow node" in reasons[0]


def test_a_graph_without_random_numbers_is_not_touched():
    _, reasons, graph = mark("a = Mul (x, k)\n y = Add (a, k)", k=0.5)
    assert reasons == []
    assert [node.op for node in graph.nodes] == ["Mul", "Add"]


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 14, 15, 18, 21, 22, 25])
def test_a_mask_is_marked_at_every_opset(opset):
    noises, reasons, _ = mark(MASK + "s = Div (m, k)\n y = Mul (s, x)", opset=opset, k=0.7)
    assert (noises, reasons) == (["dropout:0.3"], [])


def test_dropout_of_ones_is_a_mask():
    body = """i = Shape <start: int = 0, end: int = 2> (x)
        j = Constant <value = int64[2] {1, 1}> ()
        s = Concat <axis: int = 0> (i, j)
        e = Expand (o, s)
        t = Cast <to: int = 9> (o)
        m = Dropout (e, r, t)
        y = Mul (x, m)"""
    noises, _, graph = mark(body, o=1.0, r=0.25)
    assert noises == ["feature-dropout:0.25"]
    assert len(graph.nodes) == 1


def test_half_precision_and_unknown_spatial_sizes():
    body = """(float16[N, 3, H, W] x) => (float16[N, 3, H, W] y) {
        u = RandomUniformLike (x)
        k = Constant <value_float: float = 0.7> ()
        h = Cast <to: int = 10> (k)
        b = Less (u, h)
        m = Cast <to: int = 10> (b)
        r = Constant <value_float: float = 1.4287> ()
        i = CastLike (r, x)
        s = Mul (m, i)
        y = Mul (x, s)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {body}')
    graph = import_graph(model)
    MarkDecomposedNoise()(graph)
    assert [str(read_marker(node)) for node in graph.nodes] == ["dropout:0.3"]
    onnx.checker.check_model(export_model(graph, model), full_check=True)


def test_two_inputs_and_outputs_unnamed_nodes_and_constants_upstream_of_identities(open_model):
    body = """(float[N, 4] x, float[N, 4] z) => (float[N, 4] y, float[N, 4] w, float[4] rm, float[4] rv) {
        k1 = Identity (k)
        k2 = Identity (k1)
        on = Constant <value = bool {1}> ()
        on1 = Identity (on)
        ux = RandomUniformLike (x)
        bx = Less (ux, k1)
        mx = Cast <to: int = 1> (bx)
        sx = Div (mx, k2)
        nx = Mul (x, sx)
        d, mask = Dropout (z, k2, on1)
        a = Add (nx, d)
        y, rm, rv = BatchNormalization <training_mode: int = 1> (a, g, g, m, v)
        w = Abs (nx)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 15]>\nmain {body}')
    rng = np.random.default_rng(3)
    weights = {name: rng.uniform(0.5, 2, 4).astype(np.float32) for name in "gmv"} | {"k": np.array(0.75, np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    graph = import_graph(model)
    deploy = PassPipeline(deployment_passes())
    assert deploy(graph).skipped == ()
    assert not deploy(graph).modified
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    x, z = rng.normal(size=(2, 5, 4)).astype(np.float32)
    found = open_model(after).run({"x": x, "z": z})
    g, m, v = (weights[name].astype(np.float64) for name in "gmv")
    assert list(found) == ["y", "w"]
    np.testing.assert_allclose(found["y"], g * (x + z - m) / np.sqrt(v + 1e-5) + g, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["w"], np.abs(x))
    assert [str(source.noise) for source in analyse_noise(graph).sources] == ["dropout:0.25", "dropout:0.75"]
