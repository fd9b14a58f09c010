"""Weights that were averaged without their statistics: torch's `update_bn` is the truth of what is written."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import vsfix
from vsfix.pipeline.repair.averaging import average_repair
from vsfix.pipeline.repair.repair import prepare
from vsfix.pipeline.repair.repair_config import RepairConfig

ROWS = 2048
X = np.random.default_rng(0).normal(0.3, 1.0, (ROWS, 8)).astype(np.float32)
Y = (np.sin(X[:, :1]) + X[:, 1:2] * X[:, 2:3]).astype(np.float32)


def build(ratio: float) -> nn.Module:
    def block(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, 24), nn.Dropout(ratio), nn.BatchNorm1d(24), nn.ReLU()]

    return nn.Sequential(*block(8), *block(24), nn.Linear(24, 1))


@cache
def averaged(ratio: float) -> nn.Module:
    """A network whose weights torch averaged; its statistics are those of the last."""
    torch.manual_seed(0)
    module = build(ratio).train()
    mean = AveragedModel(module)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(Y)
    for _ in range(12):
        for rows in torch.randperm(ROWS).split(256):
            optimiser.zero_grad()
            nn.functional.mse_loss(module(inputs[rows]), targets[rows]).backward()
            optimiser.step()
        mean.update_parameters(module)
    return mean.module.eval()


def with_statistics(module: nn.Module, name: str) -> nn.Module:
    """A copy with other statistics."""
    other = copy.deepcopy(module)
    for layer in other.modules():
        if isinstance(layer, nn.BatchNorm1d) and name != "of the last weights":
            layer.reset_running_stats()
            if name == "stale":
                layer.running_mean += 1.0
                layer.running_var *= 7.0
    return other


def exported(module: nn.Module, tmp_path) -> onnx.ModelProto:
    vsfix.export(module.eval(), torch.from_numpy(X[:4])).save(tmp_path / "net.onnx", force=True)
    return onnx.load(tmp_path / "net.onnx")


def updated(module: nn.Module, batch: int, passes: int = 1) -> dict[str, np.ndarray]:
    """The statistics that torch's `update_bn` leaves, its variances those of a population."""
    found = copy.deepcopy(module)
    torch.manual_seed(1)
    update_bn([part for _ in range(passes) for part in torch.from_numpy(X).split(batch)], found)
    unbiased = {name: array.numpy() for name, array in found.named_buffers() if "num" not in name}
    return {name: array * ((batch - 1) / batch if "var" in name else 1) for name, array in unbiased.items()}


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in found.items() if "running" in name}


@pytest.mark.parametrize("before", ["of the last weights", "stale", "never set"])
def test_without_noise_what_is_written_is_what_update_bn_writes(before, tmp_path):
    module = averaged(0.0)
    model = exported(with_statistics(module, before), tmp_path)
    found = vsfix.optimize(model, X, method="exact", layers="all", fold=False)
    written, whole, batches = stored(found.model), updated(module, ROWS), updated(module, 256)
    assert set(written) == set(whole)
    for name, array in written.items():
        np.testing.assert_allclose(array, whole[name], rtol=2e-5, atol=2e-6, err_msg=name)
        # The mean over batches of what each shows; between them the batches differ by chance.
        assert np.abs(array - batches[name]).max() < 0.1 * np.abs(array).max(), name
        assert not np.allclose(array, stored(model)[name], rtol=2e-5, atol=2e-6), "a mistake would be seen"


def test_under_noise_the_statistics_are_those_that_update_bn_leaves(tmp_path, open_model):
    """`update_bn` runs in training mode, Dropout on: what each BatchNorm would have stored, had it seen these weights."""
    module = averaged(0.5)
    model, config = exported(module, tmp_path), RepairConfig(method="auto", refine=False)
    batches = [{"input": X}]
    prepared = prepare(model, config)
    found = average_repair(prepared, [{"input": X[:256]}], open_model, config, statistics_on=batches)
    truth, quiet = updated(module, ROWS, passes=40), updated(with_ratio(module, 0.0), ROWS)
    for name, (mean, variance) in found.statistics.items():
        expected_mean, expected = truth[f"{name}.running_mean"], truth[f"{name}.running_var"]
        assert np.abs((mean - expected_mean) / np.sqrt(expected)).max() < 0.12
        assert np.abs(variance / expected - 1).max() < 0.15
        assert np.median(np.abs(quiet[f"{name}.running_var"] / expected - 1)) > 0.25, "with the noise off it is another"


def with_ratio(module: nn.Module, ratio: float) -> nn.Module:
    """A copy with other Dropouts."""
    other = copy.deepcopy(module)
    for layer in other.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = ratio
    return other


@pytest.mark.long
def test_under_noise_it_comes_to_the_average_whatever_was_stored(tmp_path):
    module = averaged(0.5)
    after = copy.deepcopy(module)
    torch.manual_seed(1)
    update_bn([part for _ in range(20) for part in torch.from_numpy(X).split(256)], after)
    average = noisy_mean(after)
    deployed = after.eval()(torch.from_numpy(X)).detach().numpy()
    files = set()
    for before in ("of the last weights", "stale", "never set"):
        model = exported(with_statistics(module, before), tmp_path)
        found = vsfix.optimize(model, X, method="exact", layers="all")
        outputs = run(found.model)
        assert distance(outputs, average) < 0.3 * distance(deployed, average), before
        assert f"statistics with the noise on from {ROWS} samples" in found.verdict
        files.add(found.model.SerializeToString())
    assert len(files) == 1, "what was stored is replaced"


@pytest.mark.parametrize(
    ("data", "doubt"),
    [(X[:32], "re-estimated from 32 samples; give 128 or more"), (None, "made from those of the file; give --data")],
)
def test_all_statistics_from_too_little_are_no_pass(tmp_path, data, doubt):
    found = vsfix.optimize(exported(averaged(0.5), tmp_path), data, method="exact", layers="all", refine=False)
    assert (found.status, [text for text in found.report.warnings if doubt in text] != []) == ("WARN", True)


def test_data_in_another_form_than_the_statistics_know_is_no_pass(tmp_path):
    model = exported(averaged(0.5), tmp_path)
    found = vsfix.optimize(model, 2 * X + 0.5, method="exact", layers="all", refine=False)
    assert found.status == "WARN"
    assert "were right, the data is not preprocessed as that of the training" in "".join(found.report.warnings)
    right = vsfix.optimize(model, X, method="exact", layers="all", refine=False)
    assert "preprocessed" not in "".join(right.report.warnings)


def noisy_mean(module: nn.Module) -> np.ndarray:
    module = copy.deepcopy(module).eval()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.train()
    with torch.no_grad():
        return torch.stack([module(torch.from_numpy(X)) for _ in range(200)]).mean(0).numpy()


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(((found - expected) ** 2).mean())


def run(model: onnx.ModelProto) -> np.ndarray:
    from onnxruntime import InferenceSession

    return InferenceSession(model.SerializeToString()).run(None, {"input": X})[0]
