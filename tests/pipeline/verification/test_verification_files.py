from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch

from vsfix.graph_passes.errors import InputError, MissingComponentError
from vsfix.graph_passes.io.model_file import read_metadata
from vsfix.graph_passes.noise.marker import REPAIR_KEY
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner
from vsfix.pipeline.casting.casting import cast_model
from vsfix.pipeline.comparison.tolerance import TOLERANCES, GivenTolerance
from vsfix.pipeline.data.random_inputs import draw_inputs
from vsfix.pipeline.verification.verification_files import VerificationConfig, verify_files
from vsfix.trainers.data.npz_file import read_npz
from vsfix.trainers.data.preprocessing import METADATA_KEY
from vsfix.trainers.training.checkpoint import load_checkpoint, save_checkpoint

QUICK = VerificationConfig(data="digits", samples=60)


def changed_statistics(onnx_path, tmp_path):
    """A model whose running variances are larger, and the statistics that say so."""
    model = onnx.load(onnx_path)
    statistics = {}
    for tensor in model.graph.initializer:
        if tensor.name.endswith("running_var"):
            statistics[tensor.name] = onnx.numpy_helper.to_array(tensor) * np.float32(1.7)
            tensor.CopyFrom(onnx.numpy_helper.from_array(statistics[tensor.name], tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    np.savez(tmp_path / "statistics.npz", **statistics)
    return tmp_path / "changed.onnx", tmp_path / "statistics.npz"


def test_an_export_is_equal_to_its_checkpoint_in_every_backend(onnx_path, checkpoint_path):
    result = verify_files(onnx_path, checkpoint_path, replace(QUICK, backends=("onnxruntime", "reference")))
    assert result.status == "PASS"
    assert [row.candidate.split()[0] for row in result.results] == ["onnxruntime", "reference"]
    assert min(row.outputs["logits"].snr_db for row in result.results) > 110


def test_a_model_with_other_statistics_fails_until_the_reference_has_them_too(onnx_path, checkpoint_path, tmp_path):
    model, statistics = changed_statistics(onnx_path, tmp_path)
    assert len(read_npz(statistics)) == 2
    assert verify_files(model, checkpoint_path, QUICK).status == "FAIL"
    assert verify_files(model, checkpoint_path, replace(QUICK, statistics=statistics)).status == "PASS"
    assert verify_files(onnx_path, checkpoint_path, replace(QUICK, statistics=statistics)).status == "FAIL"


def test_a_repaired_model_against_one_that_was_not_is_told_what_to_give(onnx_path, checkpoint_path, tmp_path):
    model, _ = changed_statistics(onnx_path, tmp_path)
    assert verify_files(model, checkpoint_path, QUICK).hint == ""  # changed, but not by a repair
    repaired = onnx.load(model)
    onnx.helper.set_model_props(repaired, read_metadata(repaired) | {REPAIR_KEY: '{"repaired": ["norm1"]}'})
    onnx.save(repaired, model)
    assert "with --statistics" in verify_files(model, checkpoint_path, QUICK).hint
    assert "another file of the repaired model" in verify_files(model, onnx_path, QUICK).hint
    assert verify_files(model, model, QUICK).hint == ""


def test_two_onnx_files_are_compared_in_onnx_runtime(onnx_path, tmp_path):
    model, _ = changed_statistics(onnx_path, tmp_path)
    assert verify_files(onnx_path, onnx_path, QUICK).status == "PASS"
    assert verify_files(model, onnx_path, QUICK).status == "FAIL"


def test_a_checkpoint_can_be_the_candidate(onnx_path, checkpoint_path):
    result = verify_files(checkpoint_path, onnx_path, replace(QUICK, backends=("torch",)))
    assert (result.status, result.results[0].candidate) == ("PASS", "torch (cpu)")
    result = verify_files(checkpoint_path, checkpoint_path, replace(QUICK, backends=("torch",)))
    assert result.results[0].outputs["logits"].max_abs == 0


def test_without_data_random_numbers_are_fed_and_nothing_is_decided(onnx_path, checkpoint_path):
    for model, reference in ((onnx_path, checkpoint_path), (onnx_path, onnx_path)):
        result = verify_files(model, reference, VerificationConfig())
        assert (result.status, result.random, result.samples) == ("PASS", True, 256)
        assert result.results[0].decisions is None


def test_random_inputs_follow_from_the_seed():
    first, again, other = (draw_inputs(["a"], [(2, 3)], 5, seed)["a"] for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == ((5, 2, 3), np.float32)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_input_of_unknown_shape_can_not_be_drawn(parse, tmp_path):
    onnx.save(parse("(float[N, M] x) => (float[N, M] y) { y = Relu (x) }", {}), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="input 'x': can't be drawn at random"):
        verify_files(tmp_path / "m.onnx", tmp_path / "m.onnx", VerificationConfig())


def test_a_shape_that_one_of_two_files_leaves_free_is_that_of_the_other(onnx_path, checkpoint_path, tmp_path):
    model = onnx.load(onnx_path)
    for side in model.graph.input[0].type.tensor_type.shape.dim[1:]:
        side.dim_param = f"side{side.dim_value}"
    onnx.save(model, tmp_path / "free.onnx")
    for reference in (onnx_path, checkpoint_path):
        assert verify_files(tmp_path / "free.onnx", reference, VerificationConfig(samples=8)).status == "PASS"


def test_models_with_different_inputs_are_refused(onnx_path, checkpoint_path, parse, tmp_path):
    paths = []
    for name, body in [
        ("one", "(float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }"),
        ("two", "(float[N, 2] x, float[N, 2] z) => (float[N, 2] y) { y = Add (x, z) }"),
    ]:
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(parse(body, {}), paths[-1])
    for model, reference in ((paths[0], onnx_path), (paths[0], paths[1]), (paths[1], checkpoint_path)):
        with pytest.raises(InputError, match="has the inputs"):
            verify_files(model, reference, VerificationConfig())


def test_each_step_from_the_checkpoint_to_the_model_has_its_row(onnx_path, checkpoint_path, tmp_path):
    changed, _ = changed_statistics(onnx_path, tmp_path)
    half = tmp_path / "half.onnx"
    onnx.save(cast_model(onnx.load(changed), "fp16", {}, OnnxRuntimeRunner).model, half)
    result = verify_files(half, checkpoint_path, replace(QUICK, via=(onnx_path, changed), search_layers=False))
    export, change, cast, floor = result.results[0].budget
    assert [step.step for step in (export, change, cast, floor)] == ["export", "another model", "cast", "noise floor"]
    assert cast.target == "half.onnx, onnxruntime (CPUExecutionProvider)"
    assert export.snr_db > 110 > 78 > cast.snr_db > 45 > change.snr_db
    assert floor.snr_db == np.inf
    assert result.tolerance == TOLERANCES["fp16"]
    assert (result.status, result.results[0].layers) == ("FAIL", None)


def test_one_file_on_two_runtimes_is_one_step_called_runtime(onnx_path):
    config = replace(QUICK, backends=("reference",), via=(onnx_path,))
    result = verify_files(onnx_path, onnx_path, config)
    assert [step.step for step in result.results[0].budget] == ["runtime", "runtime", "noise floor"]


def test_where_a_model_fails_the_layer_is_named(onnx_path, checkpoint_path, tmp_path):
    model, _ = changed_statistics(onnx_path, tmp_path)
    for reference in (onnx_path, checkpoint_path):
        layers = verify_files(model, reference, QUICK).results[0].layers
        assert layers is not None
        assert layers.first is not None
        assert (layers.first.operator, layers.samples) == ("BatchNormalization", 4)
        assert layers.first is next(row for row in layers.rows if row.operator == "BatchNormalization")


@pytest.mark.long
def test_the_layer_is_named_whatever_the_input_is_called_and_whatever_batch_is_taken(
    checkpoint_path, onnx_path, tmp_path
):
    path, _ = changed_statistics(onnx_path, tmp_path)
    for name, batch in (("x:0", 1), ("a b", 20)):
        model = onnx.load(path)
        graph = gs.import_onnx(model)
        graph.inputs[0].name, graph.inputs[0].shape[0], graph.outputs[0].shape[0] = name, batch, batch
        onnx.save(gs.export_onnx(graph), tmp_path / "other.onnx")
        layers = verify_files(tmp_path / "other.onnx", checkpoint_path, QUICK).results[0].layers
        assert layers is not None
        assert layers.first is not None, layers.reason
        assert (layers.first.operator, layers.samples) == ("BatchNormalization", batch)


def test_the_layers_are_searched_on_the_backend_that_ran_the_reference(onnx_path):
    config = replace(QUICK, reference_backend="reference", tolerance=GivenTolerance(min_snr_db=200))
    layers = verify_files(onnx_path, onnx_path, config).results[0].layers
    assert layers is not None
    assert layers.worst is not None
    assert 80 < layers.worst.snr_db < 200  # on one backend every tensor would be exact


@pytest.mark.long
def test_statistics_reach_a_compiled_reference(onnx_path, checkpoint_path, tmp_path, monkeypatch):
    _, statistics = changed_statistics(onnx_path, tmp_path)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    found = [
        verify_files(onnx_path, checkpoint_path, replace(QUICK, reference_backend=backend, statistics=statistics))
        for backend in ("torch", "torch-compile")
    ]
    snr_db = [result.results[0].outputs["logits"].snr_db for result in found]
    assert snr_db[0] == pytest.approx(snr_db[1], abs=1e-6)
    assert snr_db[0] < 60


def test_a_model_that_gives_nan_fails_with_its_steps_and_its_layer(onnx_path, tmp_path):
    model = onnx.load(onnx_path)
    kernel = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    kernel.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(kernel.dims), np.nan, np.float32), kernel.name))
    onnx.save(model, tmp_path / "nan.onnx")
    (found,) = verify_files(tmp_path / "nan.onnx", onnx_path, replace(QUICK, via=(onnx_path,))).results
    assert found.status == "FAIL"
    assert [step.snr_db for step in found.budget] == [np.inf, -np.inf, np.inf]
    assert found.layers is not None
    assert found.layers.first is not None
    assert found.layers.first.operator == "Gemm"


def test_the_reference_may_run_elsewhere(onnx_path):
    result = verify_files(onnx_path, onnx_path, replace(QUICK, reference_backend="reference"))
    assert result.reference.startswith("reference")
    assert result.status == "PASS"


def test_statistics_go_with_a_checkpoint_only(onnx_path, tmp_path):
    with pytest.raises(InputError, match="goes with a checkpoint"):
        verify_files(onnx_path, onnx_path, replace(QUICK, statistics=tmp_path / "s.npz"))


def test_statistics_of_another_network_are_refused(onnx_path, checkpoint_path, tmp_path):
    np.savez(tmp_path / "s.npz", **{"other.running_var": np.ones(3)})
    with pytest.raises(InputError, match=r"'other\.running_var' is no running statistic"):
        verify_files(onnx_path, checkpoint_path, replace(QUICK, statistics=tmp_path / "s.npz"))


def test_the_preprocessing_of_the_reference_serves_a_model_that_says_nothing(onnx_path, checkpoint_path, tmp_path):
    model = onnx.load(onnx_path)
    onnx.helper.set_model_props(model, {})
    onnx.save(model, tmp_path / "silent.onnx")
    result = verify_files(tmp_path / "silent.onnx", checkpoint_path, QUICK)
    told = verify_files(onnx_path, checkpoint_path, QUICK)
    assert result.results[0].outputs["logits"] == told.results[0].outputs["logits"]
    with pytest.raises(InputError, match=r"give an \.npz file"):
        verify_files(tmp_path / "silent.onnx", tmp_path / "silent.onnx", QUICK)


def test_two_statements_about_preprocessing_are_reported(onnx_path, checkpoint_path, tmp_path, caplog):
    checkpoint = load_checkpoint(checkpoint_path)
    other = replace(checkpoint, preprocessing=replace(checkpoint.preprocessing, mean=(0.4,)))
    save_checkpoint(other, tmp_path / "other.pt")
    assert METADATA_KEY in onnx_path.read_bytes().decode(errors="ignore")
    with caplog.at_level(logging.WARNING):
        assert verify_files(onnx_path, tmp_path / "other.pt", QUICK).status == "PASS"
    assert "different preprocessing" in caplog.text


def test_a_backend_that_is_not_here_is_missing(onnx_path):
    with pytest.raises(MissingComponentError):
        verify_files(onnx_path, onnx_path, replace(QUICK, backends=("onnxruntime", "onnxruntime-tensorrt")))


def test_an_embedding_decides_nothing(call, parse, tmp_path):
    body = "(float[N, 4] x) => (float[N, 4] y) { y = LpNormalization <axis: int = 1> (x) }"
    onnx.save(parse(body, {}), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, labels=np.arange(20))  # of persons, who are none of the four numbers
    options = ("--against", tmp_path / "m.onnx", "--via", tmp_path / "m.onnx", "--data", tmp_path / "d.npz")
    result = call("verify", tmp_path / "m.onnx", *options)
    assert (result.exit_code, "SKIP decisions: the first output is an embedding" in result.stdout) == (0, True)
    assert "top-1 " not in result.stdout


def test_labels_that_no_output_can_be_held_against_are_said_to_be_skipped(call, parse, tmp_path):
    body = "(float[N, 4] x) => (int64[N] i) { i = ArgMax <axis: int = 1, keepdims: int = 0> (x) }"
    onnx.save(parse(body, {}), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.eye(4, dtype=np.float32), labels=np.arange(4))
    result = call("verify", tmp_path / "m.onnx", "--against", tmp_path / "m.onnx", "--data", tmp_path / "d.npz")
    assert (result.exit_code, "SKIP decisions: the first output holds no logits" in result.stdout) == (0, True)
