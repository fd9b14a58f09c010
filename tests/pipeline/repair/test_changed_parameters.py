"""The promise of `--statistics`: PyTorch computes with it as the repaired file does, or it is said that it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vsfix import optimize
from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.io.model_file import read_model
from vsfix.pipeline.inspection.preparation import prepare_model
from vsfix.pipeline.repair.changed_parameters import changed_parameters
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.trainers.export.onnx_export import export_onnx

MATCH = RepairConfig(method="match")
WIDTH, SAMPLES = 32, 200


class Perceptron(nn.Module):
    """Three linear layers with Dropout between them, for vectors or, averaged in the end, for rows of them."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, WIDTH, bias=bias), nn.Linear(WIDTH, WIDTH, bias=bias)
        self.c, self.drop = nn.Linear(WIDTH, 2), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.relu(self.b(self.drop(torch.relu(self.a(x))))))
        y: torch.Tensor = self.c(x * x)
        return y.mean(1) if y.dim() == 3 else y


class Twice(nn.Module):
    """One linear layer that is called twice, with one BatchNorm or one for each call."""

    def __init__(self, shares_batch_norm: bool) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(10, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.n, self.drop = nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)
        self.m = self.n if shares_batch_norm else nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.n(self.drop(self.layer(self.first(x)))))
        x = torch.relu(self.m(self.drop(self.layer(x))))
        y: torch.Tensor = self.last(x)
        return y


class TwiceWithoutBatchNorm(Twice):
    """One layer upstream of two non-linearities."""

    def __init__(self) -> None:
        super().__init__(shares_batch_norm=True)
        del self.n, self.m

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.tanh(self.first(x) * 3))
        x = self.drop(torch.tanh(self.layer(x) * 2))
        y: torch.Tensor = self.last(torch.tanh(self.layer(x) * 2))
        return y


class Tied(nn.Module):
    """An autoencoder: the matrix of its middle layer again, turned round, in the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.e, self.drop = nn.Linear(10, 16), nn.Linear(16, WIDTH), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.e(self.drop(torch.relu(self.first(x)))))
        return nn.functional.linear(x * x, self.e.weight.t())


def normalised(affine: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for into in (10, WIDTH, WIDTH):
        layers += [nn.Linear(into, WIDTH), nn.Dropout(0.6), nn.BatchNorm1d(WIDTH, affine=affine), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


def convolutional(bias: bool) -> nn.Module:
    convolutions = [nn.Conv2d(1, 8, 3), nn.Dropout(0.8), nn.Conv2d(8, 8, 3, bias=bias), nn.GELU(), nn.Dropout(0.5)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8 * 16, 2))


def exported(module: nn.Module, path, *shape: int) -> np.ndarray:
    """Writes a module whose statistics are true under its noise; returns the samples."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for layer in module.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
            if isinstance(layer, nn.BatchNorm1d):
                layer.momentum = None
        x = torch.randn(SAMPLES, *shape)
        with torch.no_grad():
            for _ in range(60):
                module.train()(x)
    export_onnx(module.eval(), x[:2], path)
    return x.numpy()


def outputs_with(arrays, module: nn.Module, x: np.ndarray) -> np.ndarray:
    """README's three lines."""
    state = module.state_dict()
    state.update({name: torch.from_numpy(np.asarray(values)) for name, values in arrays.items()})
    module.load_state_dict(state)
    with torch.no_grad():
        return module.eval()(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize(
    ("build", "shape", "words"),
    [
        (lambda: normalised(affine=True), (10,), ()),
        (lambda: normalised(affine=False), (10,), ()),
        (Perceptron, (10,), ()),
        (lambda: Twice(shares_batch_norm=False), (10,), ()),
        (lambda: convolutional(bias=True), (1, 8, 8), ()),
        (
            lambda: Perceptron(bias=False),
            (10,),
            ("the bias of 'node_linear_1', for which the module has no parameter",),
        ),
        (lambda: convolutional(bias=False), (1, 8, 8), ("the bias of 'node_conv2d_1', for which",)),
        (Perceptron, (6, 10), ("the weight of 'node_MatMul_4', which the file holds under no name",)),
        (
            lambda: Perceptron(bias=False),
            (6, 10),
            ("the weight of 'node_linear_1', which the file", "the bias of 'node_linear_1', for which"),
        ),
        (lambda: Twice(shares_batch_norm=True), (10,), ("BatchNorm 'getitem', BatchNorm 'm', whose running",)),
        (TwiceWithoutBatchNorm, (10,), ("which several layers share",)),
        (Tied, (10,), ("the weight of 'node_linear_1', which several layers share", "the bias of 'node_linear_2'")),
    ],
)
def test_pytorch_agrees_with_the_file_or_it_is_said_that_it_does_not(build, shape, words, tmp_path, open_model):
    module = build()
    x = exported(module, tmp_path / "m.onnx", *shape)
    model = read_model(tmp_path / "m.onnx")
    repair = repair_model(model, [{"input": x}], open_model, MATCH)
    file, before = (open_model(one).run({"input": x})["logits"] for one in (repair.model, model))
    assert np.abs(file - before).max() > 1e-2 * file.std(), "the repair must be seen"
    torch_outputs = outputs_with(repair.statistics, module, x)
    agrees = bool(np.abs(torch_outputs - file).max() < 1e-4 * file.std())
    assert agrees is (not words)
    assert len(repair.not_carried) == len(words)
    for sentence, part in zip(repair.not_carried, words, strict=True):
        assert part in sentence
        assert "PyTorch with it will not agree with the repaired file" in sentence


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 5.0])
def test_a_scale_becomes_a_running_variance_or_is_reported(scale, tmp_path):
    """Where epsilon is as large as the variance, the deviation can't fall below 0.7 of what it was."""
    module = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.BatchNorm1d(8, affine=False), nn.GELU())
    exported(module.append(nn.Linear(8, 1)), tmp_path / "m.onnx", 10)
    prepared = prepare_model(read_model(tmp_path / "m.onnx"))
    for node in prepared.graph.nodes:
        if node.op == "BatchNormalization":
            node.attrs["epsilon"] = 1.0
    mean, variance = np.linspace(-1, 1, 8), np.full(8, 1.0)
    (before,) = find_batch_norms(prepared.graph)
    before.with_statistics(mean, variance)
    unchanged = prepared.graph.copy()
    before.with_parameters(np.full(8, scale), np.full(8, 0.25), mean, variance)
    found = changed_parameters(prepared.source, unchanged, prepared.graph, {"2"})
    if scale > 2**0.5:
        assert found.arrays == {}
        assert "BatchNorm '2', whose module has no scale and shift for it" in found.not_carried()[0]
        return
    assert found.not_carried() == ()
    assert set(found.arrays) == {"2.running_mean", "2.running_var"}
    x = np.linspace(-2, 2, 8)
    y = (x - found.arrays["2.running_mean"]) / np.sqrt(found.arrays["2.running_var"] + 1)
    np.testing.assert_allclose(y, scale * (x - mean) / 2**0.5 + 0.25, rtol=1e-5, atol=1e-6)


def test_who_asks_for_the_statistics_is_warned_and_gets_no_pass(tmp_path):
    path, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    np.savez(data, input=exported(Perceptron(bias=False), path, 10))
    for statistics in (tmp_path / "s.npz", None):
        done = optimize(path, data, method="match", batch_size=64)
        done = done.for_torch() if statistics else done
        done.save(tmp_path / "out.onnx", force=True, statistics=statistics)
        warned = any("the statistics file does not carry the bias" in line for line in done.repair.report.warnings)
        assert (done.status, warned) == (("WARN", True) if statistics else ("PASS", False))
