from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vsfix.trainers.data.datasets import load_dataset
from vsfix.trainers.networks.network import NetworkConfig, build_network
from vsfix.trainers.training import training_run
from vsfix.trainers.training.augmentation import Augmentation
from vsfix.trainers.training.checkpoint import load_checkpoint
from vsfix.trainers.training.random_streams import Stream, batch_rows, stream_seed
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_loop import TrainingOptions, train

NETWORK = NetworkConfig("mlp-1", 1, (8, 8), 10)
CONFIG = TrainingConfig("digits", NETWORK, epochs=1, batch_size=16, samples=64, learning_rate=0.05)


def trained(config, tmp_path, name: str):
    train(config, tmp_path / name)
    return load_checkpoint(tmp_path / name / "checkpoint.pt")


def by_hand(config) -> tuple[dict[str, torch.Tensor], list[float], list[dict[str, torch.Tensor]]]:
    """The training written out by hand: weights, losses, and the state after each step."""
    data = load_dataset("digits", "train")
    rows = np.random.default_rng(config.seed).permutation(len(data.labels))[: config.samples]
    pixels = data.images[rows].astype(np.float64) / 255
    inputs = torch.from_numpy(((pixels - pixels.mean()) / pixels.std()).astype(np.float32)).permute(0, 3, 1, 2)
    labels = torch.from_numpy(data.labels[rows])
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(config.seed, Stream.WEIGHTS))
        module = build_network(config.network).train()
    optimizer = torch.optim.SGD(module.parameters(), 1.0, momentum=0.9, weight_decay=5e-4, nesterov=config.nesterov)
    order = np.random.default_rng(stream_seed(config.seed, Stream.ORDER, 1)).permutation(len(labels))
    losses, states, steps = [], [], len(labels) // config.batch_size
    for step in range(steps):
        batch = torch.from_numpy(order[step * config.batch_size : (step + 1) * config.batch_size])
        optimizer.param_groups[0]["lr"] = config.learning_rate * config.schedule.at(step, steps)
        optimizer.zero_grad()
        total = 0.0
        for part in batch.chunk(config.accumulate):
            target = F.one_hot(labels[part], 10) * (1 - config.label_smoothing) + config.label_smoothing / 10
            loss = -(target * F.log_softmax(module(inputs[part]), 1)).sum(1).mean() / config.accumulate
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        losses.append(total)
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return states[-1], losses, states


@pytest.mark.parametrize(
    "change",
    [{}, {"label_smoothing": 0.1}, {"accumulate": 4}, {"nesterov": False}, {"label_smoothing": 0.2, "accumulate": 2}],
)
def test_a_run_computes_what_it_says(tmp_path, change):
    config = replace(CONFIG, **change)
    weights, losses, _ = by_hand(config)
    found = trained(config, tmp_path, "run")
    assert found.metrics[0].train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(found.model[name], tensor, rtol=1e-4, atol=1e-5)


def test_another_smoothing_would_be_seen(tmp_path):
    weights, _, _ = by_hand(replace(CONFIG, label_smoothing=0.11))
    found = trained(replace(CONFIG, label_smoothing=0.1), tmp_path, "run")
    name = "classifier.bias"
    assert not torch.allclose(found.model[name], weights[name], rtol=1e-4, atol=1e-5)


def test_the_average_is_the_exponential_one_of_weights_and_statistics(tmp_path):
    config = replace(CONFIG, average=0.25)
    _, _, states = by_hand(config)
    expected = {name: tensor.double() for name, tensor in states[0].items()}
    for step, state in enumerate(states[1:], 1):
        decay = min(0.25, (1 + step) / (10 + step))  # 2/11, 3/12, then 0.25
        expected = {name: decay * expected[name] + (1 - decay) * tensor.double() for name, tensor in state.items()}
    found = trained(config, tmp_path, "run")
    for name, tensor in expected.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found.average[name].double(), tensor, rtol=1e-4, atol=1e-5)
    built = found.build().state_dict()
    assert all(torch.equal(built[name], found.average[name]) for name in built)
    assert not torch.equal(found.average["classifier.weight"], found.model["classifier.weight"])


def test_a_long_average_of_a_short_run_fits_its_statistics(tmp_path):
    network = NetworkConfig("preresnet-8", 1, (8, 8), 10)
    config = replace(CONFIG, network=network, epochs=6, samples=640, batch_size=32, learning_rate=0.1)
    train(replace(config, average=0.999), tmp_path / "average", TrainingOptions(log_shift=6))
    train(config, tmp_path / "last")
    average, last = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("average", "last"))
    assert average.metrics[-1].test_accuracy > last.metrics[-1].test_accuracy - 0.02
    assert all(0.9 < row.shift_ratio < 1.1 for row in average.shift)


def test_mixed_images_have_a_mixed_loss(tmp_path, monkeypatch):
    # With the share 0 every image is its partner, and so must the label be: the run is that of the images turned round.
    draw = training_run.draw_augmentation
    monkeypatch.setattr(training_run, "draw_augmentation", lambda *a: replace(draw(*a), share=0.0))
    _, losses, _ = by_hand(CONFIG)
    found = trained(replace(CONFIG, augmentation=Augmentation(mixup=1.0)), tmp_path, "run")
    assert found.metrics[0].train_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_metrics_say_rate_and_speed(tmp_path):
    metrics = trained(CONFIG, tmp_path, "run").metrics[0]
    assert metrics.learning_rate == pytest.approx(0.05 * CONFIG.schedule.at(3, 4), rel=1e-12)
    assert 64 / metrics.seconds < metrics.images_per_second < 1e6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about parts of torch
def test_a_compiled_network_is_trained_to_the_same_weights(tmp_path):
    plain, compiled = (trained(replace(CONFIG, compiled=value), tmp_path, str(value)) for value in (False, True))
    for name, tensor in plain.model.items():
        torch.testing.assert_close(compiled.model[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_parts_of_a_batch_cover_it_and_no_image_comes_twice():
    rows = [batch_rows(50, 12, 3, slice(rank, None, 2), 3) for rank in (0, 1)]
    assert [len(steps) for steps in rows] == [4, 4]
    images = torch.cat([part for steps in rows for step in steps for part in step])
    assert len(images) == len(set(images.tolist())) == 48
    joint = batch_rows(50, 12, 3, slice(None), 1)
    for step in range(4):
        shared = torch.cat([part for steps in rows for part in steps[step]])
        assert sorted(shared.tolist()) == sorted(joint[step][0].tolist())
