"""The divergence of a refinement, against numpy and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.trainers.differentiable.refinement_target import Target, divergence

from .conftest import CLASSES, KINDS, TRUE_SCALE, network, outputs_of, target_of, with_values


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_divergence_is_that_of_finite_differences(kind: str, inputs: dict[str, Any]) -> None:
    model = network(kind)
    target = target_of(kind, with_values(model, g=TRUE_SCALE), inputs, variance=0.3)
    y, mean = outputs_of(model, inputs).requires_grad_(), torch.from_numpy(target.mean)
    assert torch.autograd.gradcheck(lambda y: divergence(y, target, mean), (y,))


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_is_what_numpy_computes(kind: str, inputs: dict[str, Any]) -> None:
    model = network(kind)
    target = target_of(kind, with_values(model, g=TRUE_SCALE), inputs, variance=0.3)
    y, t = outputs_of(model, inputs).numpy(), target.mean
    if kind == "values":
        truth = np.mean((y - t) ** 2) / 0.3
    elif kind in ("probabilities", "sigmoid-logits"):
        q = y if kind == "probabilities" else 1 / (1 + np.exp(-y))
        truth = np.mean(t * np.log(t / q) + (1 - t) * np.log((1 - t) / (1 - q)))
    else:
        q = {"softmax": y, "log-softmax": np.exp(y), "logits": np.exp(y) / np.exp(y).sum(1, keepdims=True)}[kind]
        truth = np.mean((t * np.log(t / q)).sum(1))
    found = divergence(torch.from_numpy(y), target, torch.from_numpy(t))
    assert float(found) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("kind", ["logits", "softmax", "log-softmax"])
def test_every_position_of_a_map_of_classes_counts_once(kind: str) -> None:
    rng = np.random.default_rng(3)
    scores = torch.from_numpy(rng.standard_normal((5, CLASSES, 3, 2)))
    y = {"logits": scores, "softmax": scores.softmax(1), "log-softmax": scores.log_softmax(1)}[kind]
    mean = torch.from_numpy(rng.dirichlet(np.ones(CLASSES), (5, 3, 2)).transpose(0, 3, 1, 2))
    whole = divergence(y, Target(kind, 1, mean.numpy()), mean)
    apart = [
        divergence(y[..., i, j], Target(kind, -1, mean[..., i, j].numpy()), mean[..., i, j])
        for i in range(3)
        for j in range(2)
    ]
    assert float(whole) == pytest.approx(float(torch.stack(apart).mean()), rel=1e-12)
    mistaken = divergence(y, Target(kind, 2, mean.numpy()), mean)
    assert abs(float(mistaken - whole)) > 0.1 * float(whole)


def test_a_target_of_zeros_and_ones_has_a_finite_divergence() -> None:
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for kind, y in (("softmax", certain), ("probabilities", certain), ("logits", 1e3 * certain)):
        assert float(divergence(y, Target(kind, 1, certain.numpy()), certain)) == pytest.approx(0, abs=1e-9)


def test_a_class_that_is_masked_counts_for_nothing() -> None:
    scores = torch.tensor([[0.3, -1.0, -np.inf]], dtype=torch.float64, requires_grad=True)
    mean = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    whole = divergence(scores, Target("logits", 1, mean.numpy()), mean)
    part = divergence(scores[:, :2], Target("logits", 1, mean.numpy()[:, :2]), mean[:, :2])
    assert float(whole.detach()) == pytest.approx(float(part.detach()), rel=1e-12)
    assert torch.isfinite(torch.autograd.grad(whole, scores)[0]).all()


def test_a_mean_of_scores_where_probabilities_belong_is_refused() -> None:
    for kind in KINDS[:-1]:
        with pytest.raises(InputError, match="must be of probabilities"):
            Target(kind, 1, np.array([[3.0, -2.0]]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_of_a_large_output_keeps_its_precision(kind: str) -> None:
    """In float32, the axis of the classes before the positions: at all of them, and at those that are chosen."""
    rng = np.random.default_rng(3)
    scores, noisy = (torch.from_numpy(rng.standard_normal((3, CLASSES, 50, 50))) for _ in range(2))
    forms = {
        "softmax": lambda y: y.softmax(1),
        "log-softmax": lambda y: y.log_softmax(1),
        "probabilities": torch.sigmoid,
    }
    means = {"probabilities": torch.sigmoid, "sigmoid-logits": torch.sigmoid, "values": lambda y: y}
    output, mean = forms.get(kind, lambda y: y)(scores), means.get(kind, lambda y: y.softmax(1))(noisy)
    target = Target(kind, 1, mean.numpy(), 0.3)
    exact = [float(divergence(output[i : i + 1, :, :20, :50], target, mean[i : i + 1, :, :20, :50])) for i in range(3)]
    assert float(divergence(output[..., :20, :].float(), target, mean[..., :20, :])) == pytest.approx(np.mean(exact))
    whole = divergence(output, target, mean)
    large = divergence(output.float().requires_grad_(), target, mean.float())
    assert large.dtype == torch.float64
    assert float(large.detach()) == pytest.approx(float(whole), rel=1e-5)
    classes = kind in ("logits", "softmax", "log-softmax")
    positions = np.arange(0, 2500 if classes else 2500 * CLASSES, 7)
    part = mean.flatten(2).movedim(1, 2)[:, positions] if classes else mean.flatten(1)[:, positions]
    moved = output.flatten(2).movedim(1, 2)[:, positions] if classes else output.flatten(1)[:, positions]
    chosen = divergence(output, Target(kind, 1, part.numpy(), 0.3, positions), part)
    wanted = float(divergence(moved, Target(kind, -1, part.numpy(), 0.3), part))
    assert float(chosen) == pytest.approx(wanted)
    if classes:  # the same with the axis of the classes after the positions, and between them
        for axis, turned in ((3, output.movedim(1, 3)), (2, output.movedim(1, 2))):
            other = divergence(turned, Target(kind, axis, part.numpy(), 0.3, positions), part)
            assert float(other) == pytest.approx(wanted)


def test_positions_that_are_not_there_are_refused() -> None:
    target = Target("values", 0, np.zeros((2, 1)), chosen=np.array([6]))
    with pytest.raises(DataError, match="no position 6 of 2 samples"):
        divergence(torch.zeros(4, 3), target, torch.zeros(2, 1))
    with pytest.raises(DataError, match="of 2 samples"):
        divergence(torch.zeros(3, 30), target, torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("kind", "axis", "variance", "words"),
    [
        ("score", 1, 1.0, "'score' is none of"),
        ("logits", 0, 1.0, "axis 0"),
        ("softmax", 2, 1.0, "axis 2"),
        ("log-softmax", -2, 1.0, "axis -2"),
        ("values", 0, 0.0, "above 0"),
        ("values", 0, np.inf, "above 0"),
    ],
)
def test_a_target_out_of_range_is_refused(kind: str, axis: int, variance: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Target(kind, axis, np.zeros((3, 2)), variance)


def test_a_direction_is_at_its_target_whatever_its_length():
    rng = np.random.default_rng(5)
    mean = rng.normal(size=(6, 4))
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    target = Target("directions", -1, mean, variance=0.5)
    output = torch.from_numpy(3 * mean)
    assert float(divergence(output, target, torch.from_numpy(mean))) == pytest.approx(0, abs=1e-15)
    turned = np.roll(mean, 1, axis=1)
    found = float(divergence(torch.from_numpy(2 * turned), target, torch.from_numpy(mean)))
    assert found == pytest.approx(np.mean((turned - mean) ** 2) / 0.5)
