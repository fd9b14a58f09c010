"""The networks that the verdicts are held against, and the counting of what was said of them."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PASS = {"exit": 0, "seconds": 1.0, "status": "PASS", "verdict": "Nothing to repair: R = 0.1", "noise_sources": []}
DAMAGED = PASS | {"status": "WARN", "verdict": "Damaged: R = 3", "noise_sources": ["conv.noise dropout:0.52"]}
LAYER = {"module": "1", "kind": "dropout", "value": 0.5, "reaches": ["2"], "tensors": ["conv", "clone"]}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_the_draws_keep_their_shares_and_their_seed(script):
    draws = script("verdict_draws").draw_networks()
    assert draws == script("verdict_draws").draw_networks()
    faults = Counter(draw.fault.split(",")[0] for draw in draws)
    assert (len(draws), faults["healthy"], faults["noise"]) == (60, 20, 30)
    assert set(Counter(draw.form for draw in draws).values()) == {20}
    assert sum(draw.is_ordered for draw in draws) == 10
    assert all(bool(draw.places) == ("noise" in draw.fault) for draw in draws)


def test_every_family_runs_with_noise_at_each_of_its_places(script):
    draws, networks = script("verdict_draws"), script("verdict_networks")
    noise = draws.Noise(draws.NoiseKind.DROPOUT, 0.5)
    for family, places in draws.PLACES.items():
        draw = draws.draw_networks(count=1)[0]
        draw = replace(draw, family=family, places=tuple(draws.Place(name, noise) for name in places))
        shape = {"one-dimensional": (8, 8)}.get(family, (1, 8, 8))
        module = networks.build_network(draw, shape, 3).train()
        assert module(torch.zeros(4, *shape)).shape == (4, 3)
        assert sum(isinstance(layer, nn.Dropout) for layer in module.modules()) >= len(places)


def test_lost_noise_is_placed_by_what_the_network_computes_there(script, tmp_path):
    exports, path = script("verdict_exports"), tmp_path / "lost.onnx"
    nodes = ["Abs x y", "Identity y same", "Relu same above", "Neg above out"]
    made = [onnx.helper.make_node(kind, [given], [result]) for kind, given, result in map(str.split, nodes)]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in ("input", "out")]
    made[0].input[0] = "input"
    model = onnx.helper.make_model(onnx.helper.make_graph(made, "net", ends[:1], ends[1:]))
    model.ir_version = 10
    model.opset_import[0].version = 18
    onnx.save(model, path)
    rows = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = exports.tensors_at(path, rows, {"shown": np.abs(rows), "front": rows, "none": np.ones((4, 3), np.float32)})
    assert found == {"shown": ["y", "same", "above"], "front": ["input"], "none": []}
    assert exports.equivalents(path, ["y"], "dropout") == ["y", "same", "above"]
    assert exports.equivalents(path, ["input"], "dropout") == ["input"]  # no noise goes across Abs


@pytest.fixture
def outcome(script):
    def made(inspect, *, fault="noise", noise=(LAYER,), loss=5.0, worth=90.0, repaired=0):
        interval = (loss, loss - 1, loss + 1)
        truth = {
            "name": "00",
            "draw": {"fault": fault, "form": "lost", "is_ordered": False},
            "noise": list(noise),
            "best": 90.0,
            "below_average": interval,
            "below_reestimated": (0.0, 0.0, 0.0),
        }
        answer = script("verdict_judge").Answer("00", "lost.onnx", inspect, PASS | {"repaired": repaired}, worth, None)
        assert json.loads(json.dumps(asdict(answer)))["worth"] == worth
        return script("verdict_table").Outcome(truth, answer)

    return made


def missed(script, outcome):
    return [target for target, _, _ in script("verdict_table").misses([outcome])]


def test_what_is_right_is_no_miss(script, outcome):
    assert missed(script, outcome(DAMAGED)) == []
    assert missed(script, outcome(PASS, fault="healthy", noise=(), loss=0.0)) == []
    assert missed(script, outcome(PASS | {"fault": {"kind": "statistics never set"}}, fault="unset", noise=())) == [
        "damaged"
    ]


@pytest.mark.parametrize(
    ("inspect", "known", "targets"),
    [
        (DAMAGED | {"noise_sources": ["conv.noise dropout:0.6"]}, {}, ["lost noise"]),
        (DAMAGED | {"noise_sources": ["pool.noise dropout:0.5"]}, {}, ["lost noise"]),
        (DAMAGED, {"worth": 87.0}, ["damaged"]),
        (PASS, {}, ["right fault", "lost noise", "damaged"]),
        (DAMAGED, {"fault": "healthy", "noise": (), "loss": 0.0}, ["right fault", "healthy"]),
        (PASS, {"fault": "healthy", "noise": (), "loss": 0.0, "repaired": 2}, ["healthy"]),
        (DAMAGED, {"fault": "0..255"}, ["right fault"]),
        ({"exit": 70, "seconds": 1.0, "error": "internal error"}, {}, ["right fault", "lost noise"]),
    ],
)
def test_what_is_wrong_is_a_miss(script, outcome, inspect, known, targets):
    assert missed(script, outcome(inspect, **known)) == targets
