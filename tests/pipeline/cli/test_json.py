"""One envelope for the documents of all commands, whatever their end is."""

from __future__ import annotations

import importlib.util
import json
import shlex

import pytest

from vsfix.graph_passes.errors import MissingComponentError
from vsfix.pipeline.cli.main import SUMMARIES

ENVELOPE = ["schema_version", "command", "status", "verdict", "warnings"]

SUCCESSES = {
    "demo": "demo -o {new}",
    "train": "train --model mlp-1 --data digits --samples 256 --epochs 1 -o {new}",
    "export": "export {run} -o {new}.onnx",
    "inspect": "inspect {net}",
    "optimize": "optimize {net} --method none --dry-run",
    "build": "build {net} -o {new}.plan --runtime tensorrt-rtx --target sm89 --shapes input:1x1x8x8",
    "package": "package {net} -o {new}",
    "verify": "verify {net} --against {net} --samples 8",
    "benchmark": "benchmark {net} --data digits --samples 20 --seconds 0 --repair none",
    "compare": "compare {bench} {bench}",
    "reproduce": "reproduce uout -o {new} --dry-run",
    "doctor": "doctor",
}
MARKS = {
    "demo": pytest.mark.long,
    "doctor": pytest.mark.long,
    "build": pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
    ),
}
BAD_INPUTS = {
    "demo": "demo -o {full}",
    "train": "train --model vgg --data digits -o {new}",
    "export": "export {gone}.pt -o {new}.onnx",
    "inspect": "inspect {gone}.onnx",
    "optimize": "optimize {net} -o {net} --force",
    "build": "build {gone}.onnx -o {new}.plan",
    "package": "package {gone}.onnx -o {new}",
    "verify": "verify {net} --against {gone}.onnx",
    "benchmark": "benchmark {net} --data {gone}.npz",
    "compare": "compare {gone}.json {gone}.json",
    "reproduce": "reproduce figure9 -o {new}",
}
WRONG_USAGE = {
    "optimize": "optimize {net}",
    "verify": "verify {net}",
    "export": "export a:b -o {new}.onnx",
    "inspect": "inspect {net} --seed x",
    "build": "build {net} -o {new}.plan --runtime abacus",
    "reproduce": "reproduce uout -o {new} --gpus 1",
    "optimise": "optimise {net}",
}


@pytest.fixture
def fill(call, onnx_path, checkpoint_path, tmp_path):
    """Makes the words of a command line."""

    def words(line: str) -> list[str]:
        bench = tmp_path / "bench.json"
        if "{bench}" in line:
            assert call(*words(SUCCESSES["benchmark"]), "--json", bench).exit_code == 0
        files = {"net": onnx_path, "full": onnx_path.parent, "run": checkpoint_path, "bench": bench}
        return shlex.split(line.format(**files, gone=tmp_path / "gone", new=tmp_path / "new"))

    return words


def document(text: str, command: str) -> dict:
    """The document, which must be alone, in JSON that has no NaN, and begin with the envelope."""
    found = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert list(found)[:5] == ENVELOPE
    assert (found["schema_version"], found["command"]) == (1, command)
    assert found["status"] in ("PASS", "WARN", "FAIL", "SKIP")
    assert found["verdict"]
    assert isinstance(found["warnings"], list)
    return found


def test_every_command_is_tried():
    assert set(SUCCESSES) == set(SUMMARIES)
    assert set(BAD_INPUTS) == set(SUMMARIES) - {"doctor"}  # which reads nothing


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in SUCCESSES])
def test_the_document_of_every_command_is_alone_on_stdout(call, fill, name):
    result = call(*fill(SUCCESSES[name]), "--json", "-")
    assert result.exit_code == 0, result.output
    found = document(result.stdout, name)
    assert found["status"] in ("PASS", "WARN") or (name, found["status"]) == ("reproduce", "SKIP")
    assert len(found) > len(ENVELOPE)


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_a_document_too(call, fill, name):
    result = call(*fill(BAD_INPUTS[name]), "--json", "-")
    assert result.exit_code == 2, result.output
    found = document(result.stdout, name)
    assert (found["status"], list(found)) == ("FAIL", ENVELOPE)
    assert result.stderr.splitlines()[-1] == f"vsfix: error: {' '.join(found['verdict'].split())}"


@pytest.mark.parametrize("name", WRONG_USAGE)
@pytest.mark.parametrize("option", [("--json", "-"), ("--json=-",)])
def test_a_command_line_that_can_not_be_read_is_a_document_too(call, fill, name, option):
    result = call(*fill(WRONG_USAGE[name]), *option)
    assert result.exit_code == 2, result.output
    found = document(result.stdout, name)
    assert found["status"] == "FAIL"
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"vsfix: error: {found['verdict']} (see `vsfix")


@pytest.mark.parametrize("name", WRONG_USAGE)
def test_without_json_a_wrong_command_line_prints_nothing_on_stdout(call, fill, name, tmp_path):
    assert call(*fill(WRONG_USAGE[name])).stdout == ""
    assert call(*fill(WRONG_USAGE[name]), "--json", tmp_path / "r.json").stdout == ""
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (MissingComponentError("no GPU"), 3, "SKIP"),
        (OSError(28, "No space left"), 2, "FAIL"),
        (MemoryError("8 TiB"), 2, "FAIL"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 3, "SKIP"),
        (ZeroDivisionError("oh no"), 70, "FAIL"),
    ],
)
def test_an_error_of_any_kind_is_a_document(call, monkeypatch, tmp_path, error, code, status):
    def fail():
        raise error

    monkeypatch.setattr("vsfix.pipeline.backends.doctor.check_backends", fail)
    result = call("doctor", "--json", "-")
    assert result.exit_code == code
    found = document(result.stdout, "doctor")
    assert found["status"] == status
    assert found["verdict"] in result.stderr
    assert call("doctor", "--json", tmp_path / "r.json").exit_code == code
    assert document((tmp_path / "r.json").read_text(), "doctor") == found


def test_a_refused_output_is_told_in_the_document_and_no_file_is_touched(call, fill, tmp_path):
    there = tmp_path / "there.onnx"
    there.write_text("precious")
    words = [*fill("optimize {net} --method none"), "-o", there]
    assert call(*words, "--json", tmp_path / "r.json").exit_code == 2
    assert "exists already" in document((tmp_path / "r.json").read_text(), "optimize")["verdict"]
    assert call(*words, "--json", there, "--force").exit_code == 2
    assert call(*words, "--json", there).exit_code == 2
    assert there.read_text() == "precious"


def test_a_run_that_goes_on_replaces_the_document_of_the_call_before_and_nothing_else(call, fill, tmp_path):
    words = [*fill(SUCCESSES["train"]), "--json", tmp_path / "r.json"]
    assert call(*words).exit_code == 0
    assert document((tmp_path / "r.json").read_text(), "train")["resumed_from"] == 0
    assert call(*words).exit_code == 0
    assert document((tmp_path / "r.json").read_text(), "train")["resumed_from"] == 1
    (tmp_path / "r.json").write_text('{"command": "benchmark"}')
    assert call(*words).exit_code == 2
    assert (tmp_path / "r.json").read_text() == '{"command": "benchmark"}'
