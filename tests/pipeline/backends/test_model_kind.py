from __future__ import annotations

import os

import pytest

from tests.pipeline.tensorrt.fake_engine import MAGIC
from vsfix.pipeline.backends.model_kind import model_kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("m.pt", "checkpoint"), ("m.pth", "checkpoint"), ("m.onnx", "onnx"), ("M.ONNX", "onnx")),
        *(("m.plan", "engine"), ("m.engine", "engine"), ("m.trt", "engine")),
    ],
)
def test_a_known_suffix_decides_whether_the_file_is_there_or_not(tmp_path, name, kind):
    assert model_kind(tmp_path / name) == kind
    (tmp_path / name).write_bytes(MAGIC)
    assert model_kind(tmp_path / name) == kind


@pytest.mark.parametrize(
    ("content", "kind"),
    [(MAGIC, "engine"), (b"vtrt\0", "engine"), (b"PK\x03\x04rest", "checkpoint"), (b"\x08\x08", "onnx"), (b"", "onnx")],
)
def test_without_one_the_content_does(tmp_path, content, kind):
    (tmp_path / "model").write_bytes(content)
    assert model_kind(tmp_path / "model") == kind


def test_what_has_a_sidecar_is_an_engine_even_if_its_content_is_not(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"corrupt")
    (tmp_path / "model.bin.json").write_text("{}")
    assert model_kind(tmp_path / "model.bin") == "engine"


def test_a_folder_stands_for_its_checkpoint_and_a_name_alone_for_onnx(tmp_path):
    assert model_kind(tmp_path) == "checkpoint"
    assert model_kind(tmp_path / "gone") == "onnx"


def test_a_checkpoint_of_torch_and_a_plan_of_tensorrt_rtx_are_told_by_their_content(checkpoint_path, tmp_path):
    (tmp_path / "model").write_bytes(checkpoint_path.read_bytes())
    assert model_kind(tmp_path / "model") == "checkpoint"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model")
    assert model_kind(tmp_path / "model") == "onnx"
