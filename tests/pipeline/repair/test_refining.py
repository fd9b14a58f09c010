"""The refinement of what a match found: on which outputs, and how many steps it takes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx_graphsurgeon as gs
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from vsfix.graph_passes.estimators.refinement_cost import CHEAP, LARGEST, STEPS
from vsfix.graph_passes.io.model_file import read_model
from vsfix.pipeline.repair.refining import cost_of, refusal
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.trainers.export.onnx_export import export_onnx

MATCH = RepairConfig(method="match")


def repaired(form: str, path, open_model):
    """A perceptron on each of the 8 rows of a sample, its output (N T, C), (T, N, C) or (N, T, C); its repair."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(
            nn.Linear(10, 32), nn.Dropout(0.5), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
        )
        x = torch.randn(64, 8, 10)
    export_onnx(module.eval(), x[:2], path, output_name="y")
    model = read_model(path)
    if form != "samples first":
        node = helper.make_node("Transpose", ["y"], ["z"], perm=[1, 0, 2])
        if form == "rows":
            node = helper.make_node("Reshape", ["y", "rows"], ["z"])
            model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 3]), "rows"))
        model.graph.node.append(node)
        sides = ("m", 3) if form == "rows" else (8, "n", 3)
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, sides))
    return repair_model(model, [{"input": 4 * x.numpy()}], open_model, MATCH)


@pytest.mark.long
def test_several_rows_of_a_sample_are_refined_as_positions_of_it_are(tmp_path, open_model):
    rows, positions = (
        repaired(form, tmp_path / f"{number}.onnx", open_model).report
        for number, form in enumerate(("rows", "samples first"))
    )
    assert [row.name for row in rows.candidates] == ["as trained", "match", "match+refine"]
    assert not any("not refined" in line for line in rows.warnings)
    for one, other in zip(rows.candidates, positions.candidates, strict=True):
        assert one.severity == pytest.approx(other.severity, rel=1e-2, abs=1e-3)


def test_what_can_not_be_refined_keeps_its_match_and_says_why(tmp_path, open_model):
    report = repaired("time first", tmp_path / "m.onnx", open_model).report
    assert [row.name for row in report.candidates] == ["as trained", "match"]
    assert any("the match was not refined: " in line for line in report.warnings)
    assert report.severity_after is not None


def study(inner: int, given: int) -> SimpleNamespace:
    """64 samples, one layer of `inner` multiplications a sample, and an output of `given` numbers."""
    x, y = gs.Variable("x"), gs.Variable("y")
    graph = gs.Graph([gs.Node("MatMul", inputs=[x, gs.Constant("w", np.ones((inner, 1)))], outputs=[y])], [x], [y])
    average = SimpleNamespace(shapes={"x": (64, inner), "y": (64, 1)})
    reference = SimpleNamespace(outputs={"y": None})
    return SimpleNamespace(
        graph=graph,
        average=average,
        first_size=64,
        samples=range(64),
        reference=reference,
        outputs={"y": SimpleNamespace(size=64 * given)},
    )


def test_the_steps_follow_from_the_multiplications_and_from_the_size_of_the_outputs():
    assert cost_of(study(10_000, 10)).steps == STEPS[1]
    assert cost_of(study(10_000_000, 10)).steps == pytest.approx(CHEAP / (64 * 3e7), abs=1)
    assert STEPS[0] < cost_of(study(10_000, 100_000)).steps < STEPS[1]
    assert cost_of(study(10_000, 10_000_000)).steps == STEPS[0]


def test_a_large_output_alone_can_cost_too_much():
    assert refusal(study(10_000, 1_000), RepairConfig()) is None
    too_much = study(10, round(1.1 * LARGEST / (100 * 64 * 50)))
    assert "its steps take 4e+12 multiplications" in str(refusal(too_much, RepairConfig()))
    assert refusal(too_much, RepairConfig(refine=True)) is None


def test_memory_that_torch_alone_would_fill_leaves_the_match_as_it_is():
    little = RepairConfig(max_memory=300 << 20)
    assert "torch takes a --max-memory of 512M" in str(refusal(study(10_000, 1_000), little))
    assert refusal(study(10_000, 1_000), RepairConfig(max_memory=300 << 20, refine=True)) is None
