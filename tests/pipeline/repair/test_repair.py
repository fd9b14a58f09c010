from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.checker
import pytest
import torch

from vsfix.graph_passes.errors import CheckFailedError, InputError, ModelError
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_metadata
from vsfix.graph_passes.noise.marker import EXPORT_METADATA_KEY, REPAIR_KEY, RemoveMarkers
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig


def batches(images: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"x": part} for part in np.split(images, [25])]


def without_markers(model: onnx.ModelProto, metadata: dict[str, str] | None = None) -> onnx.ModelProto:
    graph = import_graph(model)
    RemoveMarkers()(graph)
    return export_model(graph, model, metadata)


@pytest.mark.parametrize("method", ["paired", "exact"])
def test_the_deployed_graph_has_no_marker_and_no_batch_norm_that_could_be_folded(residual, images, open_model, method):
    repair = repair_model(residual, batches(images), open_model, RepairConfig(method=method))
    onnx.checker.check_model(repair.model, full_check=True)
    operators = [node.op_type for node in repair.model.graph.node]
    assert "Dropout" not in operators
    assert operators.count("BatchNormalization") == 2
    reasons = [outcome.fold_reason for outcome in repair.report.batch_norms if not outcome.folded]
    assert reasons == [
        "the output of the upstream Conv is read 2 times; its output goes to Relu",
        "its input comes from Add, which is no linear layer; its output goes to Relu",
    ]


def test_the_deployed_graph_computes_what_torch_computes_with_the_same_statistics(residual, images, open_model):
    repair = repair_model(residual, batches(images), open_model, RepairConfig(method="exact"))
    found = open_model(repair.model).run({"x": images})["y"]
    w = {t.name: torch.tensor(onnx.numpy_helper.to_array(t).astype(np.float64)) for t in residual.graph.initializer}
    w |= {name: torch.tensor(values.astype(np.float64)) for name, values in repair.statistics.items()}

    def bn(t, name):
        return torch.nn.functional.batch_norm(
            t, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"]
        )

    conv, relu = torch.nn.functional.conv2d, torch.nn.functional.relu
    c1 = conv(torch.tensor(images.astype(np.float64)), w["conv1.weight"], padding=1)
    c2 = conv(relu(bn(c1, "bn1")), w["conv2.weight"], w["conv2.bias"], padding=1)
    c3 = conv(relu(bn(c2, "bn2")), w["conv3.weight"], padding=1)
    truth = (relu(bn(c3 + c1, "bn3")).mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]).numpy()
    snr = 10 * np.log10((truth**2).sum() / ((found - truth) ** 2).sum())
    assert snr > 100
    planted = 10 * np.log10((truth**2).sum() / ((found * 1.0001 - truth) ** 2).sum())
    assert planted < 100, "an error of a hundredth of a percent must be seen"


def test_after_an_exact_repair_every_batch_norm_stores_what_it_sees(residual, images, open_model):
    report = repair_model(residual, batches(images), open_model, RepairConfig(method="exact")).report
    assert [outcome.before.mismatch > 1.3 for outcome in report.batch_norms] == [True] * 3
    assert [outcome.after.mismatch for outcome in report.batch_norms] == pytest.approx([1.0] * 3, abs=5e-3)


@pytest.mark.long
def test_two_repairs_are_equal_bit_for_bit_and_the_seed_matters(settled, images, open_model):
    first, again, other = (
        repair_model(settled, batches(images), open_model, RepairConfig(seed=seed)).model.SerializeToString()
        for seed in (4, 4, 5)
    )
    assert first == again
    assert first != other


@pytest.mark.long
def test_the_input_is_not_changed(settled, images, open_model):
    before = settled.SerializeToString()
    repair_model(settled, batches(images), open_model, RepairConfig())
    assert settled.SerializeToString() == before


def test_without_folding_only_the_named_statistics_change(residual, images, open_model):
    repair = repair_model(
        residual, batches(images), open_model, RepairConfig(method="paired", layers="bn[12]", fold=False)
    )
    before = {tensor.name: tensor.raw_data for tensor in residual.graph.initializer}
    after = {tensor.name: tensor.raw_data for tensor in repair.model.graph.initializer}
    changed = {name for name, data in after.items() if before[name] != data}
    named = {f"{name}.running_{statistic}" for name in ("bn1", "bn2") for statistic in ("mean", "var")}
    assert set(repair.statistics) == named
    assert changed == named - {"bn1.running_mean"}, "unbiased noise directly in front does not move the mean"
    assert [outcome.repaired for outcome in repair.report.batch_norms] == [True, True, False]
    assert "does not match" in repair.report.batch_norms[2].action


def test_auto_matches_where_noise_is_marked_and_says_why(settled, images, open_model):
    report = repair_model(settled, batches(images), open_model, RepairConfig()).report
    assert report.method == "match+refine"
    assert report.severity.ratio > 8
    assert report.severity_after.ratio < 0.2 < 8 < report.severity_before.ratio
    assert "where the noise was" in report.method_reason


def test_the_repair_is_written_into_the_metadata(residual, images, open_model):
    model = repair_model(residual, batches(images), open_model, RepairConfig(method="exact")).model
    said = json.loads(read_metadata(model)[REPAIR_KEY])
    assert said["method"] == "exact"
    assert said["samples"] == 60
    assert said["repaired"] == ["bn1", "bn2", "bn3"]


def test_exact_alone_does_not_pass_over_a_file_that_has_lost_its_noise(residual, images, open_model):
    with pytest.raises(InputError, match="--layers all"):
        repair_model(without_markers(residual), [], open_model, RepairConfig(method="exact"))


def test_the_way_out_works(residual, images, open_model):
    config = RepairConfig(method="exact", layers="all")
    report = repair_model(without_markers(residual), batches(images), open_model, config).report
    assert all(outcome.repaired for outcome in report.batch_norms)


def test_a_network_that_was_exported_without_noise_is_left_as_it_is(residual, images, open_model):
    healthy = without_markers(residual, {EXPORT_METADATA_KEY: "0"})
    repair = repair_model(healthy, batches(images), open_model, RepairConfig(fold=False))
    assert repair.report.method == "none"
    assert repair.statistics == {}
    before = [tensor.SerializeToString() for tensor in healthy.graph.initializer]
    assert [tensor.SerializeToString() for tensor in repair.model.graph.initializer] == before


@pytest.mark.long
def test_a_second_repair_finds_nothing_to_repair(settled, images, open_model):
    onnx.helper.set_model_props(settled, {EXPORT_METADATA_KEY: "2"})
    once = repair_model(settled, batches(images), open_model, RepairConfig(fold=False))
    twice = repair_model(once.model, batches(images), open_model, RepairConfig(fold=False))
    assert twice.report.method == "none"
    assert not any(outcome.repaired for outcome in twice.report.batch_norms)


def test_a_model_without_batch_norm_is_refused_with_the_export_that_keeps_them(parse, open_model):
    model = parse("(float[N, 3] x) => (float[N, 2] y) { y = MatMul (x, w) }", {"w": np.ones((3, 2), np.float32)})
    with pytest.raises(ModelError, match=r"folded.*vsfix export"):
        repair_model(model, [{"x": np.eye(20, 3, dtype=np.float32)[:4]}], open_model, RepairConfig())


@pytest.mark.parametrize("method", ["exact", "analytic"])
def test_a_fold_that_goes_wrong_is_caught_before_anything_is_returned(
    residual, images, open_model, monkeypatch, method
):
    from vsfix.graph_passes.folding.linear_layer import LinearLayer

    monkeypatch.setattr(LinearLayer, "bias_values", lambda layer, bias: np.full(6, 0.1))
    data = batches(images) if method == "exact" else []  # without data, random numbers show it too
    with pytest.raises(CheckFailedError, match="folded graph differs"):
        repair_model(residual, data, open_model, RepairConfig(method=method))


def test_a_fold_that_goes_wrong_is_not_excused_where_a_rounding_leaves_no_number(
    residual, images, open_model, monkeypatch
):
    from vsfix.graph_passes.folding.linear_layer import LinearLayer

    monkeypatch.setattr(LinearLayer, "bias_values", lambda layer, bias: np.full(6, 0.1))
    monkeypatch.setattr("vsfix.pipeline.repair.repair.rounding_floor", lambda *_: -np.inf)
    with pytest.raises(CheckFailedError, match="folded graph differs"):
        repair_model(residual, batches(images), open_model, RepairConfig(method="exact"))


def test_a_handful_of_samples_is_repaired_with_a_warning(settled, images, open_model):
    few, enough = (repair_model(settled, [{"x": images[:n]}], open_model, RepairConfig()).report for n in (4, 8))
    assert any("rests on 4 samples" in warning for warning in few.warnings)
    assert not any("rests on" in warning for warning in enough.warnings)


def test_a_half_precision_model_is_repaired_and_folded(parse, open_model):
    rng = np.random.default_rng(0)
    body = """(float16[N, 3, 6, 6] x) => (float16[N, 4] y) {
        h = Conv (x, w)
        d = Dropout (h)
        n = BatchNormalization (d, g, b, m, v)
        r = Relu (n)
        p = GlobalAveragePool (r)
        y = Flatten (p)
    }"""
    w, x = (rng.normal(size=shape).astype(np.float16) for shape in ((4, 3, 3, 3), (64, 3, 6, 6)))
    power = (w.astype(np.float64) ** 2).sum((1, 2, 3))  # of h, whose mean is 0; Dropout 0.5 doubles it
    weights = {"g": np.ones(4), "b": np.full(4, 0.2), "m": np.zeros(4), "v": 2 * power}
    model = parse(body, {name: values.astype(np.float16) for name, values in weights.items()} | {"w": w})
    repair = repair_model(model, [{"x": x}], open_model, RepairConfig(method="match"))
    assert repair.report.severity_after.ratio < 0.05 < repair.report.severity_before.ratio
    assert [node.op_type for node in repair.model.graph.node][:2] == ["Conv", "Relu"]
    assert repair.report.fold_snr_db > 55


@pytest.mark.parametrize("options", [{"method": "magic"}, {"repeats": 0}, {"max_memory": -1}, {"layers": "nothing*"}])
def test_options_that_mean_nothing_are_refused(residual, images, open_model, options):
    with pytest.raises(InputError):
        repair_model(residual, batches(images), open_model, RepairConfig(**options))


def test_each_row_says_what_was_estimated_and_how_surely(residual, images, open_model):
    config = RepairConfig(method="paired", layers="bn[12]", max_interval_width=0.1)
    report = repair_model(residual, batches(images), open_model, config).report
    first, _, last = report.batch_norms
    assert first.method == "paired"
    assert first.interval[0] < first.shift < first.interval[1] < 1
    assert (last.method, last.shift, last.interval) == ("", None, None)
    assert report.data == "32 samples of the data", "the intervals were narrow enough by then"


@pytest.mark.long
def test_noise_that_a_person_names_is_repaired_like_marked_noise(settled, images, open_model):
    """A file without its markers, and the markers given by hand, gives the statistics of the marked file."""
    marked = repair_model(settled, batches(images), open_model, RepairConfig())
    named = RepairConfig(noise=("bn1=dropout:0.5", "bn2=dropout:0.5"))
    told = repair_model(without_markers(settled), batches(images), open_model, named)
    assert told.report.method == "match+refine"
    assert any("inserted" in change for change in told.report.prepared)
    for name, values in marked.statistics.items():
        np.testing.assert_array_equal(told.statistics[name], values)


def test_the_closed_forms_need_no_data(residual, open_model):
    report = repair_model(residual, [], open_model, RepairConfig(method="analytic")).report
    assert report.data.startswith("no data of the user")
    assert (report.judged_on, report.compared_on) == (0, 16)
    assert report.fold_snr_db is None or report.fold_snr_db > 100
    assert not any("not compared" in warning for warning in report.warnings)
    assert [outcome.method for outcome in report.batch_norms] == ["analytic", "analytic", ""]
    assert "non-linearity" in report.batch_norms[2].action


def test_a_model_of_a_fixed_batch_is_repaired_by_re_estimation(parse, open_model):
    body = """(float[8, 2, 3] x) => (float[8, 6] y) {
        d = Dropout (x)
        h = Reshape (d, shape)
        y = BatchNormalization (h, g, b, m, v)
    }"""
    weights = {name: np.ones(6, np.float32) for name in "gbmv"} | {"shape": np.array([8, 6])}
    rng = np.random.default_rng(0)
    fixed = [{"x": rng.normal(0, 0.7, (8, 2, 3)).astype(np.float32)} for _ in range(8)]
    report = repair_model(parse(body, weights), fixed, open_model, RepairConfig(method="paired")).report
    assert report.batch_norms[0].repaired
    assert report.samples in (32, 64)


def test_a_graph_that_draws_at_random_in_another_way_is_refused(parse, open_model):
    body = """(float[N, 3] x) => (float[N, 3] y) {
        r = RandomNormalLike (x)
        a = Add (x, r)
        d = Dropout (a)
        y = BatchNormalization (d, g, b, m, v)
    }"""
    model = parse(body, {name: np.ones(3, np.float32) for name in "gbmv"})
    with pytest.raises(ModelError, match="draws at random"):
        repair_model(model, [{"x": np.eye(4, 3, dtype=np.float32)}], open_model, RepairConfig())


def test_a_model_that_does_not_run_on_random_numbers_is_repaired_and_not_compared(parse):
    body = """(float[N, 1] x) => (float[N, 1, 3] y) {
        i = Cast <to: int = 7> (x)
        e = Gather (table, i)
        d = Dropout (e)
        t = Transpose <perm = [0, 2, 1]> (d)
        n = BatchNormalization (t, g, b, m, v)
        y = Transpose <perm = [0, 2, 1]> (n)
    }"""
    weights = {name: np.ones(3, np.float32) for name in "gbmv"} | {"table": np.ones((1, 3), np.float32)}
    report = repair_model(parse(body, weights), [], open_for_small_runs, RepairConfig(method="analytic")).report
    assert report.compared_on == 0
    assert any("not compared with the repaired one: onnxruntime" in warning for warning in report.warnings)


def test_where_no_input_can_be_made_the_report_says_that_nothing_was_compared(parse, open_model):
    body = """(float[N, 3, H, W] x) => (float[N, 3, H, W] y) {
        d = Dropout (x)
        y = BatchNormalization (d, g, b, m, v)
    }"""
    model = parse(body, {name: np.ones(3, np.float32) for name in "gbmv"})
    report = repair_model(model, [], open_model, RepairConfig(method="analytic")).report
    assert (report.compared_on, report.fold_snr_db) == (0, None)
    assert any("not compared with the repaired one: input 'x'" in warning for warning in report.warnings)
