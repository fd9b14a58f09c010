from __future__ import annotations

import os
import pickle

import pytest
import torch

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.data.preprocessing import Preprocessing
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, build_network
from vsfix.trainers.training.checkpoint import Checkpoint, EpochMetrics, load_checkpoint, save_checkpoint
from vsfix.trainers.training.training_config import TrainingConfig

NETWORK = NetworkConfig(
    model="preresnet-8",
    in_channels=1,
    image_size=(8, 8),
    num_classes=10,
    noise=NoiseSites(a=Noise.parse("dropout:0.5")),
)


@pytest.fixture
def checkpoint() -> Checkpoint:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_network(NETWORK)
        module(torch.randn(4, 1, 8, 8))  # so that the running statistics are not the fresh ones
    return Checkpoint(
        training=TrainingConfig(data="digits", network=NETWORK, epochs=2),
        preprocessing=Preprocessing(1, (8, 8), (0.3,), (0.4,), tuple("0123456789")),
        model=module.state_dict(),
        optimizer={"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        scheduler={"last_epoch": 3},
        metrics=(EpochMetrics(1, 2.25, 0.5, 3.5, 0.05, 640.0),),
    )


@pytest.fixture
def path(tmp_path, checkpoint):
    save_checkpoint(checkpoint, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def rewrite(path, change) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_what_is_saved_is_loaded(path, checkpoint):
    loaded = load_checkpoint(path)
    assert loaded.training == checkpoint.training
    assert loaded.network == NETWORK
    assert loaded.preprocessing == checkpoint.preprocessing
    assert loaded.metrics == checkpoint.metrics
    assert loaded.epoch == 1
    assert list(loaded.model) == list(checkpoint.model)
    assert all(torch.equal(loaded.model[name], tensor) for name, tensor in checkpoint.model.items())
    assert torch.equal(loaded.optimizer["state"][0]["momentum_buffer"], torch.ones(2))


def test_the_built_network_has_the_weights_and_is_in_eval_mode(path, checkpoint):
    module = load_checkpoint(path).build()
    assert not any(part.training for part in module.modules())
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in checkpoint.model.items())


def test_saving_replaces_the_older_file_and_leaves_no_other(path, checkpoint):
    save_checkpoint(checkpoint, path)
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_and_a_folder_are_no_checkpoints(tmp_path):
    for path, words in ((tmp_path / "none.pt", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(ModelError, match=f"{words}.*`vsfix train` wrote"):
            load_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_a_truncated_file_is_refused_in_one_line(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"checkpoint\.pt: can't be read") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04 no archive", b"\x80\x02", bytes(1000)])
def test_another_kind_of_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"checkpoint\.pt"):
        load_checkpoint(path)


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_the_file_is_refused_and_not_run(path, tmp_path, write):
    write({"format": "vsfix-checkpoint", "version": 1, "model": Planted(f"touch {tmp_path}/ran")}, path)
    with pytest.raises(ModelError, match="code") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_the_planted_code_would_run_without_the_safe_loader(path, tmp_path):
    torch.save({"model": Planted(f"touch {tmp_path}/ran")}, path)
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_plain_state_dict_is_no_checkpoint(path, checkpoint):
    torch.save(checkpoint.model, path)
    with pytest.raises(ModelError, match="no vsfix checkpoint"):
        load_checkpoint(path)


def test_another_version_is_refused(path):
    rewrite(path, lambda content: content.update(version=1))
    with pytest.raises(ModelError, match="version 1, but this vsfix reads 2"):
        load_checkpoint(path)


@pytest.mark.parametrize("field", ["training", "preprocessing", "model", "optimizer", "scheduler", "metrics"])
def test_a_missing_part_is_named(path, field):
    rewrite(path, lambda content: content.pop(field))
    with pytest.raises(ModelError, match=f"lacks {field}"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("training", {"epochs": 3}),
        ("training", 3),
        ("preprocessing", "{}"),
        ("preprocessing", 3),
        ("model", {"weight": 1}),
        ("model", 3),
        ("optimizer", 3),
        ("scheduler", None),
        ("metrics", 3),
        ("metrics", [{"epoch": 1}]),
        ("metrics", [{"epoch": 2, "train_loss": 1.0, "test_accuracy": 0.5, "seconds": 1.0}]),
    ],
)
def test_a_damaged_part_is_refused(path, field, value):
    rewrite(path, lambda content: content.update({field: value}))
    with pytest.raises(ModelError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("mistake", ["missing", "extra", "shape"])
def test_weights_of_another_network_are_refused(path, mistake):
    def plant(content):
        model = content["model"]
        name = next(iter(model))
        if mistake == "missing":
            del model[name]
        elif mistake == "extra":
            model["extra"] = model[name]
        else:
            model[name] = model[name][:1]

    rewrite(path, plant)
    with pytest.raises(ModelError, match="don't fit") as error:
        load_checkpoint(path).build()
    assert "\n" not in str(error.value)


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**9},
        {"width": 10**30},
        {"num_classes": 10**9},
        {"in_channels": 10**8},
        {"model": "wrn-9994-999"},
        {"model": "mlp-999"},
    ],
)
def test_a_network_far_larger_than_its_weights_is_refused_before_it_is_built(path, change):
    rewrite(path, lambda content: content["training"]["network"].update(change))
    with pytest.raises(ModelError, match=r"don't fit its network: .*(the file holds|than any memory)"):
        load_checkpoint(path).build()


def test_weights_that_would_lose_their_imaginary_part_are_refused(path):
    rewrite(path, lambda content: content["model"].update(conv=content["model"].pop("conv.weight")))
    with pytest.raises(ModelError, match=r"'conv.weight' is torch.float32 of shape .*, and the file holds nothing"):
        load_checkpoint(path).build()
    rewrite(path, lambda content: content["model"].update({"conv.weight": content["model"].pop("conv").cfloat()}))
    with pytest.raises(ModelError, match=r"the file holds torch.complex64 of shape"):
        load_checkpoint(path).build()


def test_weights_with_numbers_for_names_are_refused(path):
    rewrite(path, lambda content: content["model"].update({3: content["model"].pop("conv.weight")}))
    with pytest.raises(ModelError, match="no state_dict where one belongs"):
        load_checkpoint(path)
