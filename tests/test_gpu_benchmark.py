"""The GPU benchmark as far as it goes without a GPU: its plan, its judgement, its page, and the whole of its dry run."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.digits_checkpoint import digits_checkpoint
from vsfix.graph_passes.errors import BuildError, MissingComponentError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.export.exporting import export_checkpoint
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def kit(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "kit" / name).mkdir(parents=True)
        (tmp_path / "kit" / name / "checkpoint.pt").write_bytes(b"")
    return tmp_path / "kit"


def test_numbers_come_first_and_of_them_float32_of_every_network(script, kit):
    steps = script("steps").plan(kit, ["tensorrt", "onnxruntime-cuda"])
    kinds = [step.kind for step in steps]
    assert kinds == ["numbers"] * 20 + ["latency"] * 20 + ["training", "uout"]  # 2 networks, 2 forms, 3 + 2 precisions
    assert [(s.network, s.form) for s in steps[:4]] == [(n, f) for n in "ab" for f in ("repaired", "original")]
    assert {step.precision for step in steps[:8]} == {"fp32"}
    assert {step.precision for step in steps[16:20]} == {"tf32"}
    assert len(set(steps)) == len(steps)


def test_without_a_gpu_it_says_so_and_lacks_a_component(script, kit, tmp_path, capsys):
    for form in ("original", "repaired"):
        (kit / "a" / f"{form}.onnx").write_bytes(b"")
    arguments = [str(kit), str(tmp_path / "results"), "--backend", "onnxruntime-cuda"]
    code = script("run_all").main(arguments)
    said = capsys.readouterr().err
    assert code == 3, said
    assert said.startswith("nothing was run: onnxruntime-cuda: ")
    assert not (tmp_path / "results").exists()


def test_a_folder_without_networks_says_what_makes_a_kit(script, tmp_path, capsys):
    assert script("run_all").main([str(tmp_path), str(tmp_path / "results")]) == 2
    assert "prepare.py" in capsys.readouterr().err


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
def test_a_missed_target_is_named(script, found, words):
    steps = script("steps")
    step = steps.Step("numbers", "net", "tensorrt", "fp16", form="repaired")
    good = {"snr_db": 60.0, "agreement": 0.999, "top1": 75.0, "top1_torch": 75.0}
    misses = steps.missed(step, good | found)
    assert (misses == []) == (words is None)
    assert words is None or words in misses[0]


def test_a_latency_is_missed_where_its_whole_interval_lies_above(script):
    steps = script("steps")
    step = steps.Step("latency", "net", "tensorrt", "fp16", batch=1)
    assert steps.missed(step, {"ratio": 1.004, "interval": [0.99, 1.01]}) == []
    assert "1.020" in steps.missed(step, {"ratio": 1.02, "interval": [1.01, 1.03]})[0]


class FakePlace:
    """Takes steps as `Place` does, and counts them."""

    def __init__(self, *, fails=None) -> None:
        self.taken, self.fails = [], fails or {}

    def measure(self, step):
        self.taken.append(step)
        if step.kind in self.fails:
            raise self.fails[step.kind]
        found = {"runner": "r", "torch": "2.13.0 on the CPU", "samples": 9, "snr_db": 98.75, "agreement": 1.0}
        if step.kind == "numbers":
            return found | {"top1_torch": 75.0, "top1": 75.25, "build_seconds": 3.0}
        latency = {"p50_ms": 0.25, "p99_ms": 0.5, "cv": 0.01}
        return {"ratio": 0.875, "interval": [0.8, 0.9], "original": latency, "repaired": latency}


def steps_of(script):
    step = script("steps").Step
    return [
        step("numbers", "a", "tensorrt", "fp32", form="repaired"),
        step("latency", "a", "tensorrt", "fp32", batch=64),
    ]


def test_what_was_measured_is_kept_in_one_file_and_not_measured_again(script, tmp_path):
    run_all, results = script("run_all"), script("results")
    path = tmp_path / "results.json"
    for taken in (2, 0):
        place = FakePlace()
        kept = results.Results(path)
        run_all.take(steps_of(script), kept, place, lambda kind: False)
        assert len(place.taken) == taken
        assert list(results.Results(path).found) == steps_of(script)
    assert [line["step"]["kind"] for line in json.loads(path.read_text())["steps"]] == ["numbers", "latency"]


def test_steps_whose_time_is_over_are_told_and_those_of_the_next_kind_taken(script, tmp_path):
    kept, place = script("results").Results(tmp_path / "results.json"), FakePlace()
    script("run_all").take(steps_of(script), kept, place, lambda kind: kind == "numbers")
    assert [step.kind for step in place.taken] == ["latency"]
    assert [line.partition(": its")[2] for line in kept.not_run] == [" time was used up"]


def test_an_error_is_a_result_and_a_component_that_is_missing_is_none(script, tmp_path):
    kept = script("results").Results(tmp_path / "results.json")
    fails = {"numbers": BuildError("no engine could be built"), "latency": MissingComponentError("no GPU")}
    script("run_all").take(steps_of(script), kept, FakePlace(fails=fails), lambda kind: False)
    assert [line["error"] for line in kept.found.values()] == ["no engine could be built"]
    assert kept.not_run == [f"{steps_of(script)[1]}: no GPU"]
    assert len(kept.misses) == 1


def test_the_page_says_what_was_measured_and_nothing_of_a_dry_run(script, tmp_path, capsys):
    render, results = script("render"), script("results")
    page = tmp_path / "gpu.md"
    page.write_text(f"# GPU\n\n{render.BEGIN}\nold\n{render.END}\n\nafter\n")
    path = tmp_path / "results.json"
    kept = results.Results(path)
    kept.environment = {"GPU": "NVIDIA L4", "tensorrt": "11.4.0"}
    script("run_all").take(steps_of(script), kept, FakePlace(), lambda kind: False)
    assert render.main([str(page), str(path)]) == 0
    text = page.read_text()
    assert text.startswith("# GPU\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "GPU NVIDIA L4, tensorrt 11.4.0, torch 2.13.0 on the CPU" in text
    assert "| a | repaired | tensorrt | fp32 | 98.8 dB | 100.00 % | 75.00 % | 75.25 % | 3.0 s |" in text
    assert "0.875 (0.800 to 0.900) |" in text
    assert "- missed: numbers: a, repaired, tensorrt fp32: top-1 75.25 %, torch 75.00 %" in text
    assert render.main([str(page)]) == 0
    assert "Not measured" in page.read_text()
    assert "98.8" not in page.read_text()
    results.Results(tmp_path / "dry.json", dry_run=True).save()
    assert render.main([str(page), str(tmp_path / "dry.json")]) == 2
    assert "another kind of run" in capsys.readouterr().err
    kept.environment = {}
    kept.save()
    assert render.main([str(page), str(path)]) == 2
    assert "not measured on a GPU" in capsys.readouterr().err
    assert "Not measured" in page.read_text()


def test_the_page_of_the_guide_is_made_of_the_results_that_are_kept(script):
    render, kept = script("render"), FOLDER / "results.json"
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert page == render.rendered(page, script("results").Results(kept) if kept.exists() else None)


@pytest.fixture
def small_ladder(tmp_path):
    """A folder as `ladder_train.py` makes it, with one small network for the digits."""
    network = NetworkConfig("preresnet-8", 1, (8, 8), 10, NoiseSites(a=Noise.parse("dropout:0.5")))
    folder = tmp_path / "ladder" / "small"
    folder.mkdir(parents=True)
    save_checkpoint(digits_checkpoint(network), folder / "checkpoint.pt")
    export_checkpoint(load_checkpoint(folder / "checkpoint.pt"), folder.with_suffix(".onnx"), force=True)
    return folder.parent


@pytest.mark.long
def test_the_dry_run_takes_every_step_of_a_kit_and_sees_a_wrong_parameter(
    script, small_ladder, tmp_path, monkeypatch, capsys
):
    prepare, run_all = script("prepare"), script("run_all")
    monkeypatch.setattr(prepare, "DATA", "digits")
    monkeypatch.setattr(prepare, "NETWORKS", {"small": "small"})
    kit, results = tmp_path / "kit", tmp_path / "results"
    assert prepare.main([str(small_ladder), str(kit), "--images", "300", "--samples", "128"]) == 0
    assert "small" in json.loads((kit / "kit.json").read_text())
    capsys.readouterr()
    assert run_all.main([str(kit), str(results), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("[CPU, no measurement]\n")
    assert all(line.startswith("[CPU, no measurement] ") for line in said.err.splitlines())
    assert " ms |" not in said.out
    found = json.loads((results / "dry-run" / "results.json").read_text())
    assert found["dry_run"]
    assert [line["step"]["kind"] for line in found["steps"]] == ["numbers"] * 4 + ["latency"] * 4 + ["training", "uout"]
    assert all(line["found"]["snr_db"] > 100 for line in found["steps"][:2])
    with np.load(kit / "small" / "parameters.npz") as arrays:
        wrong = {name: values * 1.01 for name, values in arrays.items()}
    np.savez(kit / "small" / "parameters.npz", **wrong)
    place = script("measuring").Place(kit, tmp_path / "again", sys.executable, "cpu", images=200)
    place.make_references(["small"])
    step = script("steps").Step("numbers", "small", "onnxruntime", "fp32", form="repaired")
    assert place.measure(step)["snr_db"] < 60 < place.measure(replace(step, form="original"))["snr_db"]
