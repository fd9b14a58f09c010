from __future__ import annotations

import json
import math
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from vsfix.graph_passes.errors import InputError, OutputExistsError
from vsfix.pipeline.host.console import SCHEMA_VERSION, is_document_of, require_json_target, write_json


class Colour(Enum):
    RED = "red"


RESULT = {
    "plain": [1, 2.5, "text", None, True],
    "special": [math.nan, math.inf, -math.inf],
    "types": (Colour.RED, Path("a/b"), np.float32(0.5), np.array([[1, 2]])),
    "nested": {"rows": ({"x": np.int64(3)},)},
}
EXPECTED = {
    "schema_version": SCHEMA_VERSION,
    "plain": [1, 2.5, "text", None, True],
    "special": [None, None, None],
    "types": ["red", "a/b", 0.5, [[1, 2]]],
    "nested": {"rows": [{"x": 3}]},
}


def refuse(constant: str) -> None:
    pytest.fail(f"{constant} is no JSON")


def test_a_result_becomes_strict_json_in_a_file(tmp_path):
    write_json(RESULT, str(tmp_path / "r.json"), force=False)
    assert json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse) == EXPECTED


def test_a_dash_means_stdout(capsys):
    write_json(RESULT, "-", force=False)
    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == EXPECTED


def test_an_existing_file_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(OutputExistsError):
        require_json_target(str(path), force=False)
    with pytest.raises(OutputExistsError):
        write_json({}, str(path), force=False)
    assert path.read_text() == "old"
    require_json_target(str(path), force=True)
    write_json({}, str(path), force=True)
    assert json.loads(path.read_text()) == {"schema_version": SCHEMA_VERSION}


def test_an_input_is_never_a_target(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"model")
    with pytest.raises(InputError, match="is an input"):
        require_json_target(str(tmp_path / "." / "model.onnx"), force=True, inputs=[path])


def test_stdout_and_no_json_need_no_target():
    require_json_target("-", force=False)
    require_json_target(None, force=False)


@pytest.mark.parametrize("name", ["e.plan", "../{}/e.plan"])
def test_a_result_is_not_written_over_another_output(tmp_path, name):
    target = str(tmp_path / name.format(tmp_path.name))
    require_json_target(target, force=True, outputs=[tmp_path / "other.plan", None])
    with pytest.raises(InputError, match="is another output of this command"):
        require_json_target(target, force=True, outputs=[tmp_path / "e.plan"])


def test_a_command_knows_the_documents_that_it_wrote(tmp_path):
    path = tmp_path / "r.json"
    assert not is_document_of("train", path)
    write_json({"command": "train"}, str(path), force=False)
    assert is_document_of("train", path)
    assert not is_document_of("export", path)
    for text in ("{", "[]", '{"command": "train"}'):
        path.write_text(text)
        assert not is_document_of("train", path)
