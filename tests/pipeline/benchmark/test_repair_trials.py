from __future__ import annotations

import onnx
import pytest

from vsfix import optimize
from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.benchmark.repair_trials import RepairTrial, choose_model, parse_repair_trials, try_repairs
from vsfix.pipeline.comparison.judgement import Judge
from vsfix.pipeline.comparison.metric import Metric
from vsfix.pipeline.data.calibration import labelled_samples
from vsfix.pipeline.verification.model_description import describe_model


def test_ways_to_repair_are_read():
    found = parse_repair_trials(["match:32", "exact:1000"])
    assert found == (RepairTrial("match", 32), RepairTrial("exact", 1000))
    assert str(found[0]) == "match:32"
    assert parse_repair_trials(["none"]) == ()


@pytest.mark.parametrize("texts", [["paired"], ["paired:0"], ["analytic:3"], ["paired:x"], ["match"]])
def test_a_way_that_can_t_be_read_is_refused(texts):
    with pytest.raises(InputError, match="write METHOD:IMAGES"):
        parse_repair_trials(texts)


@pytest.mark.parametrize("texts", [["none", "exact:2"], ["match:32", "none"], ["none", "none"]])
def test_none_stands_alone(texts):
    with pytest.raises(InputError, match=r"none stands alone.*METHOD:IMAGES"):
        parse_repair_trials(texts)


def test_the_same_way_twice_is_refused():
    with pytest.raises(InputError, match="name each trial once"):
        parse_repair_trials(["exact:2", "exact:2"])


def test_the_model_is_the_first_that_optimize_has_not_written(checkpoint_path, onnx_path, tmp_path):
    for method, fold, name in (("paired", True, "1.onnx"), ("none", True, "2.onnx"), ("none", False, "3.onnx")):
        optimize(onnx_path, "digits", method=method, fold=fold, samples=32, batch_size=32).save(tmp_path / name)
    paths = (checkpoint_path, *(tmp_path / f"{number}.onnx" for number in (1, 2, 3)), onnx_path)
    models = [describe_model(path) for path in paths]
    assert choose_model(models) is models[4]
    assert choose_model(models[:4]) is None


def test_a_way_that_is_refused_is_told_and_the_others_are_there(onnx_path):
    model = onnx.load(onnx_path)
    labelled = labelled_samples(model, "digits", split="test", seed=0, samples=100)
    trials = (RepairTrial("exact", 1), RepairTrial("exact", 40))
    targets, name = {"labels": labelled.labels}, model.graph.output[0].name
    judge = Judge((name,), name, Metric("top1", name, "labels"), targets)
    told = []
    found = try_repairs(
        describe_model(onnx_path),
        trials,
        "digits",
        labelled,
        judge,
        batch_size=32,
        seed=0,
        advance=lambda: told.append(1),
    )
    assert [row.images for row in found.accuracies] == [None, 40]
    assert found.refused[0].startswith("exact:1: ")
    assert found.report is not None
    assert found.report.samples == 40
    assert len(told) == 2
