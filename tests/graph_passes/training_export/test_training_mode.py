from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import onnx.parser
import pytest
import torch
from torch import nn

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.noise.analysis import analyse_noise
from vsfix.graph_passes.training_export.training_mode import LeaveTrainingMode


def network(**options) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout(0.3), nn.BatchNorm2d(4, **options), nn.ReLU(), nn.Flatten(1), nn.Linear(36, 5)
    ).train()
    with torch.no_grad():
        model(2 * torch.randn(64, 3, 5, 5) + 1)
    return model


def export(model: nn.Module, *, dynamo: bool, **options) -> onnx.ModelProto:
    """The model in training form, by either exporter of torch."""
    options |= {"training": torch.onnx.TrainingMode.TRAINING, "dynamo": dynamo, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            return torch.onnx.export(model, (torch.zeros(2, 3, 5, 5),), **options).model_proto
        buffer = io.BytesIO()
        torch.onnx.export(model, (torch.zeros(2, 3, 5, 5),), buffer, input_names=["input"], **options)
    return onnx.load_from_string(buffer.getvalue())


def deploy(model: onnx.ModelProto) -> tuple[onnx.ModelProto, object]:
    """Applies the pass; the checker passes, and a second run is idle."""
    graph = import_graph(model)
    result = LeaveTrainingMode()(graph)
    assert not LeaveTrainingMode()(graph).modified
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    return after, result


def text(body: str, opset: int, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX text with two channels of BatchNorm parameters g, b, m, v."""
    weights = {**{name: np.array([0.5, 2.0], np.float32) for name in "gbmv"}, **weights}
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain {body}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


@pytest.mark.parametrize(
    ("dynamo", "options"),
    [
        *((False, {"opset_version": opset}) for opset in (9, 11, 12, 13, 14, 17, 20)),
        (True, {"optimize": True}),
        (True, {"optimize": False}),
    ],
)
def test_a_training_export_of_torch_becomes_what_eval_computes(dynamo, options, open_model):
    model = network()
    exported = export(model, dynamo=dynamo, **options)
    after, _ = deploy(exported)
    stored = {
        initializer.name: onnx.numpy_helper.to_array(initializer)
        for initializer in exported.graph.initializer
        if "running" in initializer.name
    }
    model.load_state_dict({name: torch.tensor(value) for name, value in stored.items()}, strict=False)
    images = torch.randn(2, 3, 5, 5)
    expected = model.eval()(images).detach().numpy()
    (found,) = open_model(after).run({"input": images.numpy()}).values()
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    noise = analyse_noise(import_graph(after))
    assert [str(source.noise) for source in noise.sources] == ["dropout:0.3"]
    assert len(noise.reached) == 1


def test_leaving_the_batch_statistics_in_would_be_noticed(open_model):
    """The planted mistake: only the Dropout is switched off."""
    exported = export(network(), dynamo=False, opset_version=17)
    right, _ = deploy(exported)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(exported)
    for node in wrong.graph.node:
        if node.op_type == "Constant" and node.output[0] == "/1/Constant_1_output_0":
            node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array(False)))
    images = {"input": torch.randn(2, 3, 5, 5).numpy()}
    runs = [next(iter(open_model(model).run(images).values())) for model in (right, wrong)]
    assert np.abs(runs[0] - runs[1]).max() > 0.05


def test_what_changed_is_named_and_the_rest_is_byte_equal():
    exported = export(network(), dynamo=False, opset_version=17)
    after, result = deploy(exported)
    assert [change.subject for change in result.changed] == ["/1/Dropout", "/2/BatchNormalization"]
    untouched = [
        [node for node in model.graph.node if node.op_type in ("Conv", "Relu", "Flatten", "Gemm")]
        for model in (exported, after)
    ]
    assert [node.input for node in untouched[0]] == [node.input for node in untouched[1]]
    weights = [
        {w.name: onnx.numpy_helper.to_array(w).tobytes() for w in model.graph.initializer}
        for model in (exported, after)
    ]
    assert weights[0].items() <= weights[1].items()


def test_running_statistics_among_the_outputs_go():
    body = "(float[N, 2] x) => (float[N, 2] y, float[2] rm, float[2] rv) { y, rm, rv = BatchNormalization <training_mode: int = 1> (x, g, b, m, v) }"
    after, result = deploy(text(body, 15))
    assert [output.name for output in after.graph.output] == ["y"]
    assert result.changed[0].action.endswith("the graph's output rm, rv is gone")


def test_running_statistics_that_a_node_reads_keep_the_training_form():
    body = """(float[N, 2] x) => (float[N, 2] y, float[2] z) {
        y, rm, rv = BatchNormalization <training_mode: int = 1> (x, g, b, m, v)
        z = Abs (rm)
    }"""
    after, result = deploy(text(body, 15))
    assert not result.modified
    assert "updated statistics" in result.skipped[0].reason
    with pytest.raises(ModelError, match="training form"):
        find_batch_norms(import_graph(after))


def test_a_batch_norm_without_stored_statistics_stays_and_says_why():
    _, result = deploy(export(network(track_running_stats=False), dynamo=False, opset_version=17))
    assert [change.subject for change in result.changed] == ["/1/Dropout"]
    assert "track_running_stats" in result.skipped[0].reason


def test_five_outputs_of_an_old_opset_become_one():
    after, _ = deploy(
        text("(float[N, 2] x) => (float[N, 2] y) { y, a, c, d, e = BatchNormalization (x, g, b, m, v) }", 9)
    )
    assert list(after.graph.node[0].output) == ["y"]


def test_the_oldest_opsets_are_switched_by_is_test():
    body = "(float[N, 2] x) => (float[N, 2] y) { d = Dropout <ratio: float = 0.25> (x)\n y, a, c, e, f = BatchNormalization (d, g, b, m, v) }"
    graph = import_graph(text(body, 6))
    assert len(LeaveTrainingMode()(graph).changed) == 2
    assert [node.attrs["is_test"] for node in graph.nodes] == [1, 1]
    assert not LeaveTrainingMode()(graph).modified


def test_a_dropout_before_opset_twelve_is_in_inference_form_already():
    _, result = deploy(text("(float[N, 2] x) => (float[N, 2] y) { y = Dropout <ratio: float = 0.25> (x) }", 10))
    assert result == type(result)("leave training mode")


def test_an_input_that_switches_the_dropout_goes():
    after, result = deploy(
        text("(float[N, 2] x, bool t) => (float[N, 2] y) { y = Dropout (x, r, t) }", 13, r=np.array(0.25, np.float32))
    )
    assert [tensor.name for tensor in after.graph.input] == ["x"]
    assert "'t'" in result.changed[0].action


def test_a_mask_that_is_read_keeps_the_dropout_on():
    body = (
        "(float[N, 2] x) => (float[N, 2] y) { d, k = Dropout (x, r, t)\n f = Cast <to: int = 1> (k)\n y = Mul (x, f) }"
    )
    _, result = deploy(text(body, 13, r=np.array(0.25, np.float32), t=np.array(True)))
    assert not result.modified
    assert "mask" in result.skipped[0].reason


def test_training_form_in_a_subgraph_is_left_too():
    body = """(float[N, 2] x, bool c) => (float[N, 2] y) {
        y = If (c) <then_branch = p () => (float[N, 2] a) { a = Dropout (x, r, t) },
                    else_branch = q () => (float[N, 2] e) { e, s, u = BatchNormalization <training_mode: int = 1> (x, g, b, m, v) }>
    }"""
    after, result = deploy(text(body, 15, r=np.array(0.25, np.float32), t=np.array(True)))
    assert sorted(change.subject for change in result.changed) == ["a", "e"]
    assert "training_mode" not in onnx.printer.to_text(after).replace(".training_mode", "")


def test_a_fresh_batch_norm_is_pointed_out():
    fresh = {"m": np.zeros(2, np.float32), "v": np.ones(2, np.float32)}
    body = (
        "(float[N, 2] x) => (float[N, 2] y) { y, a, c = BatchNormalization <training_mode: int = 1> (x, g, b, m, v) }"
    )
    _, result = deploy(text(body, 15, **fresh))
    assert "never been trained" in result.changed[0].action
