"""The benchmark of training on a GPU as far as it goes without one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "training_speed.py"


@pytest.fixture(scope="module")
def training_speed():
    spec = importlib.util.spec_from_file_location("training_speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_speed"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_it_runs_whole_on_a_cpu(training_speed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_speed, "workers", lambda: 0)
    arguments = "--device cpu --models mlp-1 --batch 8 --block 0.01 --blocks 3 --images 64 --no-compile".split()
    code = training_speed.main([str(tmp_path), *arguments])
    found = json.loads((tmp_path / "training_speed.json").read_text())
    assert set(found["throughput"]["mlp-1"]["images_per_second"]) == {"vsfix", "torch eager"}
    assert all(speed > 0 for speed in found["throughput"]["mlp-1"]["images_per_second"].values())
    assert set(found["uout"]) == {"layer alone", "step of mlp-1"}
    assert set(found["uout"]["layer alone"]["kept_bytes_per_element"].values()) == {4.0}
    out = capsys.readouterr().out
    assert "timm: NOT RUN, it is not installed" in out
    assert code == ("MISS" in out)


def test_without_a_gpu_it_says_so_and_runs_nothing(training_speed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_speed.main([str(tmp_path / "results")]) == 3
    assert "no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_target_is_missed_where_the_whole_interval_lies_on_the_wrong_side(training_speed):
    def rows(low: float, high: float) -> dict:
        return {"x": {"over_dropout": {"Uout": (1.0, low, high)}}}

    kept = {"layer alone": {"over_dropout": {}, "kept_bytes_per_element": {"nn.Dropout 0.5": 1.0, "Uout": 0.0}}}
    assert training_speed.missed_uout(rows(0.9, 1.1) | kept) == []
    assert len(training_speed.missed_uout(rows(1.01, 1.1) | kept)) == 1
    kept["layer alone"]["kept_bytes_per_element"]["Uout"] = 2.0
    assert training_speed.missed_uout(kept) == ["Uout keeps 2 bytes per element"]
    eager = {"m": {"over_eager": {"vsfix": (0.97, 0.9, 0.99)}}}
    assert len(training_speed.missed_throughput(eager)) == 1


def test_the_interval_of_the_median_covers_it_as_often_as_it_says(training_speed):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        _, low, high = training_speed.median_with_interval(rng.lognormal(0, 0.2, 15))
        covered += low <= 1 <= high
    assert covered / 2000 > 0.94
