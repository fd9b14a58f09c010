from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

from tests.graph_passes.noise_inference.planted_network import make_images, make_model, make_weights, plant
from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.noise.analysis import analyse_noise
from vsfix.graph_passes.noise.marker import EXPORT_METADATA_KEY, RemoveMarkers
from vsfix.graph_passes.precision.precision import CastPrecision
from vsfix.pipeline.inspection.preparation import REPAIR_KEY, prepare_model
from vsfix.pipeline.repair.plan import plan_repair
from vsfix.pipeline.repair.repair import prepare
from vsfix.pipeline.repair.repair_config import RepairConfig


def choose(model, batches, open_model, **options):
    config = RepairConfig(**options)
    return plan_repair(prepare_model(model, config.noise), batches, open_model, config)


@pytest.fixture
def batches():
    rng = np.random.default_rng(5)
    return [{"x": rng.normal(0.3, 1.2, (64, 3, 8, 8)).astype(np.float32)} for _ in range(5)]


def planted(noise) -> onnx.ModelProto:
    """Three blocks whose statistics were made under `noise` upstream of the second BatchNorm of each; no marker."""
    weights = make_weights(seed=0)
    return make_model(plant(weights, make_images(2000, seed=1), "a", noise))


def dropout(t: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.dropout(t, 0.4)


@pytest.fixture
def blobs():
    return [{"x": make_images(400, seed=2)}]


def test_marked_noise_is_averaged_over_with_data_and_without(residual, batches, open_model):
    for data in (batches, []):
        plan = choose(residual, data, open_model)
        assert (plan.method, plan.warnings) == ("auto", ())
        assert "where the noise was" in plan.reason


def test_an_export_that_vouches_for_no_noise_is_believed(residual, batches, open_model):
    graph = import_graph(residual)
    RemoveMarkers()(graph)
    healthy = export_model(graph, residual, {EXPORT_METADATA_KEY: "0"})
    assert choose(healthy, batches, open_model).method == "none"


def test_lost_noise_is_inferred_and_put_back(blobs, open_model):
    torch.manual_seed(0)
    prepared = prepare_model(planted(dropout))
    plan = plan_repair(prepared, blobs, open_model, RepairConfig())
    assert plan.method == "auto", plan
    assert not analyse_noise(prepared.graph).sources  # a plan changes nothing
    marked = prepared.with_noise(plan.noise)
    sources = analyse_noise(marked.graph).sources
    assert [source.noise.value for source in sources] == pytest.approx([0.4] * 3, abs=0.05)
    assert len(marked.changes) == len(prepared.changes) + 3


def test_a_healthy_file_is_left_alone_and_told_so(blobs, open_model):
    plan = choose(planted(lambda t: t), blobs, open_model)
    assert plan.method == "none"
    assert plan.warnings == ()
    assert "show no noise" in plan.reason


def test_statistics_that_no_noise_explains_are_left_with_the_way_out(residual, batches, open_model):
    graph = import_graph(residual)
    RemoveMarkers()(graph)
    plan = choose(export_model(graph, residual), batches, open_model)
    assert plan.method == "none"
    assert "--method exact --layers all" in plan.warnings[0] or "--noise" in plan.warnings[0]


def test_without_markers_and_without_data_nothing_can_be_said(residual, open_model):
    graph = import_graph(residual)
    RemoveMarkers()(graph)
    with pytest.raises(ModelError, match=r"--data.*--noise"):
        choose(export_model(graph, residual), [], open_model)


@pytest.mark.parametrize("method", ["match", "paired", "exact"])
def test_every_method_is_taken_without_data_too(residual, open_model, method):
    assert choose(residual, [], open_model, method=method).method == method


@pytest.mark.parametrize(
    ("method", "words"), [("stream", "take exact"), ("distill", "without --data the inputs are made from the model")]
)
def test_a_method_that_is_gone_says_what_took_its_place(method, words):
    with pytest.raises(InputError, match=f"method '{method}': .*{words}"):
        RepairConfig(method=method)


@pytest.mark.parametrize("method", ["paired", "exact", "analytic"])
def test_without_a_batch_norm_nothing_can_be_re_estimated(parse, open_model, method):
    body = "(float[N, 3] x) => (float[N, 2] y) { d = Dropout (x, r)\n y = MatMul (d, w) }"
    model = parse(body, {"w": np.ones((3, 2), np.float32), "r": np.float32(0.5)})
    with pytest.raises(InputError, match="re-estimates BatchNorms, and the model has none; take match"):
        choose(model, [{"x": np.eye(3, dtype=np.float32)}], open_model, method=method)
    assert choose(model, [{"x": np.eye(3, dtype=np.float32)}], open_model).method == "auto"


def test_a_method_that_is_asked_for_is_taken(residual, batches, open_model):
    for method in ("match", "exact", "paired", "analytic"):
        assert choose(residual, batches, open_model, method=method).method == method


def test_none_keeps_the_statistics_of_any_file(residual, open_model):
    stripped = import_graph(residual)
    RemoveMarkers()(stripped)
    for model in (residual, export_model(stripped, residual)):
        plan = choose(model, [], open_model, method="none")
        assert (plan.method, plan.reason) == ("none", "the parameters are kept, as was asked for")


def test_noise_that_fits_nothing_is_an_error(residual, batches, open_model):
    with pytest.raises(InputError, match="nowhere"):
        choose(residual, batches, open_model, noise=("nowhere=dropout:0.5",))


def test_noise_that_explains_a_part_alone_is_doubted(blobs, open_model):
    torch.manual_seed(0)
    weights = plant(make_weights(seed=0), make_images(2000, seed=1), "a", dropout)
    assert choose(make_model(weights), blobs, open_model).warnings == ()
    rng = np.random.default_rng(0)
    blurred = {
        name: array * rng.uniform(0.8, 1.25, array.shape).astype(array.dtype) if "var" in name else array
        for name, array in weights.items()
    }
    assert blurred.keys() == weights.keys()
    (warning,) = choose(make_model(blurred), blobs, open_model).warnings
    assert "say where it was with --noise" in warning


def test_a_file_that_says_it_was_repaired_is_not_repaired_again_though_it_marks_noise(residual, batches, open_model):
    """As a torch module that was repaired in place and exported with its noise layers."""
    told = export_model(import_graph(residual), residual, {REPAIR_KEY: '{"repaired": ["bn1"]}'})
    plan = choose(told, batches, open_model)
    assert (plan.method, plan.reason) == ("none", "vsfix repaired this file already (1 layers)")
    assert choose(told, batches, open_model, noise=("d1=dropout:0.5",)).method == "auto"
    assert choose(told, batches, open_model, method="match").method == "match"


def test_a_file_that_vsfix_folded_is_told_by_whether_it_was_repaired(parse, open_model):
    def folded(repaired, precision="fp32", **said):
        model = parse("(float[N, 3] x) => (float[N, 2] y) { y = MatMul (x, w) }", {"w": np.ones((3, 2), np.float32)})
        graph = import_graph(model)
        if precision != "fp32":
            CastPrecision(precision)(graph)
        return export_model(graph, model, {REPAIR_KEY: json.dumps({"repaired": repaired} | said)})

    def decide(model, **options):
        config = RepairConfig(**options)
        return plan_repair(prepare(model, config), [{"x": np.eye(3, dtype=np.float32)}], open_model, config)

    plan = decide(folded(["bn"]))
    assert (plan.method, plan.warnings) == ("none", ())
    assert "when it repaired this file" in plan.reason
    plan = decide(folded([]))
    assert plan.method == "none"
    assert "repaired none of this file" in plan.reason
    assert "give the file as it was before" in plan.warnings[0]
    plan = decide(folded([], healthy=True))
    assert (plan.method, plan.warnings) == ("none", ())
    assert "needed no repair when vsfix folded it" in plan.reason
    assert decide(folded([]), noise=("x=dropout:0.4",)).method == "auto"
    for repaired in ([], ["bn"]):
        with pytest.raises(ModelError, match="cast to fp16; take the float32 file"):
            decide(folded(repaired, "fp16"))
        assert decide(folded(repaired, "fp16"), method="none").method == "none"
