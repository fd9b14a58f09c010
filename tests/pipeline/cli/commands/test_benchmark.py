"""`vsfix benchmark` and `vsfix compare` as they are typed: exit codes, JSON by its schema, files, one table."""

from __future__ import annotations

import json
from importlib.resources import files

import jsonschema
import numpy as np
import onnx
import pytest

QUICK = ("--data", "digits", "--samples", "100", "--seconds", "0", "--repair", "none")


@pytest.fixture(scope="module")
def schema():
    """The schema that the package ships."""
    return json.loads(files("vsfix.pipeline.benchmark").joinpath("benchmark.schema.json").read_text())


def test_the_table_shows_every_row_and_the_verdict_comes_last(call, checkpoint_path, onnx_path):
    result = call("benchmark", checkpoint_path, onnx_path, *QUICK, "--precision", "fp32", "--precision", "fp16")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert sum("onnxruntime" in line or "torch" in line for line in lines[:-3]) >= 3
    assert lines[-1].startswith("PASS No repair was looked for: top-1 ")


def test_the_json_fits_its_schema_with_all_that_can_be_in_it(call, schema, checkpoint_path, onnx_path):
    options = ("--seconds", "0.0001", "--batch", "1", "--repair", "paired:32", "--backend", "torch", "--backend")
    result = call(
        *("benchmark", checkpoint_path, onnx_path, *QUICK[:4], *options, "onnxruntime"),
        *("--backend", "onnxruntime-cuda", "--precision", "fp32", "--precision", "fp16", "--json", "-"),
    )
    assert result.exit_code == 3, result.output
    document = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    assert [row["status"] for row in document["rows"]] == ["PASS"] * 3 + ["SKIP"] * 2
    assert document["repairs"]["accuracies"][1]["images"] == 32
    # The schema can fail: a number outside its range, and a key that it does not know.
    for broken in (
        {**document, "samples": 0},
        {**document, "extra": 1},
        {**document, "rows": [{**document["rows"][0], "status": "FINE"}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_the_predictions_are_written_and_count_up_to_the_table(call, onnx_path, tmp_path):
    result = call("benchmark", onnx_path, *QUICK, "--predictions", tmp_path / "p.npz", "--json", tmp_path / "b.json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "b.json").read_text())["rows"]
    with np.load(tmp_path / "p.npz") as found:
        assert set(found) == {"labels", row["label"]}
        assert int((found[row["label"]] == found["labels"]).sum()) == row["score"]["count"]


def test_an_output_that_exists_or_is_an_input_is_left_alone(call, onnx_path, tmp_path):
    (tmp_path / "p.npz").write_bytes(b"mine")
    for arguments in (("--predictions", tmp_path / "p.npz"), ("--json", onnx_path)):
        assert call("benchmark", onnx_path, *QUICK, *arguments).exit_code == 2
    assert (tmp_path / "p.npz").read_bytes() == b"mine"


def test_a_row_that_can_t_run_here_ends_in_3_after_everything_else(call, onnx_path, tmp_path):
    options = ("--backend", "onnxruntime", "--backend", "onnxruntime-cuda", "--json", tmp_path / "b.json")
    result = call("benchmark", onnx_path, *QUICK, *options)
    assert result.exit_code == 3
    assert "SKIP" in result.stdout
    assert result.stderr.startswith("vsfix: error: ")
    assert (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--repair", "best:3"), "write METHOD:IMAGES"),
        (("--backend", "torch"), "none of the backends torch runs it"),
        (("--precision", "fp99"), "unknown"),
        (("--batch", "2", "--batch", "2"), "name each batch size once"),
    ],
)
def test_wrong_usage_is_one_line(call, onnx_path, arguments, words):
    result = call("benchmark", onnx_path, "--data", "digits", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_two_benchmarks_are_compared_and_a_rule_decides(call, onnx_path, tmp_path):
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    assert call("benchmark", onnx_path, *QUICK, "--json", before).exit_code == 0
    document = json.loads(before.read_text())
    document["rows"][0]["score"]["value"] -= 5
    after.write_text(json.dumps(document))
    assert call("compare", before, after).exit_code == 0
    assert call("compare", after, before, "--fail-on", "top1=0").exit_code == 0
    result = call("compare", before, after, "--fail-on", "top1=0.5", "--json", tmp_path / "c.json")
    assert result.exit_code == 1
    assert "worse" in result.stdout
    assert result.stdout.splitlines()[-1] == "FAIL 0 better, 1 worse, 1 the same"
    assert "(-5 percentage points), allowed is a loss of 0.5" in result.stderr
    assert json.loads((tmp_path / "c.json").read_text())["failures"]


def test_a_row_that_fails_is_named_once_and_the_line_has_no_stray_signs(call, onnx_path, tmp_path):
    model = onnx.load(onnx_path)
    model.graph.node.append(onnx.helper.make_node("Relu", [model.graph.output[0].name], ["second"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, ["N", 10]))
    onnx.save(model, tmp_path / "two.onnx")
    result = call("benchmark", onnx_path, tmp_path / "two.onnx", *QUICK)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert line.count(f"two.onnx, onnxruntime, fp32: {tmp_path / 'two.onnx'}: has the outputs") == 1
    assert ".;" not in line
    assert line.startswith("vsfix: error: No repair was looked for: top-1 ")
