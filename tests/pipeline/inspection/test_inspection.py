from __future__ import annotations

import json

import numpy as np
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.measurement.measurement import measure
from vsfix.pipeline.inspection.diagnosis import judge_inspection
from vsfix.pipeline.inspection.inspection import InspectionConfig, inspect_graph, inspect_model
from vsfix.pipeline.inspection.noise_study import NoiseStudy
from vsfix.pipeline.inspection.preparation import REPAIR_KEY
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig


def test_without_data_the_noise_and_the_prediction_are_there(residual, open_model):
    inspection = inspect_graph(import_graph(residual), [], open_model)
    rows = {row.name: row for row in inspection.rows}
    assert [(row.noise, row.distance, row.sources) for row in rows.values()] == [
        ("dropout:0.5", "direct", 1),
        ("dropout:0.5", "direct", 2),
        ("dropout:0.5", "downstream", 2),
    ]
    stored = find_batch_norms(import_graph(residual))[0]
    v = 0.5 * (stored.variance + stored.mean**2) - stored.mean**2
    assert rows["bn1"].predicted_shift == pytest.approx(np.exp(np.log(v / stored.variance).mean()), rel=1e-12)
    assert rows["bn3"].predicted_shift is None
    assert all(row.measured_shift is None for row in rows.values())
    assert inspection.noise_sources == ("d1 dropout:0.5", "d2 dropout:0.5")
    assert inspection.samples == 0


def test_with_data_the_real_variance_is_compared_with_the_stored(residual, images, open_model):
    inspection = inspect_graph(import_graph(residual), [{"x": images}], open_model)
    weight = next(t for t in residual.graph.initializer if t.name == "conv1.weight")
    import onnx.numpy_helper
    import torch

    w = torch.tensor(onnx.numpy_helper.to_array(weight).astype(np.float64))
    real = torch.nn.functional.conv2d(torch.tensor(images.astype(np.float64)), w, padding=1).var(
        (0, 2, 3), correction=0
    )
    stored = find_batch_norms(import_graph(residual))[0].variance
    assert inspection.rows[0].measured_shift == pytest.approx(np.exp(np.log(real.numpy() / stored).mean()), rel=1e-5)
    assert inspection.samples == 60


def test_two_noise_layers_upstream_are_predicted_together(parse, open_model):
    body = """(float[N, 3] x) => (float[N, 3] y) {
        d = Dropout (x)
        e = Dropout (d)
        y = BatchNormalization (e, g, b, m, v)
    }"""
    weights = {"g": np.ones(3), "b": np.zeros(3), "m": np.zeros(3), "v": np.full(3, 4.0)}
    model = parse(body, {name: value.astype(np.float32) for name, value in weights.items()})
    (row,) = inspect_graph(import_graph(model), [], open_model).rows
    assert row.predicted_shift == pytest.approx(0.25)


def test_a_file_without_markers_and_without_data_says_so(parse, open_model):
    weights = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, g, b, m, v) }", weights)
    (warning,) = inspect_model(model, [], open_model).warnings
    assert "marks no noise layer" in warning
    x = np.random.default_rng(0).normal(1, 1, (400, 3)).astype(np.float32)
    told = inspect_model(model, [{"x": x}], open_model)
    assert told.warnings == ()
    assert "no noise" in told.inferred.lower()


def test_a_file_in_training_form_is_shown_as_it_would_be_deployed(parse, open_model):
    weights = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}
    weights |= {"r": np.float32(0.5), "t": np.array(True)}
    body = "(float[N, 3] x) => (float[N, 3] y) { d = Dropout (x, r, t)\n y = BatchNormalization (d, g, b, m, v) }"
    inspection = inspect_model(parse(body, weights), [], open_model)
    assert [row.noise for row in inspection.rows] == ["dropout:0.5"]
    assert len(inspection.prepared) == 1


def test_data_with_another_mean_is_told_even_where_noise_reaches_every_batch_norm(residual, images, open_model):
    graph = import_graph(residual)
    first = find_batch_norms(graph)[0]
    real = measure(graph, [{"x": images}], open_model)["bn1"]
    first.with_statistics(real.mean, 2 * real.variance)
    assert inspect_graph(graph, [{"x": images}], open_model).warnings == ()
    *_, warning = inspect_graph(graph, [{"x": images + 20}], open_model).warnings
    assert "deviations from the stored" in warning


@pytest.mark.parametrize("scale", [255, 1 / 255])
def test_data_of_another_scale_is_told_by_what_the_noise_upstream_explains(residual, images, open_model, scale):
    graph = import_graph(residual)
    first = find_batch_norms(graph)[0]
    real = measure(graph, [{"x": images}], open_model)["bn1"]
    # As training with Dropout 0.5 stores it: the second moment twice, less the square of the mean.
    first.with_statistics(real.mean, 2 * real.variance + real.mean**2)
    seen = inspect_graph(graph, [{"x": images}], open_model)
    assert seen.warnings == ()
    assert seen.rows[0].unexplained == pytest.approx(1, abs=0.1)
    other_data = inspect_graph(graph, [{"x": scale * images}], open_model)
    assert other_data.rows[0].unexplained == pytest.approx(255**2, rel=0.2)
    assert "from what its noise, dropout:0.5, explains" in other_data.warnings[0]


def test_copies_of_a_few_samples_are_refused(residual, images, open_model):
    copies = [{"x": np.repeat(images[:4], 8, axis=0)}, {"x": images[:3]}]
    with pytest.raises(DataError, match="only 4 of the 35 samples differ"):
        inspect_model(residual, copies, open_model)
    inspect_model(residual, [{"x": images[:3]}], open_model)  # few, but no copies


def test_weights_that_no_repair_makes_deployable_are_named(parse, open_model):
    weights = {name: np.ones(3, np.float32) for name in "gbmv"}
    weights["v"][1] = -0.5
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, g, b, m, v) }", weights)
    found = inspect_model(model, [], open_model)
    assert judge_inspection(found)[0] == "FAIL"
    assert "channel 1: 1 value is NaN" in found.defect
    weights["v"][1] = 0.5
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, g, b, m, v) }", weights)
    assert inspect_model(model, [], open_model).defect == ""


def test_other_data_data_is_told_apart_from_a_shift(parse, open_model):
    weights = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, g, b, m, v) }", weights)
    x = np.random.default_rng(0).normal(1, 9, (400, 3)).astype(np.float32)
    other_data = inspect_graph(import_graph(model), [{"x": x}], open_model)
    assert any("is it the data of the training" in warning for warning in other_data.warnings)


def test_the_range_of_the_gains_is_that_of_the_formula_and_what_float16_can_t_hold_is_counted(parse, open_model):
    values = {"g": [2.0, -3.0, 1.0, 1.0], "b": [0.0] * 4, "m": [0.0, 0.0, 9e5, 0.0], "v": [4.0, 4.0, 100.0, 1e-12]}
    weights = {name: np.array(row, np.float32) for name, row in values.items()}
    model = parse(
        "(float[N, 4] x) => (float[N, 4] y) { y = BatchNormalization <epsilon: float = 0.0> (x, g, b, m, v) }", weights
    )
    (row,) = inspect_graph(import_graph(model), [], open_model).rows
    assert row.gain_low == pytest.approx(0.1)
    assert row.gain_high == pytest.approx(1e6)
    assert row.beyond_fp16 == 2  # a shift of 90,000, a gain of a million


def test_a_file_in_which_vsfix_folded_every_batch_norm_is_told_from_a_bad_export(call, onnx_path, tmp_path):
    repaired = tmp_path / "repaired.onnx"
    assert call("optimize", onnx_path, "-o", repaired, "--data", "digits", "--samples", 32).exit_code == 0
    result = call("inspect", repaired)
    assert result.exit_code == 2
    assert result.stderr.endswith("no BatchNorm is left to look at: vsfix folded them all when it wrote this file\n")


def test_the_distance_to_the_averaged_network_is_that_of_a_repair_on_the_same_samples(settled, images, open_model):
    found = inspect_model(settled, [{"x": images}], open_model)
    repaired = repair_model(settled, [{"x": images}], open_model, RepairConfig(refine=False)).report
    assert found.severity == repaired.severity
    assert found.severity.ratio > 1
    assert found.outputs == repaired.outputs
    assert found.stored == ()
    assert judge_inspection(found)[0] == "WARN"
    fewer = inspect_model(settled, [{"x": images}], open_model, averaged_on=[{"x": images[:20]}])
    assert fewer.severity.samples == 20
    assert fewer.samples == 60


def test_the_distance_is_unknown_without_data_and_where_no_noise_is_known(settled, images, open_model):
    assert inspect_model(settled, [], open_model).severity is None
    bare = inspect_graph(import_graph(settled), [{"x": images}], open_model)
    assert bare.severity is None


def test_why_no_distance_can_be_had_is_a_warning(settled, images, open_model):
    found = inspect_model(settled, [{"x": images[:1]}], open_model)
    assert found.severity is None
    assert any("is unknown: 1 sample" in warning for warning in found.warnings)


def test_statistics_that_are_not_those_under_the_noise_are_found(residual, images, open_model):
    found = inspect_model(residual, [{"x": images}], open_model)
    study = NoiseStudy.of(import_graph(residual), [{"x": images}], open_model, 0, {})
    assert found.stored == tuple(row for row in study.stored if row.differs) != ()
    assert "The noise is not the only fault" in judge_inspection(found)[1]


MATRIX = "(float[N, 6] x) => (float[N, 2] y) { h = MatMul (x, w)\n r = Relu (h)\n y = MatMul (r, u) }"


@pytest.fixture
def plain(parse):
    """Two linear layers, no BatchNorm and no noise."""
    rng = np.random.default_rng(3)
    return parse(MATRIX, {"w": rng.normal(0, 1, (6, 9)).astype(np.float32), "u": np.ones((9, 2), np.float32)})


def test_a_file_without_batch_norm_is_looked_at_where_its_noise_is_named(plain, open_model):
    x = np.random.default_rng(4).normal(0, 1, (64, 6)).astype(np.float32)
    config = InspectionConfig(noise=("h=dropout:0.5",), output_kinds={"y": "values"})
    found = inspect_model(plain, [{"x": x}], open_model, config)
    assert found.rows == ()
    assert found.noise_sources != ()
    assert found.severity is not None
    assert found.outputs[0].startswith("y: values")
    status, verdict = judge_inspection(found)
    assert (status, verdict.startswith("Nothing to repair")) == ("PASS", True) or verdict.startswith("Damaged: R = ")
    with pytest.raises(InputError):
        inspect_model(plain, [{"x": x}], open_model, InspectionConfig(noise=("nowhere=dropout:0.5",)))


def test_the_command_says_how_outputs_are_read_and_writes_the_distance(call, onnx_path, tmp_path):
    found = tmp_path / "found.json"
    arguments = ("inspect", onnx_path, "--data", "digits", "--samples", 64, "--json", found)
    result = call(*arguments, "--output-kind", "logits=values")
    assert result.exit_code == 0, result.output
    assert "output logits: values" in result.stdout
    written = json.loads(found.read_text())
    assert written["severity"]["samples"] == 64
    assert written["outputs"][0].startswith("logits: values")
    assert result.stdout.splitlines()[-1] == f"{written['status']} {written['verdict']}"
    assert f"R = {written['severity']['ratio']:.2f}" in written["verdict"]


def test_the_command_reads_the_same_samples_as_a_repair(call, onnx_path, tmp_path):
    seen = {}
    for command, more in (("inspect", ()), ("optimize", ("--dry-run", "--no-refine"))):
        path = tmp_path / f"{command}.json"
        result = call(command, onnx_path, "--data", "digits", "--json", path, *more)
        assert result.exit_code == 0, result.output
        seen[command] = json.loads(path.read_text())["severity"]
    assert seen["inspect"] == seen["optimize"]


def test_the_noise_of_a_file_that_says_it_was_repaired_is_no_damage(residual, open_model):
    told = export_model(import_graph(residual), residual, {REPAIR_KEY: '{"repaired": ["bn1"]}'})
    found = inspect_model(told, [], open_model)
    assert found.noise_sources == ()
    assert "vsfix repaired this file already" in found.warnings[0]
    assert judge_inspection(found)[0] == "WARN"
    assert inspect_model(told, [], open_model, InspectionConfig(noise=("d1=dropout:0.5",))).noise_sources


@pytest.mark.parametrize("is_true", [True, False])
def test_noise_that_a_person_says_is_held_against_the_statistics(parse, open_model, is_true):
    rng = np.random.default_rng(3)
    weight, x = rng.normal(size=(6, 24)).astype(np.float32), rng.normal(1, 1, (400, 6)).astype(np.float32)
    h = (x @ weight).astype(np.float64)
    square = (h**2).mean(axis=0)
    variance = h.var(axis=0) + (square if is_true else 0)  # under Dropout 0.5: (c^2 + v) / p - c^2
    model = parse(
        """(float[N, 6] x) => (float[N, 24] y) {
            h = MatMul (x, w)
            n = BatchNormalization (h, g, b, m, v)
            y = Relu (n)
        }""",
        {
            "w": weight,
            "g": np.ones(24, np.float32),
            "b": np.zeros(24, np.float32),
            "m": h.mean(axis=0).astype(np.float32),
            "v": variance.astype(np.float32),
        },
    )
    config = InspectionConfig(noise=("n=dropout:0.5",), output_kinds={"y": "values"})
    found = inspect_model(model, [{"x": x}], open_model, config)
    assert any("contradicts the file" in warning for warning in found.warnings) is not is_true


def test_statistics_that_were_never_set_are_no_pass_without_data_either(parse, open_model):
    body = "(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, s, b, m, v) }"
    rng, one, zero = np.random.default_rng(0), np.ones(3, np.float32), np.zeros(3, np.float32)
    numbers = {"s": rng.normal(size=3).astype(np.float32), "b": rng.normal(size=3).astype(np.float32)}
    unset, known = (inspect_model(parse(body, numbers | {"m": m, "v": one}), [], open_model) for m in (zero, one))
    status, verdict = judge_inspection(unset)
    assert status == "WARN"
    assert "1 of 1 BatchNorms store mean 0 and variance 1 exactly ('y' the first)" in verdict
    assert "never set" not in judge_inspection(known)[1]
