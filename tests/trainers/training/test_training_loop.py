from __future__ import annotations

import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from vsfix.graph_passes.errors import CheckFailedError, InputError, ModelError, OutOfMemoryError, StoppedError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.progress import listen
from vsfix.trainers.data.datasets import load_dataset
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training import training_loop, training_run
from vsfix.trainers.training.checkpoint import load_checkpoint
from vsfix.trainers.training.random_streams import Stream
from vsfix.trainers.training.training_config import Schedule, TrainingConfig
from vsfix.trainers.training.training_loop import TrainingOptions, train

NETWORK = NetworkConfig(
    model="preresnet-8",
    in_channels=1,
    image_size=(8, 8),
    num_classes=10,
    noise=NoiseSites(a=Noise.parse("dropout:0.5")),
)
CONFIG = TrainingConfig(data="digits", network=NETWORK, epochs=3, batch_size=32, samples=128)


class Interrupted(Exception):
    """Stands for Ctrl-C."""


def interrupt_after(epoch: int):
    def on_epoch(metrics) -> None:
        if metrics.epoch == epoch:
            raise Interrupted

    return on_epoch


def weights(folder) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoint.pt").model


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, over all weights and statistics."""
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run of CONFIG."""
    folder = tmp_path_factory.mktemp("whole")
    train(CONFIG, folder)
    return folder


@pytest.fixture
def broken_off(tmp_path):
    """The folder of the same run, interrupted after its first epoch."""
    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path, TrainingOptions(on_epoch=interrupt_after(1)))
    return tmp_path


def test_the_same_seed_gives_the_same_weights_bit_for_bit(whole, tmp_path):
    train(CONFIG, tmp_path)
    assert same(weights(tmp_path), weights(whole))


def test_another_seed_gives_other_weights(whole, tmp_path):
    train(replace(CONFIG, seed=1), tmp_path)
    assert not same(weights(tmp_path), weights(whole))


def test_a_resumed_run_ends_in_the_weights_of_an_uninterrupted_one(whole, broken_off):
    assert not same(weights(broken_off), weights(whole))
    result = train(CONFIG, broken_off)
    assert result.resumed_from == 1
    assert [metrics.epoch for metrics in result.metrics] == [1, 2, 3]
    assert same(weights(broken_off), weights(whole))
    assert len((broken_off / "metrics.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("mistake", ["noise", "order", "optimizer", "scheduler"])
def test_a_resumption_that_forgets_something_would_be_noticed(whole, broken_off, monkeypatch, mistake):
    restore, seed = training_run.TrainingRun._restore, training_run.stream_seed
    stream = {"noise": Stream.NOISE, "order": Stream.ORDER}.get(mistake)

    def forget(run, checkpoint):
        restore(run, replace(checkpoint, **{mistake: getattr(run, mistake).state_dict()}))

    if stream is None:
        monkeypatch.setattr(training_run.TrainingRun, "_restore", forget)
    else:  # the stream begins again with the first epoch's
        monkeypatch.setattr(
            training_run,
            "stream_seed",
            lambda base, what, *rest: seed(base, what, *([1, *rest[1:]] if what == stream else rest)),
        )
    train(CONFIG, broken_off)
    assert not same(weights(broken_off), weights(whole))


def test_a_finished_run_is_returned_as_it_is(whole, monkeypatch):
    monkeypatch.setattr(training_loop, "load_training_data", lambda *_: pytest.fail("trains again"))
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in whole.iterdir()}
    result = train(CONFIG, whole)
    assert result.resumed_from == 3
    assert result.test_accuracy == load_checkpoint(result.checkpoint).metrics[-1].test_accuracy
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in whole.iterdir()} == before


def test_another_configuration_needs_force_to_take_the_folder(broken_off):
    other = replace(CONFIG, epochs=1, learning_rate=0.05)
    with pytest.raises(InputError, match=r"learning_rate was 0\.1, is 0\.05.*--force"):
        train(other, broken_off)
    assert train(other, broken_off, TrainingOptions(force=True)).resumed_from == 0
    assert load_checkpoint(broken_off / "checkpoint.pt").training == other


def test_a_state_that_does_not_fit_the_optimizer_is_a_model_error(broken_off):
    path = broken_off / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["optimizer"]["param_groups"] = []
    torch.save(content, path)
    with pytest.raises(ModelError, match="can't go on from it"):
        train(CONFIG, broken_off)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    with pytest.raises(CheckFailedError, match=r"in epoch 1, step \d of 4; nothing was written"):
        train(replace(CONFIG, learning_rate=1e30, schedule=Schedule(warmup=0)), tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize("step", [5, 7], ids=["in the loss", "in the last step, in the weights alone"])
def test_when_numbers_run_away_the_last_good_checkpoint_is_kept(tmp_path, monkeypatch, step):
    monkeypatch.setattr(Schedule, "at", lambda schedule, now, steps: math.inf if now == step else 0.1)
    with pytest.raises(CheckFailedError, match=r"in epoch 2, step \d of 4; the checkpoint of epoch 1 is kept"):
        train(CONFIG, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
    assert checkpoint.epoch == 1
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.model.values())


def test_training_learns_the_digits(tmp_path):
    config = replace(CONFIG, network=replace(NETWORK, noise=NoiseSites()), epochs=4, samples=None)
    result = train(config, tmp_path)
    assert result.metrics[-1].train_loss < result.metrics[0].train_loss / 2
    assert result.test_accuracy > 0.85


def test_the_saved_network_has_the_accuracy_that_the_metrics_name(whole):
    checkpoint = load_checkpoint(whole / "checkpoint.pt")
    images = load_dataset("digits", "test")
    with torch.no_grad():
        answers = checkpoint.build()(torch.from_numpy(checkpoint.preprocessing.apply(images.images))).argmax(1)
    assert np.mean(answers.numpy() == images.labels) == checkpoint.metrics[-1].test_accuracy


def test_the_caller_s_random_state_is_left_as_it_was(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(replace(CONFIG, epochs=1), tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_nothing_is_printed_without_progress(tmp_path, capfd):
    train(replace(CONFIG, epochs=1), tmp_path)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_whoever_listens_is_told_each_step_and_nothing_is_printed(tmp_path, capfd):
    told = []

    class Ears:
        def begin(self, stage):
            told.append((stage.text, stage.steps, stage.done))

        def move(self, stage):
            told.append((stage.text.partition(",")[0], stage.done))

        def end(self, stage):
            told.append("end")

    with listen(Ears()):
        train(replace(CONFIG, epochs=1), tmp_path)
    steps = told[told.index("end") + 1 :]  # the data is read first
    total = steps[0][1]
    assert steps == [("training", total, 0), *(("training: epoch 1 of 1", step + 1) for step in range(total)), "end"]
    assert capfd.readouterr() == ("", "")


def test_bf16_trains_on_a_cpu_too_and_keeps_float32_weights(tmp_path, capfd):
    train(replace(CONFIG, epochs=1, precision="bf16"), tmp_path)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32, torch.int64}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nothing"}, "known are"),
        ({"samples": 1298}, "1297 images, but 1298 samples"),
        ({"batch_size": 129}, "batch of 129 images, but there are 128"),
        ({"network": replace(NETWORK, num_classes=9)}, "in 10 classes, but the network takes"),
        ({"network": replace(NETWORK, in_channels=3)}, "1 channels of 8x8"),
    ],
)
def test_what_can_not_be_trained_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        train(replace(CONFIG, **change), tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    ("epoch", "words"), [(1, "after epoch 1 of 3; saved"), (3, "epoch 3 of 3; the run is finished")]
)
def test_a_signal_after_the_last_step_of_an_epoch_is_not_lost(tmp_path, whole, epoch, words):
    def ask(metrics) -> None:
        if metrics.epoch == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match=words) as stopped:
        train(CONFIG, tmp_path, TrainingOptions(on_epoch=ask))
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert train(CONFIG, tmp_path).resumed_from == epoch
    assert same(weights(tmp_path), weights(whole))


def test_a_run_that_diverges_says_what_it_saved_and_never_saves_broken_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(Schedule, "at", lambda schedule, now, steps: math.inf if now == 2 else 0.1)
    options = TrainingOptions(save_every=0)
    for _ in range(2):  # the second call goes on from what the first one saved
        with pytest.raises(CheckFailedError, match=r"step 3 of 4; the checkpoint of step 2 of epoch 1 is kept"):
            train(CONFIG, tmp_path, options)
        assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("cuDNN: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_a_batch_that_the_device_does_not_hold_says_so_and_leaves_the_last_checkpoint(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path / "run", TrainingOptions(on_epoch=interrupt_after(1)))
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(training_run.TrainingRun, "steps", fail)
    with pytest.raises(OutOfMemoryError, match=r"batch size 32: the memory does not suffice \(.*\); lower --b"):
        train(CONFIG, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_another_error_of_torch_is_not_taken_for_too_little_memory(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(training_run.TrainingRun, "steps", fail)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train(CONFIG, tmp_path / "run")


def test_an_epoch_that_is_not_evaluated_changes_nothing_else(whole, tmp_path):
    result = train(CONFIG, tmp_path, TrainingOptions(evaluate=2))
    found = [metrics.test_accuracy for metrics in result.metrics]
    expected = [metrics.test_accuracy for metrics in load_checkpoint(whole / "checkpoint.pt").metrics]
    assert found == [None, *expected[1:]]  # the second of every two, and the last
    assert result.test_accuracy == expected[-1]
    assert same(weights(tmp_path), weights(whole))
    assert ",," in (tmp_path / "metrics.csv").read_text().splitlines()[1]


def test_the_last_epoch_can_not_be_left_unevaluated():
    with pytest.raises(InputError, match="evaluate must be at least 1"):
        TrainingOptions(evaluate=0)
