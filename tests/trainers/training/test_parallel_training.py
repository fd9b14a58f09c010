from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training.augmentation import Augmentation
from vsfix.trainers.training.checkpoint import load_checkpoint
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_loop import train

NETWORK = NetworkConfig(model="preresnet-8", in_channels=1, image_size=(8, 8), num_classes=10)
CONFIG = TrainingConfig(data="digits", network=NETWORK, epochs=2, batch_size=32, samples=128)
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch.nn import functional as F
from vsfix.graph_passes.errors import VsfixError
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_loop import TrainingOptions, train
torch.set_num_threads(1)
class Joint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part):
        whole = part.clone()
        torch.distributed.all_reduce(whole)
        return whole
    @staticmethod
    def backward(ctx, gradient):
        return Joint.forward(ctx, gradient)
def forward(self, x):  # over both processes, whose parts are of one size
    if not self.training:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
    count = 2 * x.numel() / x.shape[1]
    mean = Joint.apply(x.sum((0, 2, 3), keepdim=True)) / count
    variance = Joint.apply(((x - mean) ** 2).sum((0, 2, 3), keepdim=True)) / count
    self.running_mean.lerp_(mean.detach().flatten(), self.momentum)
    self.running_var.lerp_(variance.detach().flatten() * count / (count - 1), self.momentum)
    shape = (1, -1, 1, 1)
    return (x - mean) / torch.sqrt(variance + self.eps) * self.weight.view(shape) + self.bias.view(shape)
if len(sys.argv) > 4:
    torch.nn.BatchNorm2d.forward = forward
folder, config, options = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
try:
    result = train(TrainingConfig.from_dict(config), folder / "run", TrainingOptions(**options))
    (folder / ("rank" + os.environ["RANK"])).write_text(str(result.metrics))
    status = 0
except VsfixError as error:
    print(error, file=sys.stderr)
    status = error.exit_code
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
(folder / ("threads" + os.environ["RANK"])).write_text("".join(threads))
sys.exit(status)
"""


def start(folder, config: TrainingConfig, *, joint_batch_norm: bool = False, **options) -> subprocess.Popen[str]:
    """Two processes under torchrun."""
    script = folder / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    arguments = [str(folder), json.dumps(config.to_dict()), json.dumps(options), *["joint"] * joint_batch_norm]
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == ""
    assert "Warning" not in err


def gloo_threads(folder) -> list[str]:
    """Threads of the process group that outlived the training; they can abort a process that ends."""
    return [name for rank in "01" for name in (folder / f"threads{rank}").read_text().split() if "gloo" in name]


def saved(folder):
    return load_checkpoint(folder / "run" / "checkpoint.pt")


def furthest(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest distance of two networks, over the largest number of the tensor."""
    return max(
        float((left[n] - right[n]).abs().max() / right[n].abs().max()) for n in right if right[n].is_floating_point()
    )


@pytest.mark.long
@pytest.mark.parametrize("joint", [True, False])
def test_two_processes_compute_what_one_computes_with_the_joint_batch(tmp_path, joint):
    # One epoch: rounding grows from step to step, as it does between any two orders of summation.
    config = replace(
        CONFIG,
        epochs=1,
        learning_rate=0.02,
        augmentation=Augmentation(crop=1, flip=True, cutout=2),
    )
    finish(start(tmp_path, config, joint_batch_norm=joint))
    assert gloo_threads(tmp_path) == []
    train(config, tmp_path / "alone")
    together, alone = saved(tmp_path), load_checkpoint(tmp_path / "alone" / "checkpoint.pt")
    assert [(tmp_path / name).read_text() for name in ("rank0", "rank1")] == [str(together.metrics)] * 2
    losses = [checkpoint.metrics[0].train_loss for checkpoint in (together, alone)]
    if joint:
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert furthest(together.model, alone.model) < 1e-4
    else:  # each process normalises with its own part of the batch
        assert losses[0] != pytest.approx(losses[1], rel=1e-4)
        assert furthest(together.model, alone.model) > 1e-2


@pytest.mark.long
def test_synchronised_batch_norm_of_several_cpus_is_refused(tmp_path):
    process = start(tmp_path, replace(CONFIG, sync_batch_norm=True))
    _, err = process.communicate(timeout=120)
    assert process.returncode
    assert "training: torch has synchronised BatchNorm for GPUs only; leave --sync-batchnorm out" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_two_processes_that_are_asked_to_stop_save_and_go_on_as_if_nothing_had_been(tmp_path):
    # With noise, so that each process has a stream of its own to go on with; in each 50th step they look up.
    config = replace(CONFIG, network=replace(NETWORK, noise=NoiseSites(a=Noise.parse("dropout:0.5"))), epochs=1)
    config = replace(config, samples=None, batch_size=8)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for folder in (stopped, whole):
        folder.mkdir()
    process = start(stopped, config, save_every=0)
    checkpoint = stopped / "run" / "checkpoint.pt"
    wait_for(checkpoint)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    assert gloo_threads(stopped) == []
    position = load_checkpoint(checkpoint).position
    assert position is not None
    assert len(position.random) == 2
    assert len(position.losses) % 50 == 0
    with pytest.raises(InputError, match="in the middle of an epoch of 2 processes"):
        train(config, stopped / "run")
    finish(start(stopped, config))
    finish(start(whole, config))
    assert all(torch.equal(saved(stopped).model[name], tensor) for name, tensor in saved(whole).model.items())


def wait_for(path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
