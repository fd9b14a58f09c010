from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, measure
from vsfix.graph_passes.noise.analysis import Distance, TracedPath, analyse_noise, traced_path
from vsfix.graph_passes.noise.propagation import PassedNode

BN = {name: np.ones(2, np.float32) for name in ("g", "b", "m", "v")}
CONSTANTS = {
    **BN,
    "w": np.ones((2, 2, 1, 1), np.float32),
    "k": np.ones((2, 2), np.float32),
    "shape": np.array([0, 2, -1]),
    "two": np.array([2.0], np.float32),
}


def reach(middle: str, *, noisy: str = "d") -> tuple[Distance, ...]:
    """The distances at which noise on `d` reaches the BatchNorm downstream of `middle`, which writes `h` from `d` and `x`."""
    body = f"""(float[N, 2, 4, 4] x) => (y) {{
        a = Abs (x)
        {noisy} = Dropout (a)
        {middle}
        y = BatchNormalization (h, g, b, m, v)
    }}"""
    used = {
        name: value for name, value in CONSTANTS.items() if name in BN or f" {name}" in middle or f"({name}" in middle
    }
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {body}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in used.items())
    return tuple(path.distance for path in analyse_noise(import_graph(model)).reaching["y"])


@pytest.mark.parametrize(
    ("middle", "distance"),
    [
        ("h = Identity (d)", Distance.DIRECT),
        ("t = Transpose <perm: ints = [0, 1, 3, 2]> (d)\n h = Identity (t)", Distance.DIRECT),
        ("h = Reshape (d, shape)", Distance.DIRECT),
        ("h = Conv (d, w)", Distance.LINEAR),
        ("h = Add (d, x)", Distance.LINEAR),
        ("h = Concat <axis: int = 1> (d, x)", Distance.LINEAR),
        ("h = GlobalAveragePool (d)", Distance.LINEAR),
        ("h = Mul (d, two)", Distance.LINEAR),
        ("h = Mul (d, d)", Distance.DOWNSTREAM),
        ("h = MatMul (d, k)", Distance.LINEAR),
        ("h = MatMul (d, d)", Distance.DOWNSTREAM),
        ("h = Relu (d)", Distance.DOWNSTREAM),
        ("h = MaxPool <kernel_shape: ints = [2, 2]> (d)", Distance.DOWNSTREAM),
        ("n = BatchNormalization (d, g, b, m, v)\n h = Conv (n, w)", Distance.DOWNSTREAM),
        ("r = Relu (d)\n h = Add (r, d)", Distance.LINEAR),
        ("c = Conv (d, w)\n h = Identity (c)", Distance.LINEAR),
    ],
)
def test_distance_is_that_of_the_nearest_path(middle, distance):
    assert reach(middle) == (distance,)


@pytest.mark.parametrize(
    "middle",
    [
        "h = Relu (x)",
        "s = Shape (d)\n z = ConstantOfShape (s)\n h = Add (x, z)",
        "h = Conv (a, w)",
    ],
)
def test_what_noise_does_not_reach_has_no_path(middle):
    assert reach(middle) == ()


def test_noise_passes_through_the_subgraphs_of_an_if():
    middle = """c = ReduceMax <keepdims: int = 0> (x)
        q = Cast <to: int = 9> (c)
        h = If (q) <then_branch = t () => (float[N, 2, 4, 4] p) { p = Relu (d) },
                    else_branch = e () => (float[N, 2, 4, 4] r) { r = Abs (x) }>"""
    assert reach(middle) == (Distance.DOWNSTREAM,)


def test_every_source_is_named_with_its_path(residual):
    found = analyse_noise(import_graph(residual))
    assert [source.name for source in found.sources] == ["d1", "d2"]
    assert [(p.source.name, str(p.distance), p.through) for p in found.reaching["bn2"]] == [
        ("d2", "direct", ()),
        ("d1", "downstream", ("BatchNormalization", "Relu", "Conv", "Dropout")),
    ]
    assert found.reached == {"bn1", "bn2", "bn3"}


def test_the_reached_set_is_where_two_runs_with_noise_on_differ(residual, images, open_model):
    """The second way: run twice with noise on and see which BatchNorm inputs change."""
    residual.graph.node[1].op_type = "Identity"  # the first marker is gone: bn1 is out of reach
    del residual.graph.node[1].input[1:]
    graph = import_graph(residual)
    runs = [measure(graph, [{"x": images}], open_model, MeasurementConfig((), noise_seed=seed)) for seed in (1, 2)]
    differing = {name for name in runs[0] if not np.array_equal(runs[0][name].mean, runs[1][name].mean)}
    assert differing == analyse_noise(graph).reached == {"bn2", "bn3"}


def test_paths_can_be_asked_for_one_by_one(residual):
    paths = analyse_noise(import_graph(residual)).reaching["bn3"]
    assert [path.source.name for path in paths] == ["d2", "d1"]
    assert (len(paths), paths[-1].source.name, [path.source.name for path in paths[1:]]) == (2, "d1", ["d1"])
    assert paths.at(Distance.DOWNSTREAM) == tuple(paths)
    with pytest.raises(IndexError):
        paths[2]


def propagate_one_by_one(graph) -> dict[tuple[str, str], Distance]:
    """The second way: the noise of each marker alone, as a relaxation over the edges until nothing changes."""
    copies, linear, products = {"Identity", "Transpose", "Dropout"}, {"Add", "Mul"}, {"Mul"}
    found = {}
    for marker in [node for node in graph.nodes if node.op == "Dropout"]:
        distance = {marker.outputs[0].name: 0}
        for _ in graph.nodes:
            for node in graph.nodes:
                here = [distance[tensor.name] for tensor in node.inputs if tensor.name in distance]
                if not here or node.op == "Shape":
                    continue
                step = 0 if node.op in copies else 1 if node.op in linear else 2
                step = 2 if node.op in products and len(here) > 1 else step
                for tensor in node.outputs:
                    if tensor.name != marker.outputs[0].name:
                        distance[tensor.name] = max(min(here), step)
        for node in graph.nodes:
            if node.op == "BatchNormalization" and node.inputs[0].name in distance:
                found[node.outputs[0].name, marker.outputs[0].name] = Distance(distance[node.inputs[0].name])
    return found


@pytest.mark.parametrize("seed", range(8))
def test_one_sweep_finds_what_a_sweep_for_each_marker_finds(seed):
    rng = np.random.default_rng(seed)
    lines, names = [], ["x"]
    operators = ["Identity", "Transpose", "Relu", "Add", "Mul", "Dropout", "Dropout", "BatchNormalization"]
    for number in range(60):
        operator = rng.choice(operators)
        inputs = [str(name) for name in rng.choice(names[-6:], 2 if operator in ("Add", "Mul") else 1)]
        inputs += ["g", "b", "m", "v"] if operator == "BatchNormalization" else []
        lines.append(f"t{number} = {operator} ({', '.join(inputs)})")
        names.append(f"t{number}")
    body = f"main (float[2, 2] x) => (float[2, 2] t59) {{ {chr(10).join(lines)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{body}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in BN.items())
    graph = import_graph(model)
    found = {
        (name, path.source.tensor): path.distance
        for name, paths in analyse_noise(graph).reaching.items()
        for path in paths
    }
    assert found == propagate_one_by_one(graph)
    assert len(found) > 5


CONTROL = """c = ReduceMax <keepdims: int = 0> (x)
    q = Cast <to: int = 9> (c)
    one = Constant <value = int64 {3}> ()
"""
NORM = "BatchNormalization ({}, g, b, m, v)"


def control_flow(text: str):
    """The noise map of a graph of float[N, 2] with control flow."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]>\nmain (float[N, 2] x) => (float[N, 2] y) {{ {CONTROL} {text} }}'
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in BN.items())
    onnx.checker.check_model(model, full_check=True)
    return analyse_noise(import_graph(model))


def test_a_marker_in_a_branch_is_a_source_that_reaches_what_is_downstream():
    found = control_flow(f"""h = If (q) <then_branch = t () => (float[N, 2] p) {{ p = Dropout (x) }},
                                   else_branch = e () => (float[N, 2] r) {{ r = Abs (x) }}>
        y = {NORM.format("h")}""")
    (path,) = found.reaching["y"]
    assert (path.source.name, path.source.owner, path.distance, path.through) == (
        "p",
        "h",
        Distance.DOWNSTREAM,
        ("If",),
    )


def test_a_batch_norm_in_a_branch_has_its_own_answer():
    found = control_flow(f"""d = Dropout (x)
        y = If (q) <then_branch = t () => (float[N, 2] p) {{ f = Relu (d)\n p = {NORM.format("f")} }},
                    else_branch = e () => (float[N, 2] r) {{ r = {NORM.format("x")} }}>""")
    assert found.reaching == {}
    assert found.reached_in_subgraphs == {"y/p"}
    assert sorted(found.in_subgraphs) == ["y/p", "y/r"]
    assert [(path.distance, path.through) for path in found.in_subgraphs["y/p"]] == [(Distance.DOWNSTREAM, ("Relu",))]


def test_a_condition_made_of_noise_reaches_every_output():
    found = control_flow(f"""d = Dropout (x)
        n = ReduceMax <keepdims: int = 0> (d)
        k = Cast <to: int = 9> (n)
        h = If (k) <then_branch = t () => (float[N, 2] p) {{ p = Neg (x) }},
                    else_branch = e () => (float[N, 2] r) {{ r = Abs (x) }}>
        y = {NORM.format("h")}""")
    assert found.reached == {"y"}


LOOP = """y0, z0 = Loop (one, q, {first}, {second}) <body = l (int64 i, bool go, float[N, 2] a, float[N, 2] e)
            => (bool go_on, float[N, 2] a2, float[N, 2] e2) {{ go_on = Identity (go)\n {inside} }}>
        """


def test_noise_is_carried_from_round_to_round_of_a_loop():
    inside = f"n = {NORM.format('e')}\n e2 = Abs (a)\n a2 = Dropout (n)"
    found = control_flow(LOOP.format(first="x", second="x", inside=inside) + f"y = {NORM.format('z0')}")
    assert [path.source.owner for path in found.reaching["y"]] == ["y0"]
    assert found.reached_in_subgraphs == {"y0/n"}
    assert [path.through for path in found.in_subgraphs["y0/n"]] == [("Abs",)]


def test_the_carried_values_of_a_loop_stay_apart():
    inside = "a2 = Neg (a)\n e2 = Abs (e)"
    text = "d = Dropout (x)\n" + LOOP.format(first="d", second="x", inside=inside)
    assert control_flow(text + f"y = {NORM.format('y0')}").reached == {"y"}
    assert control_flow(text + f"y = {NORM.format('z0')}").reached == frozenset()


def test_noise_goes_through_a_scan():
    text = f"""d = Dropout (x)
        w, h = Scan (c, d) <num_scan_inputs: int = 1, body = s (float t, float[2] r) => (float t2, float[2] r2)
            {{ t2 = Abs (t)\n r2 = Neg (r) }}>
        y = {NORM.format("h")}"""
    assert control_flow(text).reached == {"y"}
    assert control_flow(text.replace("(c, d)", "(c, x)")).reached == frozenset()


def test_training_form_in_a_subgraph_is_refused():
    body = "p, s, u = BatchNormalization <training_mode: int = 1> (x, g, b, m, v)"
    with pytest.raises(ModelError, match="in the subgraph of 'y' is in training form"):
        control_flow(f"""y = If (q) <then_branch = t () => (float[N, 2] p) {{ {body} }},
                       else_branch = e () => (float[N, 2] r) {{ r = Abs (x) }}>""")


def test_a_path_can_be_traced_after_the_graph_has_changed(residual):
    graph = import_graph(residual)
    found = analyse_noise(graph)
    graph.nodes.clear()
    assert found.reaching["bn2"][1].through == ("BatchNormalization", "Relu", "Conv", "Dropout")


SLICED = """(float[N, 3] x) => (float[N, 2] y) <float[N, 3] d> {{
    d = Dropout (x)
    c = Concat <axis = {axis}> (x, d)
    s = Slice (c, start, end, along)
    y = BatchNormalization (s, g, b, m, v)
}}"""


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize(("start", "reached"), [(0, False), (1, False), (2, True), (4, True), (-2, True), (-5, False)])
def test_a_slice_that_leaves_out_the_noisy_part_of_a_concat_is_not_reached(parse, axis, start, reached):
    weights = {name: np.ones(2, np.float32) for name in "gbmv"}
    weights |= {"start": np.array([start]), "end": np.array([start + 2 if start != -2 else 9]), "along": np.array([1])}
    noise_map = analyse_noise(import_graph(parse(SLICED.format(axis=axis), weights)))
    assert (noise_map.reached == {"y"}) is reached


BETWEEN = """(float[N, 3] x, float[N, 1] z) => (float[N, 2] y) <float[N, 3] d, float[N, 6] c, float[N, 6] h, float[N, 6] k,
    float[N, 6] n, float[N, 6] e> {{
    d = Dropout (x)
    c = Concat <axis: int = 1> (x, d)
    {between}
    s = Slice (h, start, end, along)
    y = BatchNormalization (s, g, b, m, v)
}}"""
KEEPS_CHANNELS_APART = [
    "h = Relu (c)",
    "k = Sigmoid (c)\n h = Mul (c, k)",
    "n = BatchNormalization (c, six, six, six, six)\n h = Relu (n)",
    "k = Add (c, six)\n h = Slice (k, zero, ten, zero)",
    "e = Sum (c, c)\n h = Clip (e, low)",
]
MIXES_CHANNELS = [
    "h = MatMul (c, mix)",
    "k = MatMul (c, mix)\n n = Sigmoid (k)\n h = Mul (c, n)",
    "h = Softmax <axis: int = 1> (c)",
    "h = Dropout (c)",
    "k = Neg (c)\n h = Slice (k, five, lowest, one, back)",
]


@pytest.mark.parametrize(
    ("between", "reached"),
    [*((text, False) for text in KEEPS_CHANNELS_APART), *((text, True) for text in MIXES_CHANNELS)],
)
def test_a_slice_is_followed_through_what_keeps_channels_apart_and_no_farther(parse, between, reached):
    weights = {name: np.ones(2, np.float32) for name in "gbmv"} | {"six": np.ones(6, np.float32)}
    weights |= {"mix": np.ones((6, 6), np.float32), "low": np.array(-1, np.float32)}
    numbers = {"start": 0, "end": 2, "along": 1, "zero": 0, "ten": 10, "five": 5, "one": 1, "lowest": -9, "back": -1}
    weights |= {name: np.array([number]) for name, number in numbers.items()}
    model = parse(BETWEEN.format(between=between), weights)
    assert (analyse_noise(import_graph(model)).reached >= {"y"}) is reached


def test_a_slice_takes_the_part_that_is_noisy_at_the_distance_of_what_lies_between(parse):
    weights = {name: np.ones(2, np.float32) for name in "gbmv"}
    weights |= {"start": np.array([4]), "end": np.array([6]), "along": np.array([1])}
    for between, distance in (("h = Neg (c)", Distance.LINEAR), ("h = Relu (c)", Distance.DOWNSTREAM)):
        (path,) = analyse_noise(import_graph(parse(BETWEEN.format(between=between), weights))).reaching["y"]
        assert path.distance is distance


BROADCASTS = {
    "a constant that adds an axis": """(float[N, 3] x) => (float[1, 2, 6] y) <float[N, 3] d, float[N, 6] c> {
        d = Dropout (x)
        c = Concat <axis: int = 1> (x, d)
        h = Add (c, cube)
        s = Slice (h, zero, two, one)
        y = BatchNormalization (s, g, b, m, v)
    }""",
    "a noisy channel that is broadcast to all": """(float[N, 3] x, float[N, 1] z) => (float[N, 2] y)
        <float[N, 1] d, float[N, 1] e, float[N, 6] c, float[N, 6] h> {
        d = Dropout (z)
        e = Concat <axis: int = 1> (d)
        c = Concat <axis: int = 1> (x, x)
        h = Mul (c, e)
        s = Slice (h, four, six, one)
        y = BatchNormalization (s, g, b, m, v)
    }""",
}


@pytest.mark.parametrize("body", BROADCASTS.values(), ids=BROADCASTS.keys())
def test_a_broadcast_is_not_taken_for_the_same_channels(parse, body):
    weights = {name: np.ones(2, np.float32) for name in "gbmv"} | {"cube": np.ones((1, 1, 1), np.float32)}
    numbers = {"zero": 0, "one": 1, "two": 2, "four": 4, "six": 6}
    weights |= {name: np.array([number]) for name, number in numbers.items()}
    assert analyse_noise(import_graph(parse(body, weights))).reached == {"y"}


def traced(model: onnx.ModelProto, name: str) -> list[TracedPath]:
    """Every path to one BatchNorm, the nearest first."""
    graph = import_graph(model)
    (batch_norm,) = (found for found in find_batch_norms(graph) if found.name == name)
    return [traced_path(graph, batch_norm, path) for path in analyse_noise(graph).reaching[name]]


def shortest(model: onnx.ModelProto, start: str, end: str) -> int:
    """The second way: the number of nodes between two tensors, by breadth first over the file."""
    steps, reached = 0, {start}
    while end not in reached:
        reached |= {out for node in model.graph.node if reached & set(node.input) for out in node.output}
        steps += 1
        assert steps < 99
    return steps


def test_a_layer_directly_upstream_has_nothing_between(residual):
    path = traced(residual, "bn2")[0]
    assert (path.source, path.noise, path.distance, path.batch_norm) == ("d2", "dropout:0.5", "direct", "bn2")
    assert path.before == (PassedNode("Conv", "c2"),)
    assert path.through == ()
    assert path.behind == (PassedNode("Relu", "r2"),)


@pytest.mark.parametrize(
    ("name", "source"), [("bn1", "d1"), ("bn2", "d1"), ("bn2", "d2"), ("bn3", "d1"), ("bn3", "d2")]
)
def test_the_path_is_as_short_as_any_and_each_node_reads_the_one_before(residual, name, source):
    (path,) = (path for path in traced(residual, name) if path.source == source)
    (target,) = (node.input[0] for node in residual.graph.node if f"{name}.weight" in node.input)
    assert len(path.through) == shortest(residual, source, target)
    nodes = {node.output[0]: node for node in residual.graph.node}
    at = source
    for passed in path.through:
        assert at in nodes[passed.name].input
        assert passed.operator == nodes[passed.name].op_type
        at = passed.name
    assert at == target


def test_noise_on_an_input_has_nothing_upstream_and_every_consumer_downstream(parse):
    weights = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}
    body = """(float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
        d = Dropout (x)
        n = BatchNormalization (d, g, b, m, v)
        y = Relu (n)
        z = Abs (n)
    }"""
    (path,) = traced(parse(body, weights), "n")
    assert path.before == ()
    assert {node.operator for node in path.behind} == {"Relu", "Abs"}
