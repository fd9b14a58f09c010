"""`vsfix.torch` against `vsfix.optimize`: two routes, one repaired network."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vsfix
import vsfix.nn
import vsfix.torch
from tests.trainers.averaging.small_modules import friedman, regressor, train
from vsfix.trainers.export.onnx_export import export_onnx


class Residual(nn.Module):
    """Images of one row: a convolution, a shortcut, noise of two kinds, and a BatchNorm after each."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(1, 12, 3, padding=1, bias=False)
        self.noise = vsfix.nn.Uout(1.0, "bernoulli")
        self.bn = nn.BatchNorm1d(12)
        self.conv = nn.Conv1d(12, 12, 3, padding=1)
        self.dropout = nn.Dropout(0.4)
        self.last = nn.BatchNorm1d(12)
        self.head = nn.Linear(60, 1)

    def forward(self, x):
        h = self.stem(x[:, None])
        h = self.conv(F.silu(self.bn(self.noise(h)))) + h
        return self.head(F.relu(self.last(self.dropout(h))).flatten(1))


class Long(nn.Module):
    """Convolutions without a BatchNorm, on more positions than are taken."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 8, 3, padding=1)
        self.second = nn.Conv1d(8, 8, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = self.dropout(F.relu(self.first(x[:, None, :, None].expand(-1, 1, -1, 12).flatten(2))))
        return self.head(F.relu(self.second(h)).square().mean(2))


@pytest.mark.parametrize(
    ("make", "refine", "tolerance"),
    [
        (regressor, False, 1e-4),
        (Residual, False, 1e-4),
        (Long, False, 1e-4),
        (regressor, True, 1e-2),
    ],  # of two best steps either may be taken
)
def test_both_routes_agree(make, refine, tolerance, tmp_path):
    module = train(make())
    rows, x = friedman(96, 3)[0], friedman(500, 4)[0]
    export_onnx(module, rows[:4], tmp_path / "model.onnx")
    found = vsfix.optimize(tmp_path / "model.onnx", rows.numpy(), method="match", refine=refine)
    session = onnxruntime.InferenceSession(found.model.SerializeToString())
    (expected,) = session.run(None, {"input": x.numpy()})
    repaired = copy.deepcopy(module)
    report = vsfix.torch.repair_(repaired, [rows], method="match", refine=refine)
    with torch.no_grad():
        assert np.abs(module(x).numpy() - expected).max() > 0.1  # the repair moves the outputs
        assert np.abs(repaired(x).numpy() - expected).max() < tolerance
    assert report.method == found.report.method
    assert report.before.ratio == pytest.approx(found.report.severity_before.ratio, rel=1e-4)
    assert report.after.ratio == pytest.approx(found.report.severity_after.ratio, rel=0.01)
    assert report.draws == 64


def test_the_public_names_are_there():
    assert vsfix.torch.__all__ == ["RepairReport", "noise_averaged", "repair_"]
    assert vsfix.nn.__all__ == ["DropPath", "GaussianDropout", "Uout"]
    for room in (vsfix.torch, vsfix.nn):
        assert all(hasattr(room, name) for name in room.__all__)


def test_the_example_of_the_page_runs(capsys):
    """With two epochs instead of twelve, and without the refinement."""
    page = (Path(__file__).parents[3] / "docs" / "pytorch.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    for shown, short in (("range(12)", "range(2)"), (".split(64))\nprint", ".split(64), refine=False)\nprint")):
        assert code.count(shown) == 1
        code = code.replace(shown, short)
    with torch.random.fork_rng():
        exec(code, {"__name__": "example"})
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[:3]] == ["as", "average", "repaired"]
    shown = page.split("```text\n")[1].split("```")[0]
    heads = [line.split()[0] for line in shown.splitlines() if line.startswith(("noise", "output", "samples", "R "))]
    assert all(f"\n{head}" in printed for head in heads)
    assert "R, the distance to what was trained:" in printed


def test_a_module_that_was_repaired_is_not_repaired_again_as_a_file():
    """Neither `optimize` nor `inspect` takes the noise that its file still marks for damage."""
    module, rows = train(regressor()), friedman(96, 3)[0]
    vsfix.torch.repair_(module, [rows], method="match", refine=False)
    exported = vsfix.export(module, rows[:4])
    found = vsfix.optimize(exported.model, rows.numpy())
    assert found.report.method == "none"
    assert "vsfix repaired this file already" in found.verdict
    session = onnxruntime.InferenceSession(found.model.SerializeToString())
    with torch.no_grad():
        (outputs,) = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
        np.testing.assert_allclose(outputs, module.eval()(rows).numpy(), atol=1e-4)
    seen = vsfix.inspect(exported.model, rows.numpy())
    assert seen.severity is None
    assert any("vsfix repaired this file already" in warning for warning in seen.warnings)
