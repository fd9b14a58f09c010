"""The load of benchmarks/reliability in small, and that its checks can fail."""

from __future__ import annotations

import sys

import onnx
import pytest

from .reliability_scripts import reliability_scripts

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads what Linux says of memory")


@pytest.fixture(scope="module")
def load():
    with reliability_scripts() as modules:
        yield modules.load


@pytest.mark.long
def test_many_samples_stay_below_the_limit_of_memory(load, tmp_path):
    row = load.many_samples(tmp_path, samples=10_000, limit=160)
    assert row.wrong == []
    assert row.mebibytes < row.limit
    assert not load.is_over(row)
    assert load.is_over(load.Load("planted", 1.0, mebibytes=257, limit=256))


def test_a_deep_network_is_inspected_and_repaired(load, tmp_path):
    rows = load.many_nodes(tmp_path, nodes=800)
    assert [row.wrong for row in rows] == [[], []]


@pytest.mark.long
def test_processes_that_write_one_file_leave_one_of_theirs(load, tmp_path, monkeypatch):
    row = load.many_processes(tmp_path, processes=3)
    assert row.wrong == []
    (tmp_path / ".shared.onnx.12345678.part").touch()  # planted
    monkeypatch.setattr(
        load, "VSFIX", (sys.executable, "-c", "import shutil; shutil.copy('net.onnx', __import__('sys').argv[-1])")
    )
    row = load.many_processes(tmp_path, processes=2)
    assert any("left behind" in text for text in row.wrong)


def test_what_a_command_leaves_undone_is_seen(load, tmp_path):
    wrong: list[str] = []
    load.run_vsfix(["inspect", "missing.onnx"], tmp_path, wrong)
    load.check(tmp_path / "missing.onnx", wrong)
    onnx.save(onnx.ModelProto(), tmp_path / "empty.onnx")
    load.check(tmp_path / "empty.onnx", wrong)
    assert len(wrong) == 3
    assert "exit 2" in wrong[0]
