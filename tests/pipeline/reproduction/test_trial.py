from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vsfix.pipeline.reproduction import trial as trials
from vsfix.pipeline.reproduction.trial import AS_TRAINED, OWN, PAIRED, RE_ESTIMATED, REPAIRED, TrialResult, run_trial
from vsfix.trainers.data.datasets import load_dataset
from vsfix.trainers.training.checkpoint import load_checkpoint


def test_a_trial_measures_what_was_trained(make_trial, tmp_path):
    trial = make_trial(epochs=2)
    result = run_trial(trial, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
    assert checkpoint.training == trial.training
    images = load_dataset("digits", "test")
    with torch.no_grad():
        answers = checkpoint.build()(torch.from_numpy(checkpoint.preprocessing.apply(images.images[:]))).argmax(1)
    assert result.accuracy == np.mean(answers.numpy() == images.labels)
    assert result.behind_noise == tuple(f"stage{stage}.0.body.bn2" for stage in (1, 2, 3))
    assert {row.epoch for row in result.shift} == {1, 2}
    assert result.shift == checkpoint.shift
    assert result.repairs is None


@pytest.mark.parametrize(
    "repairs",
    [(RE_ESTIMATED, PAIRED, OWN), pytest.param((REPAIRED,), marks=pytest.mark.long)],
    ids=["statistics", "default"],
)
def test_the_repairs_are_measured_on_the_exported_network(make_trial, tmp_path, repairs):
    # Strong noise, and enough steps for statistics that stand still: the network is damaged, and a repair helps.
    trial = make_trial(noise="a=dropout:0.8", repairs=repairs, epochs=6, samples=600)
    result = run_trial(trial, tmp_path)
    assert set(result.repairs) == set(repairs)
    assert result.accuracy_of(AS_TRAINED) == result.accuracy
    for name in repairs:
        assert result.accuracy_of(name) > result.accuracy + 0.1


def test_noise_upstream_of_a_convolution_stands_directly_upstream_of_no_batch_norm(make_trial, tmp_path):
    assert run_trial(make_trial(noise="b=dropout:0.5"), tmp_path).behind_noise == ()


def test_a_result_is_written_and_read(make_trial, tmp_path):
    result = run_trial(make_trial(), tmp_path)
    assert TrialResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_threads_are_put_back(make_trial, tmp_path):
    before = torch.get_num_threads()
    run_trial(make_trial(), tmp_path, threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_trial_is_known_by_what_it_computes(make_trial):
    trial = make_trial()
    assert trial.key == make_trial(repairs=(PAIRED,)).key
    others = [make_trial(1), make_trial(noise="b=dropout:0.5"), make_trial(samples=127), make_trial(average=0.9)]
    assert len({trial.key, *(other.key for other in others)}) == 5
    schedule = replace(trial.training.schedule, warmup=0.1)
    assert make_trial(schedule=schedule).key != trial.key


def test_the_key_never_changes(make_trial):
    assert make_trial().key == "bd39576f804ed804"
    assert make_trial(average=0.0, label_smoothing=0.0).key == make_trial().key


@pytest.mark.parametrize("noise", ["none", "last=dropout:0.5"])
def test_without_noise_in_a_block_nothing_is_downstream_of_it(make_trial, tmp_path, noise):
    assert run_trial(make_trial(noise=noise), tmp_path).behind_noise == ()


def test_a_repair_on_its_own_images_takes_those_that_the_run_was_trained_on(make_trial, tmp_path, monkeypatch):
    taken = {}

    def keep(model, batches, open_model, config):
        taken[config.method] = np.concatenate([images for batch in batches for images in batch.values()])
        return SimpleNamespace(model=model)

    monkeypatch.setattr(trials, "repair_model", keep)
    run_trial(make_trial(samples=300, repairs=(OWN, REPAIRED)), tmp_path)
    images = load_dataset("digits", "train")
    preprocessing = load_checkpoint(tmp_path / "checkpoint.pt").preprocessing
    rows = np.random.default_rng(0).permutation(len(images.labels))[:300]
    trained_on = {image.tobytes() for image in preprocessing.apply(images.images[rows])}
    assert {method: len(found) for method, found in taken.items()} == {"exact": 300, "auto": 256}
    assert all({image.tobytes() for image in found} <= trained_on for found in taken.values())
