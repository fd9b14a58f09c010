"""One BatchNorm that a network uses twice: one name, one mean and variance, one scale and shift, file and module agree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms, find_modules
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.pipeline.inspection.inspection import inspect_model
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.trainers.export.onnx_export import export_onnx

SAMPLES = 256


class TwoViews(nn.Module):
    """Conv - Dropout - BatchNorm over two inputs of another scale, as Siamese networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.Dropout(0.5)
        self.b, self.f = nn.BatchNorm2d(6, momentum=None), nn.Linear(216, 4)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.d(self.c(x))).relu().flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(self.encode(x[:, :1]) + self.encode(x[:, 1:]).flip(1))


def views(seed: int) -> torch.Tensor:
    a = torch.randn(SAMPLES, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) + 0.5
    return torch.cat([a, 2.5 * a.flip(3) + 1], 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[TwoViews, onnx.ModelProto]:
    """The module, its statistics those of its noise, and its file."""
    torch.manual_seed(0)
    net, x = TwoViews(), views(0)
    with torch.no_grad():
        for _ in range(60):
            net.train()(x[torch.randperm(SAMPLES)[:64]])
    path = tmp_path_factory.mktemp("two") / "two.onnx"
    result = export_onnx(net.eval(), x[:2], path)
    assert result.batch_norms == ("b",)
    return net, onnx.load(path)


def repaired(model, open_model, method: str, **changes):
    config = RepairConfig(method=method, refine=False, **changes)
    return repair_model(model, [{"input": views(0).numpy()}], open_model, config)


@pytest.mark.long
@pytest.mark.parametrize("method", ["paired", "exact", "match"])
def test_the_module_with_the_statistics_computes_what_the_file_does(trained, open_model, method):
    net, model = trained
    result = repaired(model, open_model, method)
    assert {"b.running_mean", "b.running_var"} <= set(result.statistics)
    assert not [warning for warning in result.report.warnings if "does not carry" in warning]
    twin = TwoViews().eval()
    twin.load_state_dict(net.state_dict() | {name: torch.tensor(array) for name, array in result.statistics.items()})
    x = views(5)
    with torch.no_grad(), open_model(result.model) as runner:
        found = runner.run({"input": x.numpy()})["logits"]
        np.testing.assert_allclose(found, twin(x).numpy(), rtol=1e-3, atol=1e-4)
        assert np.abs(found - net(x).numpy()).max() > 0.1, "the repair must have changed something"


@pytest.mark.parametrize(("method", "error"), [("exact", 1e-4), ("paired", 0.05)])
def test_what_is_written_is_pooled_over_both_uses(trained, open_model, method, error):
    net, model = trained
    with torch.no_grad():
        z = torch.cat([net.c(views(0)[:, :1]), net.c(views(0)[:, 1:])])
    parameters = repaired(model, open_model, method).statistics
    np.testing.assert_allclose(parameters["b.running_var"], z.var((0, 2, 3), unbiased=False).numpy(), rtol=error)
    np.testing.assert_allclose(parameters["b.running_mean"], z.mean((0, 2, 3)).numpy(), atol=0.02)


def test_the_report_has_one_row_and_both_uses_are_folded(trained, open_model):
    _, model = trained
    result = repaired(model, open_model, "match")
    (row,) = result.report.batch_norms
    assert (row.before.name, row.repaired, row.folded) == ("b", True, True)
    assert sum(node.op_type == "BatchNormalization" for node in result.model.graph.node) == 0
    assert {layer.name for layer in result.report.layers} >= {"b"}
    assert not {layer.name for layer in result.report.layers} & {"getitem"}
    assert result.report.severity_after.ratio <= result.report.severity_before.ratio


def test_a_network_that_is_as_it_was_trained_is_not_blamed(trained, open_model):
    """Training stores the mean of the two variances, and the data shows the larger one of all values: both are right."""
    net, model = trained
    with_noise = inspect_model(model, [{"input": views(0).numpy()}], open_model)
    assert [row.name for row in with_noise.rows] == ["b"]
    assert not with_noise.stored, "the statistics are those of the noise"
    quiet = onnx.ModelProto()
    quiet.CopyFrom(model)
    net.d.p = 0.0
    try:
        with torch.no_grad():
            net.b.reset_running_stats()
            for _ in range(60):
                net.train()(views(0)[torch.randperm(SAMPLES)[:64]])
        for initializer in quiet.graph.initializer:
            if initializer.name in ("b.running_mean", "b.running_var"):
                initializer.raw_data = getattr(net.b, initializer.name[2:]).numpy().tobytes()
    finally:
        net.d.p = 0.5
        net.eval()
    for node in quiet.graph.node:
        if node.op_type == "Dropout":
            node.op_type, node.name = "Identity", f"no_{node.name}"
            del node.input[1:]
    healthy = inspect_model(quiet, [{"input": views(0).numpy()}], open_model)
    assert healthy.rows[0].mismatch == pytest.approx(1, abs=0.05)


def test_only_nodes_beside_each_other_are_one_module(parse):
    weights = {"g": 2.0, "b": 0.5, "m": 0.1, "v": 3.0}
    constants = {name: np.full(4, value, np.float32) for name, value in weights.items()}
    beside = "n = BatchNormalization (x, g, b, m, v)\n k = BatchNormalization (z, g, b, m, v)\n y = Add (n, k)"
    in_a_row = "n = BatchNormalization (x, g, b, m, v)\n r = Add (n, z)\n y = BatchNormalization (r, g, b, m, v)"
    for body, modules in ((beside, 1), (in_a_row, 2)):
        graph = import_graph(parse(f"(float[N, 4] x, float[N, 4] z) => (float[N, 4] y) {{ {body} }}", constants))
        assert (len(find_modules(graph)), len(find_batch_norms(graph))) == (modules, 2)
    fresh = {"g": np.ones(4), "b": np.zeros(4), "m": np.zeros(4), "v": np.ones(4)}
    weights32 = {name: value.astype(np.float32) for name, value in fresh.items()}
    graph = import_graph(parse(f"(float[N, 4] x, float[N, 4] z) => (float[N, 4] y) {{ {beside} }}", weights32))
    assert len(find_modules(graph)) == 2, "constants that an exporter merged are not one module"
