"""The proof that the noise which reaches a BatchNorm is found, and no other; benchmarks/noise_detection.py has more of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from vsfix.graph_passes.cleaning.deployment import deployment_passes
from vsfix.graph_passes.noise import propagation
from vsfix.graph_passes.training_export.decomposed_noise import MarkDecomposedNoise
from vsfix.trainers.layers.noise_layers import Uout

from . import detected_noise
from .detected_noise import detect, truly_reached
from .random_networks import random_network


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on Dropout2d of rank 3 and on its older exporter
        yield


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 9])
def test_the_markers_of_an_export_tell_which_batch_norms_noise_reaches(tmp_path, seed):
    found = detect(seed, tmp_path)
    assert found.exported == found.batch_norms
    assert found.found == found.truth


@pytest.mark.parametrize("seed", range(100, 116))
def test_the_noise_of_an_export_in_training_mode_tells_the_same(tmp_path, seed):
    found = detect(seed, tmp_path, "training")
    assert found.exported == found.batch_norms
    assert found.found == found.truth


def test_the_networks_of_this_proof_have_batch_norms_with_and_without_noise():
    reached = [truly_reached(*random_network(seed)) for seed in range(8)]
    assert sum(sum(one.values()) for one in reached) > 8
    assert sum(len(one) - sum(one.values()) for one in reached) > 8


def test_passes_that_leave_noise_unmarked_are_seen(tmp_path, monkeypatch):
    passes = [step for step in deployment_passes() if not isinstance(step, MarkDecomposedNoise)]
    monkeypatch.setattr(detected_noise, "deployment_passes", lambda: passes)
    missed = [found.truth - found.found for found in (detect(seed, tmp_path, "training") for seed in range(100, 108))]
    assert any(missed)


def test_noise_that_is_followed_through_shapes_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(propagation, "SHAPE_READERS", frozenset())
    found = detect(9, tmp_path)  # a network that reads the shape of a noisy tensor
    assert found.found > found.truth


def test_the_truth_is_right_where_it_is_known():
    module = nn.Sequential(nn.BatchNorm1d(3), Uout(0.1), nn.BatchNorm1d(3), nn.Dropout(0.0), nn.BatchNorm1d(3))
    assert truly_reached(module, torch.randn(5, 3)) == {"0": False, "2": True, "4": True}


def test_one_seed_gives_one_network():
    (one, x), (other, y) = random_network(3), random_network(3)
    assert torch.equal(x, y)
    assert str(one) == str(other)
    assert one.reads == other.reads
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
