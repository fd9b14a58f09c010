"""Public architectures, trained here for a minute or two: weights are kept in the cache, by the network's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from ladder_scores import file_outputs
from real_entry import Array, Case, Metric, Outputs, Place, only
from real_export import both_files, input_name
from torch import nn

from vsfix.graph_passes.ir.rounding import snr_db

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ROWS = 128


class Data(NamedTuple):
    """Inputs and targets to train with, unlabelled rows for the repair, and a held-out set with its targets."""

    inputs: Array
    targets: Array
    rows: Array
    test: Array
    test_targets: Array


def trained_case(
    place: Place,
    name: str,
    module: nn.Module,
    data: Data,
    loss: Loss,
    steps: int,
    score: Callable[[Outputs], tuple[Array, ...]],
    metrics: Sequence[Metric],
    head: nn.Module | None = None,
) -> Case:
    """Trains a module, with a head that is not deployed where there is one, and makes both of its files."""
    path = place.cache / f"{name}-{place.effort:g}.pt"
    whole = module if head is None else nn.Sequential(module, head)
    if not path.exists():
        train(whole, data.inputs, data.targets, loss, place.count(steps))
        torch.save(whole.state_dict(), path)
    whole.load_state_dict(torch.load(path))
    module.eval()
    model, lost = both_files(module, data.rows[:4])
    given = input_name(model)
    with torch.no_grad():
        original = module(torch.from_numpy(data.test[:64])).numpy()
    return Case(
        model,
        {given: data.rows},
        {given: data.test},
        score,
        tuple(metrics),
        lost=lost,
        parity_db=snr_db(original, only(file_outputs(model, {given: data.test[:64]}))),
        parity_with="PyTorch",
    )


def classifier_case(place: Place, name: str, module: nn.Module, data: Data, steps: int) -> Case:
    """Trains a module to give scores of classes, and judges it by them."""
    score = partial(_class_score, truth=data.test_targets)
    case = trained_case(place, name, module, data, nn.functional.cross_entropy, steps, score, _CLASS_METRICS)
    return replace(case, is_classifier=True)


def train(module: nn.Module, inputs: Array, targets: Array, loss: Loss, steps: int, batch: int = 64) -> None:
    """Adam with a learning rate that rises and falls once; always the same batches."""
    torch.manual_seed(0)
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    rng = np.random.default_rng(0)
    module.train()
    for _ in range(steps):
        chosen = torch.from_numpy(rng.integers(len(x), size=batch))
        optimizer.zero_grad()
        loss(module(x[chosen]), y[chosen]).backward()
        optimizer.step()
        schedule.step()


def _class_score(answers: Outputs, truth: Array) -> tuple[Array, ...]:
    """Whether the highest score is that of the right class, in per cent, and the negative log-likelihood."""
    wide = only(answers).astype(np.float64)
    logs = wide - wide.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    return 100.0 * (wide.argmax(1) == truth), -logs[np.arange(len(truth)), truth]


_CLASS_METRICS = (Metric("top-1, %"), Metric("negative log-likelihood", higher_is_better=False, digits=3))
