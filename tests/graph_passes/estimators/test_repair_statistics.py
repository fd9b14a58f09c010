from __future__ import annotations

import numpy as np

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.estimators.repair_statistics import RepairStatistics
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.statistics.estimate import Estimate


def estimate(kept: int = 0) -> Estimate:
    return Estimate(
        mean=np.full(6, 0.25),
        variance=np.full(6, 4.0),
        invalid=np.arange(6) < kept,
        shift=0.5,
        interval=(0.4, 0.6),
        channel_intervals=None,
        samples=100,
    )


def test_only_the_named_statistics_change(residual):
    graph = import_graph(residual)
    before = {tensor.name: tensor.raw_data for tensor in residual.graph.initializer}
    result = RepairStatistics({"bn2": estimate()}, {"bn1": "not asked for"})(graph)
    after = export_model(graph, residual)
    changed = {tensor.name for tensor in after.graph.initializer if tensor.raw_data != before[tensor.name]}
    assert changed == {"bn2.running_mean", "bn2.running_var"}
    assert [change.subject for change in result.changed] == ["bn2"]
    assert [(kept.subject, kept.reason) for kept in result.skipped] == [
        ("bn1", "not asked for"),
        ("bn3", "no estimate was made"),
    ]


def test_a_second_run_changes_nothing(residual):
    graph = import_graph(residual)
    repair = RepairStatistics({"bn2": estimate()}, {})
    assert repair(graph).modified
    assert not repair(graph).modified


def test_a_batch_norm_without_a_valid_channel_keeps_its_statistics(residual):
    graph = import_graph(residual)
    before = find_batch_norms(graph)[1].variance
    result = RepairStatistics({"bn2": estimate(kept=6)}, {})(graph)
    assert not result.modified
    assert (find_batch_norms(graph)[1].variance == before).all()


def test_the_report_counts_the_channels(residual):
    result = RepairStatistics({"bn2": estimate(kept=2)}, {})(import_graph(residual))
    assert "repaired in 4 of 6 channels" in result.changed[0].action
