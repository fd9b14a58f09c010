from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from vsfix.pipeline.benchmark.benchmark_file import read_benchmark
from vsfix.pipeline.benchmark.comparing import FailRule, compare_files

OLD = Path(__file__).with_name("benchmark_before_metrics.json")


def test_a_file_from_before_there_were_metrics_is_read_as_top1_of_any_output(tmp_path):
    schema = json.loads(files("vsfix.pipeline.benchmark").joinpath("benchmark.schema.json").read_text())
    old = json.loads(OLD.read_text())
    jsonschema.validate(old, schema)
    found = read_benchmark(OLD)
    values = list(found.rows.values())
    assert (values[0]["top1"], values[1]["retention"], values[1]["agreement"]) == pytest.approx((76, 100, 100))
    assert list(found.right.values()) == [76, 76]
    old["metric"] = {"key": "top1", "name": "top-1", "output": "y", "unit": "%", "higher_is_better": True}
    old["rows"][0]["top1"]["value"] = 0.7
    (tmp_path / "b.json").write_text(json.dumps(old))
    assert "top1 76 -> 70" in compare_files(OLD, tmp_path / "b.json", [FailRule("top1", 0.5)]).failures[0]
