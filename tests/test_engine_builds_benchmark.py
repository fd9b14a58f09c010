"""The benchmark of builds: one network in all of its precisions for real, and what its table says of a refusal."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import vsfix

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def builds(monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("engine_builds")


@pytest.fixture
def subject(builds, residual):
    """A network whose statistics are those of its rows."""
    rows = {"x": np.random.default_rng(11).normal(0.3, 1.2, (256, 3, 8, 8)).astype(np.float32)}
    model = vsfix.optimize(residual, rows, method="exact", layers="all", fold=False).model
    return builds.Subject("residual", lambda: (model, rows, ()))


@pytest.mark.long
def test_a_file_is_repaired_cast_and_built_in_the_types_that_are_asked_for(builds, subject):
    found = list(builds.build_all(subject, ["fp32", "fp16", "bf16"]))
    assert [line.get("error") for line in found] == [None] * 3
    kinds = [set(line["network"]["CONVOLUTION"]) for line in found]
    assert kinds == [{"FLOAT"}, {"HALF"}, {"BF16"}]
    assert all(line["bytes"] > 10_000 for line in found)


def test_a_file_that_the_parser_refuses_is_a_miss_with_its_words(builds, parse, images):
    model = parse("(float[N, 3, 3] x) => (float[N] y) { y = Det (x) }", {})
    (found,) = builds.build_all(builds.Subject("det", lambda: (model, {"x": images[:, 0, :3, :3]}, ())), ["fp32"])
    assert "error" in found
    line = builds.build_one(model, {"x": images[:, 0, :3, :3]}, "fp32")
    assert line["step"] == "build"
    assert "there is no Det in TensorRT" in line["error"]


def test_the_table_has_each_word_of_a_refusal_once(builds):
    built = {"bytes": 1 << 20, "version": "1.7.1", "read_back": ["PASS", 1e-7]}
    refused = {"step": "cast", "error": "CheckFailedError: SNR 3 dB, wanted 20"}
    found = {("a", "fp32"): built, ("a", "int8"): refused, ("b", "fp32"): built, ("b", "int8"): refused}
    lines = builds.table(found).splitlines()
    assert lines[2:4] == ["| a | 1.00 MiB | no (1) |", "| b | 1.00 MiB | no (1) |"]
    assert "2 of 4 engines were built by TensorRT-RTX 1.7.1; read back from each: float64 to 1.0e-07." in lines
    assert lines[-1] == "1. cast: CheckFailedError: SNR 3 dB, wanted 20"


@pytest.mark.long
def test_what_was_built_is_not_built_again_and_a_miss_is_an_exit_code(builds, subject, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(builds, "ladder_files", lambda folder: [subject])
    assert builds.main([str(tmp_path), "--precisions", "fp32"]) == 0
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1
    assert builds.main([str(tmp_path), "--precisions", "fp32"]) == 0
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps({"name": "other", "precision": "fp32", "step": "build", "error": "refused"}) + "\n")
    assert builds.main([str(tmp_path), "--precisions", "fp32"]) == 1
    assert "1. build: refused" in capsys.readouterr().out


def test_shapes_run_from_one_sample_to_64_where_the_batch_is_free(builds, residual):
    rows = {"x": np.zeros((5, 3, 8, 8), np.float32)}
    assert builds.shapes_of(residual, rows)["min_shapes"] == {"x": (1, 3, 8, 8)}
    assert builds.shapes_of(residual, rows)["max_shapes"] == {"x": (64, 3, 8, 8)}
    fixed = onnx.ModelProto.FromString(residual.SerializeToString())
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert builds.shapes_of(fixed, rows) == {}


def test_a_network_that_lacks_its_wheel_is_skipped_and_tried_again_later(builds, tmp_path, monkeypatch, capsys):
    def load():
        raise builds.Missing("pip install h5py")

    monkeypatch.setattr(builds, "ladder_files", lambda folder: [builds.Subject("net", load)])
    assert builds.main([str(tmp_path)]) == 0
    assert "net: skipped: pip install h5py" in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()
