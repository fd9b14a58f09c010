from __future__ import annotations

import pytest

from vsfix.graph_passes.io.model_file import read_model
from vsfix.trainers.training.checkpoint import load_checkpoint


@pytest.mark.long
def test_the_demo_shows_the_damage_and_the_repair(call, tmp_path):
    from vsfix.pipeline.reproduction.demo import run_demo

    said: list[str] = []
    demo = run_demo(tmp_path / "demo", force=False, say=said.append)
    trained, matched, exact, averaged = (row.score.value / 100 for row in demo.accuracies)
    assert averaged - trained > 0.05, "the damage must be plain"
    assert matched > averaged - 0.03
    assert exact > trained
    assert demo.repair.report.severity_after.ratio < 1 < demo.repair.report.severity_before.ratio
    assert [step.status for step in demo.steps] == ["PASS"] * 3
    assert all(step.snr_db > 100 for step in demo.steps)
    operators = [node.op_type for node in read_model(tmp_path / "demo" / "repaired.onnx").graph.node]
    assert "Dropout" not in operators
    assert load_checkpoint(tmp_path / "demo" / "training" / "checkpoint.pt").epoch == 15
    page = demo.report.read_text()
    assert "</html>" in page
    assert "mean of 16 noisy passes" in page
    assert "Median latency: as trained " in page
    assert said[0].startswith("train")


def test_a_folder_that_holds_something_is_not_touched_without_force(call, tmp_path):
    (tmp_path / "thing.txt").write_text("precious")
    result = call("demo", "-o", tmp_path)
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thing.txt"]


def test_a_file_is_no_folder(call, tmp_path):
    (tmp_path / "thing.txt").write_text("precious")
    result = call("demo", "-o", tmp_path / "thing.txt")
    assert result.exit_code == 2
    assert (tmp_path / "thing.txt").read_text() == "precious"
