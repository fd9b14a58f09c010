"""The repair toward the noise-averaged network, on a small regressor that re-estimation destroys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from vsfix.graph_passes.errors import CheckFailedError, DataError
from vsfix.graph_passes.io.model_file import import_graph, read_model
from vsfix.graph_passes.noise_average.severity import Severity
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.inspection.inspection import inspect_model
from vsfix.pipeline.inspection.noise_study import NoiseStudy
from vsfix.pipeline.repair.label_judge import LabelJudge, LabelScores
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.pipeline.repair.verdict import judge
from vsfix.trainers.export.onnx_export import export_onnx

QUICK = RepairConfig(refine=False)


def friedman(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Friedman's first function, standardized."""
    x = np.random.default_rng(seed).random((rows, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return x.astype(np.float32), ((y - 14.4) / 4.9).astype(np.float32)[:, None]


def trained(layers: list[nn.Module], path, epochs: int = 40) -> onnx.ModelProto:
    """The exported network after a short training."""
    x, y = (torch.from_numpy(array) for array in friedman(4000, 1))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        module = nn.Sequential(*layers)
        for layer in module:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        for rows in [rows for _ in range(epochs) for rows in torch.randperm(4000).split(100)]:
            optimizer.zero_grad()
            ((module.train()(x[rows]) - y[rows]) ** 2).mean().backward()
            optimizer.step()
    export_onnx(module.eval(), x[:2], path)
    return read_model(path)


def r_squared(model: onnx.ModelProto, open_model) -> float:
    x, y = friedman(1000, 3)
    found = next(iter(open_model(model).run({"input": x}).values()))
    return 1 - float(((y - found) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def samples(count: int) -> np.ndarray:
    return friedman(count, 4)[0]


@pytest.fixture(scope="module")
def shifted(tmp_path_factory) -> onnx.ModelProto:
    """(Linear - Dropout 0.5 - BatchNorm - ReLU) twice."""
    block = lambda width: [nn.Linear(width, 64), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.ReLU()]  # noqa: E731
    return trained([*block(10), *block(64), nn.Linear(64, 1)], tmp_path_factory.mktemp("shifted") / "m.onnx")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> onnx.ModelProto:
    """(Linear - BatchNorm - ReLU - Dropout 0.1) once: no BatchNorm downstream of the noise."""
    layers = [nn.Linear(10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1)]
    return trained(layers, tmp_path_factory.mktemp("healthy") / "m.onnx")


def test_auto_raises_the_accuracy_of_a_regressor_and_lowers_r(shifted, open_model):
    repair = repair_model(shifted, [{"input": samples(64)}], open_model, RepairConfig())
    before, after = repair.report.severity_before, repair.report.severity_after
    assert before.ratio > 0.6 > 0.3 > after.ratio
    assert r_squared(repair.model, open_model) > r_squared(shifted, open_model) + 0.01


def test_re_estimation_that_leads_away_is_warned_about(shifted, open_model):
    exact = repair_model(shifted, [{"input": samples(256)}], open_model, replace(QUICK, method="exact"))
    assert r_squared(exact.model, open_model) < r_squared(shifted, open_model) - 0.1
    assert any("--method exact moves the file away from its noise-averaged" in line for line in exact.report.warnings)
    assert exact.report.severity_after.ratio > exact.report.severity_before.ratio


def test_a_healthy_network_stays_byte_for_byte(healthy, open_model):
    repair = repair_model(healthy, [{"input": samples(64)}], open_model, replace(QUICK, fold=False))
    assert repair.report.method == "none"
    assert repair.report.method_reason.startswith(f"R = {repair.report.severity.ratio:.2f}")
    assert repair.report.warnings == ()
    before, after = ({t.name: t.raw_data for t in m.graph.initializer} for m in (healthy, repair.model))
    assert after == {name: before[name] for name in after}
    assert repair.statistics == {}


def test_a_quarter_of_the_draws_tells_a_network_that_is_clearly_healthy_and_all_of_them_any_other(
    healthy, shifted, open_model
):
    def looked(model, *, early) -> tuple[int, Severity]:
        batches = [{"input": samples(256)}]
        found = NoiseStudy.of(import_graph(model), batches, open_model, 0, {}, may_end_early=early)
        (output,) = found.reference.outputs.values()
        return len(output.draws), found.severity

    (few, early), (many, full) = looked(healthy, early=True), looked(healthy, early=False)
    assert (few, many) == (16, 64)
    assert early.low <= full.ratio <= early.high < full.bound
    assert full.is_clear
    assert looked(shifted, early=True) == looked(shifted, early=False)
    said = repair_model(healthy, [{"input": samples(256)}], open_model, QUICK).report.severity
    assert said == inspect_model(healthy, [{"input": samples(256)}], open_model).severity == early


@pytest.mark.parametrize(
    ("rare", "seed"), [("y", 2), ("y", 3), ("z", 4), ("z", 9)]
)  # seen first after the quarter: alone in a network, and beside an output whose noise is not rare
def test_noise_that_few_samples_see_takes_all_draws(parse, open_model, rare, seed):
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(4, 4)).astype(np.float32) for name in "wv"}
    numbers = {"often": np.float32(0.3), "seldom": np.float32(0.001), "off": np.array(False)}
    body = "(float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w) d = Dropout (a, seldom, off) y = MatMul (d, v) }"
    if rare == "z":
        body = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { a = MatMul (x, w) d = Dropout (a, often, off)
            y = MatMul (d, v) r = Dropout (a, seldom, off) q = Exp (r) z = MatMul (q, v) }"""
    graph = import_graph(parse(body, weights | {name: np.asarray(number) for name, number in numbers.items()}))
    batches = [{"x": np.random.default_rng(9).normal(size=(8 if rare == "y" else 16, 4)).astype(np.float32)}]
    early, full = (NoiseStudy.of(graph, batches, open_model, seed, {}, may_end_early=may) for may in (True, False))
    assert rare in early.reference.outputs
    assert early.severity == full.severity


def test_batch_sizes_and_the_order_of_samples_change_no_bit(shifted, open_model):
    x = samples(64)
    shuffled = x[np.random.default_rng(0).permutation(64)]
    cuts = [np.split(x, range(size, 64, size)) for size in (1, 7, 64)] + [[shuffled], [x]]
    files = [
        repair_model(shifted, [{"input": part} for part in parts], open_model, QUICK).model.SerializeToString()
        for parts in cuts
    ]
    assert files == [files[0]] * 5


def test_one_sample_is_an_error_and_few_are_warned_about(shifted, open_model):
    with pytest.raises(DataError, match="nothing can be told from fewer than 2; give at least 8"):
        repair_model(shifted, [{"input": samples(1)}], open_model, QUICK)
    for count, warned in ((7, True), (8, False)):
        report = repair_model(shifted, [{"input": samples(count)}], open_model, QUICK).report
        assert any(f"rests on {count} samples" in warning for warning in report.warnings) is warned


def with_wrong_statistics(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every running variance times 9."""
    wrong = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in wrong.graph.initializer:
        if tensor.name.endswith("running_var"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(9 * onnx.numpy_helper.to_array(tensor), tensor.name))
    return wrong


def test_wrong_statistics_are_refused_with_few_samples_and_corrected_under_the_noise_with_many(shifted, open_model):
    wrong = with_wrong_statistics(shifted)
    with pytest.raises(CheckFailedError, match=r"2 BatchNorms store other statistics .* give 128 samples or more"):
        repair_model(wrong, [{"input": samples(127)}], open_model, QUICK)
    corrected = repair_model(wrong, [{"input": samples(512)}], open_model, QUICK)
    assert any("2 BatchNorms were re-estimated under the noise first" in line for line in corrected.report.warnings)
    assert corrected.report.candidates[0].name == "re-estimated under the noise", "no file as given is compared"
    right = repair_model(shifted, [{"input": samples(512)}], open_model, QUICK)
    assert r_squared(corrected.model, open_model) == pytest.approx(r_squared(right.model, open_model), abs=0.02)


def test_statistics_that_were_re_estimated_alone_are_said_to_be_changed_and_handed_out(healthy, open_model):
    """The noise itself calls for no repair here; the file is changed all the same, and nothing may hide that."""
    repair = repair_model(with_wrong_statistics(healthy), [{"input": samples(512)}], open_model, QUICK)
    report = repair.report
    assert report.method == "re-estimated under the noise"
    assert [row.action for row in report.batch_norms] == ["re-estimated under the noise"]
    assert {name.rpartition(".")[2] for name in repair.statistics} == {"running_mean", "running_var"}
    status, verdict = judge(report)
    assert status == "WARN"
    assert "Repaired 1 of 1 BatchNorms (re-estimated under the noise" in verdict
    assert "calls for no repair" in verdict


def test_dropout_without_any_batch_norm_is_repaired_in_its_linear_layers(tmp_path, open_model):
    block = lambda width: [nn.Linear(width, 64), nn.ReLU(), nn.Dropout(0.5)]  # noqa: E731
    layers = [*block(10), *block(64), *block(64), nn.Linear(64, 1)]
    model = trained(layers, tmp_path / "m.onnx")
    report = repair_model(model, [{"input": samples(256)}], open_model, RepairConfig(method="match")).report
    assert report.batch_norms == ()
    assert report.layers
    assert report.severity_after.ratio < 0.5 * report.severity_before.ratio


def test_a_folded_convolution_downstream_of_noise_is_repaired(parse, open_model):
    rng = np.random.default_rng(0)
    body = """(float[N, 3, 6, 6] x) => (float[N, 4] y) {
        d = Dropout (x, ratio)
        h = Conv (d, w, b)
        r = Relu (h)
        p = GlobalAveragePool (r)
        y = Flatten (p)
    }"""
    weights = {"w": rng.normal(size=(4, 3, 3, 3)), "b": np.full(4, -1.0), "ratio": np.array(0.5)}
    model = parse(body, {name: values.astype(np.float32) for name, values in weights.items()})
    x = rng.normal(size=(64, 3, 6, 6)).astype(np.float32)
    repair = repair_model(model, [{"x": x}], open_model, QUICK)
    assert repair.report.method == "match"
    assert repair.report.severity_after.ratio < 0.2 * repair.report.severity_before.ratio
    assert [node.op_type for node in repair.model.graph.node] == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]


def test_labels_choose_among_all_methods(shifted, open_model):
    x, y = friedman(300, 6)
    judge = LabelJudge.of(shifted, Samples("labelled", {"input": x}, y), open_model, 256)
    report = repair_model(shifted, [{"input": samples(64)}], open_model, QUICK, judge=judge).report
    scores = {row.name: row.score for row in report.candidates}
    assert set(scores) == {"as trained", "match", "paired", "exact"}
    assert report.method == max(scores, key=scores.get)
    assert scores["exact"] < scores["as trained"] < scores[report.method]
    assert report.cross_fitted is not None


def test_several_outputs_are_no_pass_while_no_label_tells_what_each_gains(shifted, open_model):
    model = onnx.ModelProto()
    model.CopyFrom(shifted)
    hidden = model.graph.node[-1].input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(hidden, onnx.TensorProto.FLOAT, ["N", 64]))
    batches, output = [{"input": samples(256)}], model.graph.output[0].name
    alone, both = (repair_model(one, batches, open_model, QUICK).report for one in (shifted, model))
    assert (judge(alone)[0], judge(both)[0]) == ("PASS", "WARN")
    assert f"whether '{output}' and '{hidden}' gain, each for itself, is unknown" in both.warnings[-1]
    x, y = friedman(300, 6)
    labels = LabelJudge.of(model, Samples("labelled", {"input": x}, targets={output: y}), open_model, 256)
    report = repair_model(model, batches, open_model, QUICK, judge=labels).report
    assert report.method == "match"
    assert f"whether '{hidden}' gains is unknown" in report.warnings[-1]


def test_the_changed_parameters_make_the_module_compute_what_the_repaired_file_does(tmp_path, open_model):
    """README's three lines."""
    block = lambda width: [nn.Linear(width, 64), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.ReLU()]  # noqa: E731
    module = nn.Sequential(*block(10), *block(64), nn.Linear(64, 1))
    model = trained([*module], tmp_path / "m.onnx")
    repair = repair_model(model, [{"input": samples(64)}], open_model, RepairConfig())
    np.savez(tmp_path / "s.npz", **repair.statistics)
    state = module.state_dict()
    state.update({name: torch.from_numpy(values) for name, values in np.load(tmp_path / "s.npz").items()})
    module.load_state_dict(state)
    x = samples(50)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x)).numpy()
    found = next(iter(open_model(repair.model).run({"input": x}).values()))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    before = next(iter(open_model(model).run({"input": x}).values()))
    assert np.abs(before - expected).max() > 1e-2, "the repair must be seen"


def test_copies_of_samples_are_no_evidence(shifted, open_model):
    few = samples(12)
    alone = repair_model(shifted, [{"input": few}], open_model, QUICK)
    copied = repair_model(shifted, [{"input": np.tile(few, (20, 1))}], open_model, QUICK)
    assert copied.model.SerializeToString() == alone.model.SerializeToString()
    assert "228 of 240 samples were left out: they are copies of others" in copied.report.warnings
    with pytest.raises(CheckFailedError, match="give 128 samples or more"):
        repair_model(with_wrong_statistics(shifted), [{"input": np.tile(samples(64), (4, 1))}], open_model, QUICK)


def test_few_samples_judge_what_was_fitted_to_others(parse, open_model):
    """The mean of a network that is linear after its noise is the deployed one: every change is for the worse."""
    repaired = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(400, 6)).astype(np.float32)
        w = rng.normal(size=(6, 16)).astype(np.float32)
        z = np.maximum(x @ w, 0)
        noisy = z * (rng.random(z.shape) < 0.5) * 2
        given = {
            "w": w,
            "ratio": np.array(0.5, np.float32),
            "off": np.array(False),
            "g": np.ones(16, np.float32),
            "b": np.zeros(16, np.float32),
            "m": noisy.mean(axis=0),
            "v": noisy.var(axis=0),
            "u": rng.normal(size=(16, 2)).astype(np.float32),
        }
        body = """(float[N, 6] x) => (float[N, 2] y) { a = MatMul (x, w)  r = Relu (a)  d = Dropout (r, ratio, off)
            n = BatchNormalization (d, g, b, m, v)  y = MatMul (n, u) }"""
        batches = [{"x": x[:14]}]
        report = repair_model(parse(body, given), batches, open_model, replace(QUICK, method="match")).report
        repaired += report.method != "none"
    assert repaired <= 2, "at a level of 2.5 %"


def test_what_is_damaged_and_stays_so_is_no_pass(shifted, open_model):
    report = repair_model(shifted, [{"input": samples(5)}], open_model, QUICK).report
    status, sentence = judge(report)
    assert report.method == "none"
    assert status == "WARN"
    assert sentence.startswith(f"Damaged (R = {report.severity.ratio:.2f}) and not repaired: 5 samples can't tell")


def test_what_the_labels_call_better_passes_although_it_leads_away(shifted, open_model):
    report = repair_model(shifted, [{"input": samples(64)}], open_model, QUICK).report
    farther = replace(report, severity_before=report.severity_after, severity_after=report.severity_before)
    assert judge(farther)[0] == "WARN"
    for p_value, status, words in ((1e-6, "PASS", "better on the labels"), (0.4, "WARN", "farther from its")):
        said, sentence = judge(
            farther, scores=LabelScores("mean squared error", "y", 0.2, 0.1, 0.1, (0.05, 0.15), p_value, 300)
        )
        assert (said, words in sentence) == (status, True)


def test_few_samples_of_a_graph_with_one_batch_size_leave_it_as_it_is(parse, open_model):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    w = rng.normal(size=(6, 16)).astype(np.float32)
    noisy = np.maximum(x @ w, 0) * (rng.random((400, 16)) < 0.5) * 2
    given = {
        "w": w,
        "ratio": np.array(0.5, np.float32),
        "off": np.array(False),
        "s": np.array([8, 16]),
        "g": np.ones(16, np.float32),
        "b": np.zeros(16, np.float32),
        "m": noisy.mean(axis=0),
        "v": noisy.var(axis=0),
    }
    body = """(float[8, 6] x) => (float[8, 16] y) { a = MatMul (x, w)  r = Relu (a)  d = Dropout (r, ratio, off)
        e = Reshape (d, s)  n = BatchNormalization (e, g, b, m, v)  y = Relu (n) }"""
    model = parse(body, given)
    for count in (8, 16):
        batches = [{"x": x[start : start + 8]} for start in range(0, count, 8)]
        report = repair_model(model, batches, open_model, replace(QUICK, method="match")).report
        assert report.method_reason == f"{count} samples can't tell whether a repair is nearer; give 18 or more"


def test_few_samples_judge_the_chosen_layers_alone(shifted, open_model):
    """The judged model is the written one: with `--layers` it must leave the other layers as they are, too."""
    config = replace(QUICK, method="match", layers="2")
    all_of_it = repair_model(shifted, [{"input": samples(16)}], open_model, replace(config, layers="auto")).report
    one = repair_model(shifted, [{"input": samples(16)}], open_model, config).report
    assert one.candidates[1].severity > all_of_it.candidates[1].severity
