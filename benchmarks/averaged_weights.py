"""Averaged weights whose BatchNorm statistics were not averaged along: what each remedy makes of them.

    OMP_NUM_THREADS=1 python benchmarks/averaged_weights.py

Two networks with Dropout 0.5 upstream of each BatchNorm, a CNN on scikit-learn's handwritten digits and a regressor on
Friedman's first function. The weights are the mean over the last third of the training, by torch's AveragedModel. With
them stand the statistics of the last weights (AveragedModel copies them), those of the epoch in which the averaging
began, or none (a new network into which the averaged parameters were loaded). Printed for each: top-1 in per cent, or
R2, on rows that nothing was fitted to.
"""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ladder_scores import file_outputs
from sklearn.datasets import make_friedman1
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import vsfix
from vsfix.trainers.data.datasets import load_dataset

DROP = 0.5
BATCH = 64
NOISY_PASSES = 64


@dataclass(frozen=True)
class Task:
    """A network to train, rows to train on and rows to test on."""

    name: str
    build: Callable[[], nn.Module]
    loss: nn.Module
    epochs: int
    inputs: torch.Tensor
    targets: torch.Tensor
    test_inputs: torch.Tensor
    test_targets: torch.Tensor

    def score(self, outputs: torch.Tensor) -> float:
        """Top-1 in per cent, or R2."""
        if self.targets.dtype == torch.int64:
            return 100 * float((outputs.argmax(1) == self.test_targets).float().mean())
        errors = ((outputs - self.test_targets) ** 2).mean()
        return 1 - float(errors / self.test_targets.var(unbiased=False))


def digits(epochs: int) -> Task:
    """The CNN."""

    def build() -> nn.Module:
        def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            return [conv, nn.Dropout(DROP), nn.BatchNorm2d(outputs), nn.ReLU()]

        layers = [*block(1, 32, 1), *block(32, 64, 2), *block(64, 64, 1)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    parts = [load_dataset("digits", part) for part in ("train", "test")]
    images = [torch.from_numpy(part.images[:].transpose(0, 3, 1, 2) / np.float32(255)) - 0.3 for part in parts]
    labels = [torch.from_numpy(part.labels) for part in parts]
    return Task(
        "CNN, digits, top-1 %", build, nn.CrossEntropyLoss(), epochs, images[0], labels[0], images[1], labels[1]
    )


def friedman(epochs: int) -> Task:
    """The regressor."""

    def build() -> nn.Module:
        def block(inputs: int) -> list[nn.Module]:
            return [nn.Linear(inputs, 64), nn.Dropout(DROP), nn.BatchNorm1d(64), nn.ReLU()]

        return nn.Sequential(*block(10), *block(64), nn.Linear(64, 1))

    x, y = make_friedman1(6000, noise=0.5, random_state=0)
    inputs = torch.from_numpy((x - 0.5).astype(np.float32))
    targets = torch.from_numpy(((y - y.mean()) / y.std()).astype(np.float32))[:, None]
    rows = slice(4000), slice(4000, None)
    train, test = ((inputs[part], targets[part]) for part in rows)
    return Task("regressor, Friedman 1, R2", build, nn.MSELoss(), epochs, *train, *test)


def train(task: Task) -> tuple[nn.Module, nn.Module, dict[str, nn.Module]]:
    """The network as its last step left it, its averaged weights, and these with each of the statistics."""
    torch.manual_seed(0)
    module = task.build()
    averaged: AveragedModel | None = None
    early: dict[str, torch.Tensor] = {}
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    for epoch in range(task.epochs):
        for rows in torch.randperm(len(task.inputs)).split(BATCH):
            optimiser.zero_grad()
            task.loss(module.train()(task.inputs[rows]), task.targets[rows]).backward()
            optimiser.step()
        if epoch >= task.epochs * 2 // 3:
            averaged = averaged or AveragedModel(module)
            averaged.update_parameters(module)
            early = early or {name: tensor.clone() for name, tensor in module.named_buffers()}
    assert averaged is not None
    last = averaged.module.eval()
    with_early, unset = copy.deepcopy(last), task.build().eval()
    with_early.load_state_dict(early, strict=False)
    unset.load_state_dict(dict(last.named_parameters()), strict=False)
    return module.eval(), last, {"of the last weights": last, "of ten epochs before": with_early, "never set": unset}


def updated(module: nn.Module, task: Task, *, noise: bool) -> nn.Module:
    """A copy after torch's `update_bn` over the training rows; without the noise where Dropout is taken out first."""
    found = copy.deepcopy(module)
    kept = {layer: layer.p for layer in found.modules() if isinstance(layer, nn.Dropout)}
    for layer in kept:
        layer.p = layer.p if noise else 0.0
    torch.manual_seed(1)
    update_bn(task.inputs[torch.randperm(len(task.inputs))].split(BATCH), found)
    for layer, ratio in kept.items():
        layer.p = ratio
    return found.eval()


def noisy_mean(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The mean over passes with Dropout on and BatchNorm in eval mode: what the network was trained to be."""
    module = copy.deepcopy(module).eval()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.train()
    torch.manual_seed(2)
    with torch.no_grad():
        return torch.stack([module(inputs) for _ in range(NOISY_PASSES)]).mean(0)


def deployed(module: nn.Module, task: Task) -> float:
    """The score of a module in eval mode."""
    with torch.no_grad():
        return task.score(module.eval()(task.test_inputs))


def repaired(module: nn.Module, task: Task, **options: Any) -> float:
    """The score of a module after its export and `vsfix optimize` on the rows that it was trained on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "averaged.onnx")
        vsfix.export(module.eval(), task.inputs[:4]).save(path)
        model = vsfix.optimize(path, task.inputs.numpy(), **options).model
    (answer,) = file_outputs(model, {model.graph.input[0].name: task.test_inputs.numpy()}).values()
    return task.score(torch.from_numpy(answer))


def report(task: Task) -> None:
    """Trains, and prints the scores."""
    module, averaged, cases = train(task)
    print(f"\n{task.name:<42} deployed   exact, all   256 rows")
    show("the last weights, their own statistics", deployed(module, task))
    for name, found in cases.items():
        exact = repaired(found, task, method="exact", layers="all")
        show(f"averaged, statistics {name}", deployed(found, task), exact, repaired(found, task))
    in_training = updated(averaged, task, noise=True)
    show("averaged, update_bn", deployed(in_training, task), None, repaired(in_training, task))
    show("averaged, update_bn with Dropout off", deployed(updated(averaged, task, noise=False), task))
    show(f"mean of {NOISY_PASSES} noisy passes after update_bn", task.score(noisy_mean(in_training, task.test_inputs)))


def show(name: str, *scores: float | None) -> None:
    """Prints one row."""
    print(f"  {name:<42}", *(f"{'' if score is None else f'{score:.4g}':>10}" for score in scores), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="of each training (default: %(default)s)")
    epochs = parser.parse_args().epochs
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for task in (digits(epochs), friedman(epochs)):
        report(task)


if __name__ == "__main__":
    main()
