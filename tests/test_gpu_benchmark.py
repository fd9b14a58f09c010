"""The GPU benchmark as far as it goes without a GPU: what it would run, what it says, and how it judges."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "run_all.py"


@pytest.fixture(scope="module")
def run_all():
    spec = importlib.util.spec_from_file_location("run_all", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_all"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kit(tmp_path):
    (tmp_path / "kit" / "net").mkdir(parents=True)
    (tmp_path / "kit" / "net" / "checkpoint.pt").write_bytes(b"")
    return tmp_path / "kit"


def test_a_dry_run_lists_every_step_and_runs_none(run_all, kit, tmp_path, capsys):
    assert run_all.main([str(kit), str(tmp_path / "results"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "20 of 20 steps to do"  # 2 forms x (3 + 2) precisions, then 2 batch sizes x (3 + 2)
    assert "numbers: net, repaired, tensorrt tf32" in lines
    assert "latency: net, original and repaired, batch 64, onnxruntime-cuda fp16" in lines
    assert not (tmp_path / "results").exists()


def test_without_a_gpu_it_says_so_and_lacks_a_component(run_all, kit, tmp_path, capsys):
    (kit / "net" / "original.onnx").write_bytes(b"")
    code = run_all.main([str(kit), str(tmp_path / "results"), "--backend", "onnxruntime-cuda"])
    said = capsys.readouterr().err
    assert code == 3, said
    assert said.startswith("nothing was run: onnxruntime-cuda: ")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, None),
        ({"snr_db": 49.9}, "SNR 49.9 dB, wanted 50"),
        ({"snr_db": float("nan")}, "SNR nan dB"),
        ({"agreement": 0.994}, "agreement 99.4000%, wanted 99.50%"),
        ({"top1": 74.8}, "top-1 74.80 %, torch 75.00 %"),
        ({"error": "no engine could be built"}, "no engine could be built"),
    ],
)
def test_a_missed_target_is_named(run_all, found, words):
    step = run_all.Step("numbers", "net", "tensorrt", "fp16", form="repaired")
    good = {"snr_db": 60.0, "agreement": 0.999, "top1": 75.0, "top1_torch": 75.0}
    misses = run_all.missed(step, good | found)
    assert (misses == []) == (words is None)
    assert words is None or words in misses[0]


def test_a_latency_is_missed_where_its_whole_interval_lies_above(run_all):
    step = run_all.Step("latency", "net", "tensorrt", "fp16", batch=1)
    assert run_all.missed(step, {"ratio": 1.004, "interval": [0.99, 1.01]}) == []
    assert "1.020" in run_all.missed(step, {"ratio": 1.02, "interval": [1.01, 1.03]})[0]
