from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from vsfix.graph_passes.errors import InputError, ModelError, StoppedError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training import training_run
from vsfix.trainers.training.augmentation import Augmentation
from vsfix.trainers.training.checkpoint import load_checkpoint
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_loop import TrainingOptions, stop_on_signal, train

NETWORK = NetworkConfig("preresnet-8", 1, (8, 8), 10, NoiseSites(a=Noise.parse("dropout:0.5")))
CONFIG = TrainingConfig(
    data="digits",
    network=NETWORK,
    epochs=2,
    batch_size=32,
    accumulate=2,
    average=0.9,
    label_smoothing=0.1,
    augmentation=Augmentation(crop=1, flip=True, cutout=2, mixup=0.2),
    samples=160,
)
STEPS = 5  # in an epoch
SAVE_ALWAYS = TrainingOptions(save_every=0, log_shift=1)


class Interrupted(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train(CONFIG, folder, TrainingOptions(log_shift=1))
    return load_checkpoint(folder / "checkpoint.pt")


def require_same(found, expected) -> None:
    """All that a run comes to but the time that it took, bit for bit."""
    for left, right in ((found.model, expected.model), (found.average, expected.average)):
        assert list(left) == list(right)
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert [(m.train_loss, m.test_accuracy) for m in found.metrics] == [
        (m.train_loss, m.test_accuracy) for m in expected.metrics
    ]
    assert found.shift == expected.shift


def interrupt_in(monkeypatch, step: int) -> None:
    """Ends the run in the middle of this step, counted from 1 over the whole run."""
    train_step = training_run.TrainingRun._train_step

    def interrupted(run, *arguments):
        loss = train_step(run, *arguments)
        if run.steps_done + 1 == step:
            raise Interrupted
        return loss

    monkeypatch.setattr(training_run.TrainingRun, "_train_step", interrupted)


@pytest.mark.long
@pytest.mark.parametrize("step", range(1, 2 * STEPS + 1))
def test_a_run_that_ends_in_any_step_goes_on_to_the_same_weights(whole, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        interrupt_in(patch, step)
        with pytest.raises(Interrupted):
            train(CONFIG, tmp_path, SAVE_ALWAYS)
    if step > 1:
        checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
        done = 0 if checkpoint.position is None else len(checkpoint.position.losses)
        assert checkpoint.epoch * STEPS + done == step - 1
    train(CONFIG, tmp_path, SAVE_ALWAYS)
    require_same(load_checkpoint(tmp_path / "checkpoint.pt"), whole)


@pytest.mark.parametrize("forgotten", ["random", "losses", "average"])
def test_a_position_that_forgets_something_would_be_noticed(whole, tmp_path, monkeypatch, forgotten):
    with monkeypatch.context() as patch:
        interrupt_in(patch, 3)
        with pytest.raises(Interrupted):
            train(CONFIG, tmp_path, SAVE_ALWAYS)
    restore = training_run.TrainingRun._restore

    def forget(run, checkpoint):
        position = checkpoint.position
        if forgotten == "average":
            checkpoint = replace(checkpoint, average=checkpoint.model)
        elif forgotten == "losses":
            checkpoint = replace(checkpoint, position=replace(position, losses=torch.zeros_like(position.losses)))
        else:
            checkpoint = replace(checkpoint, position=replace(position, random=({"cpu": torch.get_rng_state()},)))
        restore(run, checkpoint)

    monkeypatch.setattr(training_run.TrainingRun, "_restore", forget)
    train(CONFIG, tmp_path, SAVE_ALWAYS)
    with pytest.raises(AssertionError):
        require_same(load_checkpoint(tmp_path / "checkpoint.pt"), whole)


@pytest.mark.long
def test_a_process_that_is_killed_again_and_again_ends_in_the_same_weights(whole, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    script = (
        "import json, sys; from pathlib import Path; import torch; torch.set_num_threads(int(sys.argv[3]))\n"
        "from vsfix.trainers.training.training_config import TrainingConfig\n"
        "from vsfix.trainers.training.training_loop import TrainingOptions, train\n"
        "train(TrainingConfig.from_dict(json.loads(sys.argv[2])), Path(sys.argv[1]), TrainingOptions(save_every=0, log_shift=1))"
    )
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        command = [sys.executable, "-c", script, str(checkpoint.parent), json.dumps(CONFIG.to_dict())]
        command.append(str(torch.get_num_threads()))  # their number decides the order of summation
        with subprocess.Popen(command) as process:
            while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        load_checkpoint(checkpoint)
    train(CONFIG, checkpoint.parent, TrainingOptions(log_shift=1))
    require_same(load_checkpoint(checkpoint), whole)


@pytest.fixture
def heard():
    """Lets the signals through that a process under nohup, or in the background of a script, ignores."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(n, signal.default_int_handler if n == signal.SIGINT else signal.SIG_DFL) for n in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_leaves_and_the_same_call_goes_on(whole, tmp_path, monkeypatch, heard, number, code):
    handler = signal.getsignal(number)
    train_step = training_run.TrainingRun._train_step

    def asked_to_stop(run, *arguments):
        if run.steps_done == 7:
            os.kill(os.getpid(), number)
        return train_step(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training_run.TrainingRun, "_train_step", asked_to_stop)
        with pytest.raises(StoppedError, match=r"stopped in epoch 2, step 3 of 5; saved") as caught:
            train(CONFIG, tmp_path, TrainingOptions(log_shift=1))
    assert caught.value.exit_code == code
    assert signal.getsignal(number) == handler
    train(CONFIG, tmp_path, TrainingOptions(log_shift=1))
    require_same(load_checkpoint(tmp_path / "checkpoint.pt"), whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": torch.zeros(STEPS)}, "past the end of an epoch"),
        ({"losses": torch.zeros(2, 2)}, "damaged"),
        ({"random": ({"cpu": torch.zeros(3, dtype=torch.uint8)},)}, "states of its random generators"),
        ({"random": ({"cpu": torch.zeros(5056)},)}, "states of its random generators"),
        ({"random": ({},)}, "states of its random generators"),
        ({"random": ()}, "no state of a random generator"),
        ({"seconds": "long"}, "damaged"),
    ],
)
def test_a_damaged_position_is_a_model_error(tmp_path, monkeypatch, change, message):
    with monkeypatch.context() as patch:
        interrupt_in(patch, 3)
        with pytest.raises(Interrupted):
            train(CONFIG, tmp_path, SAVE_ALWAYS)
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["position"].update(change)
    torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        train(CONFIG, tmp_path, SAVE_ALWAYS)


def test_outside_the_main_thread_no_signal_is_taken():
    found = []
    handler = signal.getsignal(signal.SIGTERM)

    def run() -> None:
        with stop_on_signal() as request:
            found.append((request.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(0, handler)]


def test_the_shift_is_logged_as_often_as_asked_and_at_the_end(tmp_path):
    train(replace(CONFIG, epochs=3), tmp_path, TrainingOptions(log_shift=2))
    rows = list(csv.DictReader((tmp_path / "shift.csv").read_text().splitlines()))
    norms = ["bn1", "body.bn2"]
    names = [f"stage{stage}.0.{name}" for stage in (1, 2, 3) for name in norms] + ["bn"]
    assert [(row["epoch"], row["batch_norm"]) for row in rows] == [(e, n) for e in "23" for n in names]
    assert list(rows[0]) == ["epoch", "batch_norm", "shift_ratio", "mismatch"]


@pytest.mark.skipif(sys.platform == "win32", reason="the locks are those of POSIX")
def test_a_folder_that_another_run_trains_into_is_refused_and_left_alone(tmp_path):
    def intrude(_):
        for force in (False, True):
            with pytest.raises(InputError, match="another process trains into it"):
                train(replace(CONFIG, seed=1), tmp_path, TrainingOptions(force=force))

    train(CONFIG, tmp_path, TrainingOptions(on_epoch=intrude))
    assert load_checkpoint(tmp_path / "checkpoint.pt").training.seed == CONFIG.seed
    assert train(CONFIG, tmp_path).resumed_from == CONFIG.epochs  # it is free again
